"""Texts to tokens, once for every data, tokenizer and length."""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasweep.tasks.data import Examples, Task, TaskData

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

_FORMAT = 1  # counts up when what is written below changes
_BATCH = 10_000  # texts at a time: bounds the Python lists that tokenizers return


def tokenise(
    data: TaskData,
    task: Task,
    tokenizer: "PreTrainedTokenizerBase",
    tokenizer_id: str,
    max_length: int,
    cache: Path,
) -> "tuple[datasets.Dataset, datasets.Dataset]":
    """Turn both sides of a task into tokens, or read them from the cache.

    Several processes may do so at once: each writes its own copy, and the first to finish stays.

    Args:
        data: the items.
        task: its name is used, for the folder's.
        tokenizer: what to tokenise with.
        tokenizer_id: a hash of what decides how the tokenizer cuts texts.
        max_length: tokens an item at most, special ones included; longer items are cut.
        cache: folder to keep the tokens in.

    Returns:
        Train and evaluation, without padding. Columns: ``input_ids``, ``attention_mask``,
        ``token_type_ids`` if the tokenizer has them, ``labels``, ``length`` (tokens), and for
        evaluation ``id``. Evaluation goes from the longest item to the shortest, so that batches
        of neighbours need little padding.
    """
    import datasets

    key = json.dumps([_FORMAT, data.digest, tokenizer_id, max_length])
    name = f"{task['name']}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    folder = cache / "tokens" / name
    if not folder.exists():
        _write(folder, _encode(data, tokenizer, max_length))
    train, evaluation = (
        datasets.Dataset.from_file(str(folder / f"{side}.arrow")) for side in ("train", "eval")
    )
    return train, evaluation


def _encode(
    data: TaskData, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> "dict[str, pa.Table]":
    evaluation = _table(data.eval, tokenizer, max_length)
    evaluation = evaluation.append_column("id", [data.eval.ids])
    longest_first = evaluation.sort_by([("length", "descending"), ("id", "ascending")])
    return {"train": _table(data.train, tokenizer, max_length), "eval": longest_first}


def _table(examples: Examples, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> "pa.Table":
    import pyarrow as pa

    types = {"input_ids": pa.int32(), "attention_mask": pa.int8(), "token_type_ids": pa.int8()}
    batches = []
    for start in range(0, len(examples), _BATCH):
        part = slice(start, start + _BATCH)
        encoded: dict[str, Any] = dict(
            tokenizer(
                examples.texts[part],
                examples.pairs[part] if examples.pairs is not None else None,
                truncation=True,
                max_length=max_length,
            )
        )
        columns = {
            name: pa.array(encoded[name], pa.list_(kind))
            for name, kind in types.items()
            if name in encoded
        }
        columns["labels"] = pa.array(examples.labels[part], pa.int64())
        columns["length"] = pa.array([len(ids) for ids in encoded["input_ids"]], pa.int32())
        batches.append(pa.table(columns))
    return pa.concat_tables(batches)


def _write(folder: Path, tables: "dict[str, pa.Table]") -> None:
    """Write into a folder of our own, then give it its name in one step."""
    import pyarrow as pa

    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    try:
        for side, table in tables.items():
            path = str(scratch / f"{side}.arrow")
            with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)
        scratch.rename(folder)
    except OSError:
        # another process was first: what it wrote is the same
        if not folder.exists():
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
