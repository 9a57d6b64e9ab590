"""A base in memory at the trial's precision, with a fresh head drawn from the trial's seed."""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from lorasweep.errors import LorasweepError
from lorasweep.models import roles
from lorasweep.models.convert import DTYPES
from lorasweep.trial.trial import Trial

log = logging.getLogger(__name__)


def device() -> torch.device:
    """Return the device that trials run on here: the first GPU, or the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def tokenizer(folder: Path) -> transformers.PreTrainedTokenizerBase:
    """Load the tokenizer, padding on the right; with what is settled by the texts (``padding``)."""
    found = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    found.padding_side = "right"
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


@dataclass(frozen=True)
class Loaded:
    """A base in memory, and how its checkpoint differs from what is trained.

    Attributes:
        model: the base with its head.
        drawn: names of the parameters besides the head's that the checkpoint lacks, such as the
            pooler of a masked language model; they are float32 and drawn from the trial's seed.
        notes: sentences about both for people.
    """

    model: transformers.PreTrainedModel
    drawn: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def head(self) -> torch.nn.Module:
        """The classification head."""
        return self.model.get_submodule(roles.head_of(self.model.config.model_type))

    @property
    def held(self) -> dict[str, torch.Tensor]:
        """What the modules hold that parameters are drawn for, by full names."""
        return {
            f"{owner}.{name}": value
            for owner in owners(self.drawn)
            for name, value in self.model.get_submodule(owner).state_dict().items()
        }

    def redraw(self, seed: int) -> None:
        """Draw what does not come from the checkpoint, for a trial with this seed."""
        redraw(self.head, seed, self.model.config)
        draw({n: self.model.get_parameter(n) for n in self.drawn}, seed, self.model.config)


def base(trial: Trial, folder: Path, labels: list[str], pad_token_id: int) -> Loaded:
    """Load the base with a sequence-classification head of ``len(labels)`` classes.

    The head is float32 whatever the base is, and drawn from the trial's seed. What the folder's
    configuration says of an earlier task (loss, classes, outputs) counts for nothing.

    Raises:
        LorasweepError: the checkpoint is not whole, or not of the shape in its ``config.json``.
    """
    config = transformers.AutoConfig.from_pretrained(
        folder,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={name: i for i, name in enumerate(labels)},
        problem_type="single_label_classification",
        output_hidden_states=False,
        output_attentions=False,
        return_dict=True,
        pad_token_id=pad_token_id,
        trust_remote_code=False,
    )
    head = roles.head_of(config.model_type)
    options: dict[str, Any] = {}
    quantised = quantisation(trial, head)
    if quantised is not None:
        options["quantization_config"] = quantised
    model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder,
        config=config,
        dtype=weight_dtype(trial),
        device_map={"": device()},
        use_safetensors=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,  # of a head that is drawn anew; of others the report tells
        output_loading_info=True,
        **options,
    )
    assert isinstance(model, transformers.PreTrainedModel)
    model.config.use_cache = False
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # Where the processor has it, bitsandbytes would repack 4-bit weights for bfloat16
            # products at the first evaluation: other scores than elsewhere, and no training
            # after it ("a view of a leaf Variable … in-place").
            module.support_avx512bf16_for_cpu = False
    drawn = _lacking(model, report, folder)
    _hold_in_float32(model, drawn)
    loaded = Loaded(model, drawn, _notes(trial, head, len(labels), drawn, report))
    loaded.redraw(trial["seed"])
    return loaded


def _lacking(
    model: transformers.PreTrainedModel, report: Mapping[str, Any], folder: Path
) -> tuple[str, ...]:
    """Return the names of parameters besides the head's that a checkpoint lacks."""
    kind = model.config.model_type
    head, blocks = f"{roles.head_of(kind)}.", f"{roles.blocks_of(kind)}."
    for name, theirs, ours in sorted(report["mismatched_keys"]):
        if not name.startswith(head):
            raise LorasweepError(
                f"{folder}: the weights are not those of its config.json ({name} has the shape "
                f"{tuple(theirs)}, {tuple(ours)} is expected)"
            )
    whole = {n: p for n, p in model.named_parameters() if not n.startswith(head)}
    lacking = sorted(whole.keys() & report["missing_keys"])
    missing = sum(whole[name].numel() for name in lacking)
    if missing > sum(p.numel() for p in whole.values()) / 2 or any(
        name.startswith(blocks) for name in lacking
    ):
        raise LorasweepError(
            f"{folder}: the checkpoint is not whole: it lacks {len(lacking)} of the base's "
            f"{len(whole)} weights ({_few(lacking)}); fetch it again, or use another"
        )
    return tuple(lacking)


def _hold_in_float32(model: torch.nn.Module, names: Sequence[str]) -> None:
    """Have modules that parameters are drawn for hold float32, in a quantised base too."""
    for owner in owners(names):
        module = model.get_submodule(owner)
        if isinstance(module, torch.nn.Linear) and f"{owner}.weight" in names:
            # bitsandbytes leaves plain what it finds no weight for, in a layer of its own kind
            plain = torch.nn.Linear(module.in_features, module.out_features, device="meta")
            plain.weight, plain.bias = module.weight, module.bias
            parent, _, leaf = owner.rpartition(".")
            setattr(model.get_submodule(parent), leaf, plain)
            module = plain
        module.float()


def _notes(
    trial: Trial, head: str, classes: int, drawn: Sequence[str], report: Mapping[str, Any]
) -> tuple[str, ...]:
    notes = []
    if not any(name.startswith(f"{head}.") for name in report["missing_keys"]):
        notes.append(
            f"the checkpoint's own head is left aside; one of {classes} classes is drawn from "
            "each trial's seed"
        )
    if drawn:
        how = {"adapter": "saved with the adapter, not trained", "everything": "trained"}
        notes.append(
            f"the checkpoint lacks {_few(drawn)}: drawn from each trial's seed, "
            f"{how.get(trial['method.trains'], 'not trained')}"
        )
    return tuple(notes)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def owners(names: Iterable[str]) -> list[str]:
    """Return the modules that hold parameters of these names."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in names))


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


def draw(
    parameters: Mapping[str, torch.Tensor], seed: int, config: transformers.PretrainedConfig
) -> None:
    """Draw parameters of the base, each from ``seed`` and its full name, on the CPU."""
    std = getattr(config, "initializer_range", 0.02)
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim == 1:  # a norm's
                parameter.fill_(1)
            else:
                digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
                generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
                parameter.copy_(torch.empty(parameter.shape).normal_(0, std, generator=generator))
