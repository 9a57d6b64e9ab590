"""A base in memory at the trial's precision, with a fresh head drawn from the trial's seed."""

import logging
from pathlib import Path
from typing import Any

import torch
import transformers

from lorasweep.models import roles
from lorasweep.models.convert import DTYPES
from lorasweep.trial import Trial

log = logging.getLogger(__name__)


def device() -> torch.device:
    """Return the device that trials run on here: the first GPU, or the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def tokenizer(folder: Path) -> transformers.PreTrainedTokenizerBase:
    """Load the tokenizer, padding on the right with a token that no text ends with."""
    found = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    found.padding_side = "right"
    if found.pad_token is None:
        found.pad_token = found.unk_token or found.eos_token
    # The texts say how long they may be (train.max_length); a warning per text would not help.
    found.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return found


def quantisation(trial: Trial, head: str) -> transformers.BitsAndBytesConfig | None:
    """Return how bitsandbytes holds the base: NF4, FP4 or int8; None keeps plain weights."""
    method = trial.group("method")
    quant = method["quant"]
    if quant is None:
        return None
    if quant == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=[head])
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quant,
        bnb_4bit_use_double_quant=method["double_quant"],
        bnb_4bit_compute_dtype=DTYPES[method["compute_dtype"]],
        llm_int8_skip_modules=[head],
    )


def weight_dtype(trial: Trial) -> torch.dtype:
    """Format of the plain weights: that of the arithmetic, but where they are trained finer."""
    if trial["method.trains"] == "everything" and trial["train.master_weights"] == "float32":
        return torch.float32
    return DTYPES[trial["train.precision"]]


def base(
    trial: Trial, folder: Path, labels: list[str], pad_token_id: int
) -> transformers.PreTrainedModel:
    """Load the base with a sequence-classification head of ``len(labels)`` classes.

    The head is float32 whatever the base is, and drawn from the trial's seed.
    """
    config = transformers.AutoConfig.from_pretrained(
        folder,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={name: i for i, name in enumerate(labels)},
        pad_token_id=pad_token_id,
        trust_remote_code=False,
    )
    head = roles.head_of(config.model_type)
    options: dict[str, Any] = {}
    quantised = quantisation(trial, head)
    if quantised is not None:
        options["quantization_config"] = quantised
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder,
        config=config,
        dtype=weight_dtype(trial),
        device_map={"": device()},
        use_safetensors=True,
        trust_remote_code=False,
        **options,
    )
    model.config.use_cache = False
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # Where the processor has it, bitsandbytes would repack 4-bit weights for bfloat16
            # products at the first evaluation: other scores than elsewhere, and no training
            # after it ("a view of a leaf Variable … in-place").
            module.support_avx512bf16_for_cpu = False
    redraw(model.get_submodule(head), trial["seed"], config)
    assert isinstance(model, transformers.PreTrainedModel)
    return model


def redraw(head: torch.nn.Module, seed: int, config: transformers.PretrainedConfig) -> None:
    """Draw the head's weights from ``seed``, on the CPU, so that every device gets the same."""
    generator = torch.Generator().manual_seed(seed)
    std = getattr(config, "initializer_range", 0.02)
    head.float()
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.copy_(torch.empty(parameter.shape).normal_(0, std, generator=generator))
