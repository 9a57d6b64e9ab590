"""Task settings, a tokenizer and files, all made here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Make = Callable[..., dict[str, Any]]

SETTINGS: dict[str, Any] = {
    "name": "made_up",
    "source": "files",
    "id": None,
    "revision": None,
    "config": None,
    "train_split": None,
    "eval_split": None,
    "train_file": None,
    "eval_file": None,
    "eval_fraction": 0.2,
    "quotes": None,
    "text": "text",
    "text_pair": None,
    "label": "label",
    "train_size": None,
    "eval_size": None,
    "subset_seed": 0,
}


@pytest.fixture
def task() -> Make:
    """Settings of a task, with some of them changed."""
    return lambda **changed: {**SETTINGS, **changed}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], str]:
    """Write a file and return its path."""

    def written(name: str, content: str, encoding: str = "utf-8") -> str:
        path = tmp_path / name
        path.write_bytes(content.encode(encoding))
        return str(path)

    return written


@pytest.fixture
def tokenizer() -> Any:
    """Words to numbers, with a start and an end token, as BERT has them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefg"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
