"""What a folder with a base has to hold, as far as its small files and headers tell."""

import json
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lorasweep.models import roles

VOCABULARY = ("tokenizer.json", "vocab*", "*.model", "*.tiktoken")


def problems(folder: Path, where: str) -> list[str]:
    """Say what would keep the safetensors weights in a folder from being used."""
    try:
        shape = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        return [f"{where}: {folder} has no config.json"]
    except ValueError as error:
        return [f"{where}: {folder / 'config.json'} is no valid JSON ({error})"]
    if "auto_map" in shape:
        return [f"{where}: this model needs code of its own to run, and remote code is never run"]
    return [f"{where}: {said}" for said in (*_of_tokenizer(folder, shape), *_holes(folder, shape))]


def matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """Return the files of a folder whose names match any of the patterns, in order."""
    return sorted({f for p in patterns for f in folder.glob(p) if f.is_file()})


def _of_tokenizer(folder: Path, shape: Mapping[str, Any]) -> list[str]:
    # For none transformers makes one up, of five tokens.
    if not matching(folder, VOCABULARY):
        return [
            "the folder has no tokenizer (tokenizer.json, vocab.txt, …); copy the files of the "
            "tokenizer that the model was trained with into it"
        ]
    known = shape.get("vocab_size")
    beyond = [t for t, i in _added_tokens(folder).items() if known is not None and i >= known]
    if not beyond:
        return []
    return [
        f"the tokenizer has tokens that the model has no embedding for ({', '.join(beyond[:4])}; "
        f"the embedding ends at {known}); take the tokenizer that the model was trained with"
    ]


def _added_tokens(folder: Path) -> dict[str, int]:
    """Return the words that were added to a vocabulary; special ones no text is made of."""
    try:
        added = json.loads((folder / "tokenizer.json").read_text()).get("added_tokens") or []
        return {str(t["content"]): int(t["id"]) for t in added if not t.get("special")}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return {}  # whoever loads it says what is wrong


def _holes(folder: Path, shape: Mapping[str, Any]) -> list[str]:
    """Complain about linear layers of the blocks for which there are no weights."""
    kind = str(shape.get("model_type"))
    blocks = shape.get("num_hidden_layers", shape.get("n_layer"))
    if kind not in roles.ROLES or "quantization_config" in shape or not isinstance(blocks, int):
        return []
    inner = roles.blocks_of(kind).rpartition(".")[2]
    names = [name for file in folder.glob("*.safetensors") for name in _tensors(file)]
    # Whatever comes before: it depends on what the model was saved as.
    there = {found[1] for n in names if (found := re.search(rf"\b({inner}\.\d+\..+)", n))}
    wanted = [
        f"{inner}.{i}.{layer}.weight" for i in range(blocks) for layer in roles.ROLES[kind].values()
    ]
    lacking = [name for name in wanted if name not in there]
    if not lacking or not names:
        return []
    return [
        f"the checkpoint is not whole: it lacks {len(lacking)} of the {len(wanted)} linear layers "
        f"of its blocks ({lacking[0]}, …); fetch it again, or use another"
    ]


def _tensors(file: Path) -> list[str]:
    """Return the names in a file of safetensors; none where it is damaged."""
    try:
        with file.open("rb") as stream:
            length = struct.unpack("<Q", stream.read(8))[0]
            return list(json.loads(stream.read(length)))
    except (OSError, ValueError, struct.error, OverflowError, MemoryError):
        return []
