"""Bases that have to be made before they can be loaded: from a GGUF file, or from a shape alone."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lorasweep.errors import LorasweepError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def gguf(file: Path, folder: Path) -> None:
    """Dequantise a GGUF file into ``folder`` as float32 safetensors with its tokenizer.

    Raises:
        LorasweepError: transformers does not know its architecture or tokenizer, or it lacks
            weights.
    """
    place = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    try:
        with _read_once():
            transformers.AutoTokenizer.from_pretrained(**place).save_pretrained(folder)
            loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
                **place, dtype=torch.float32, output_loading_info=True
            )
    except (ValueError, KeyError) as error:
        raise LorasweepError(f"{file} cannot be used: {error}") from error
    if report["missing_keys"]:  # which transformers has drawn
        lacking = ", ".join(sorted(report["missing_keys"])[:4])
        raise LorasweepError(f"{file} cannot be used: it lacks weights ({lacking}, …)")
    # The loaded model still calls itself quantised, and then cannot be saved.
    config = copy.deepcopy(loaded.config)
    del config.quantization_config
    with torch.device("meta"):  # nothing is drawn that would be thrown away
        plain = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    _write(plain, folder)


@contextmanager
def _read_once() -> Iterator[None]:
    """Keep what transformers asks of the same GGUF file again and again.

    It parses the file's header three times and makes one table of names for every module: more
    than half of what a 135M base of 49,000 tokens takes (bench/LOG.md).
    """
    import gguf as library  # only where there is such a file

    kept = {name: getattr(library, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, made in kept.items():
            setattr(library, name, lru_cache(made))
        yield
    finally:
        for name, made in kept.items():
            setattr(library, name, made)


def random(model: Mapping[str, Any], folder: Path) -> None:
    """Write a model with random weights (always the same for one shape) and a byte tokenizer."""
    shape = dict(model["shape"])
    config = transformers.AutoConfig.for_model(shape.pop("model_type"), **shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = transformers.AutoModel.from_config(config, dtype=DTYPES[model["precision"]])
    _write(base, folder)
    byte_tokenizer().save_pretrained(folder)


def _write(model: transformers.PreTrainedModel, folder: Path) -> None:
    """Save a model without transformers' progress bar, which would break the lines on screen."""
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)


def byte_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer of bytes: 256 of them, and ``<pad> <s> </s> <unk>``. Nothing to train."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B </s>",
        special_tokens=[("<s>", 1), ("</s>", 2)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )
