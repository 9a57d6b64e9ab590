"""Texts to tokens, and their cache."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lorasweep.tasks import tokens
from lorasweep.tasks.data import Examples, TaskData, assemble

TEXTS = ["a", "b c d e f g a b c", "c d", "e f", "g"]


@pytest.fixture
def data() -> TaskData:
    side = Examples([f"eval:{i}" for i in range(5)], TEXTS, None, [0, 1, 0, 1, 0])
    return assemble(side.take([1, 0, 2]), side, ["no", "yes"], {"source": "test"})


def test_columns(data: TaskData, task: Any, tokenizer: Any, tmp_path: Path) -> None:
    train, evaluation = tokens.tokenise(data, task(), tokenizer, "words", 6, tmp_path)
    shared = ["input_ids", "attention_mask", "token_type_ids", "labels", "length"]
    assert train.column_names == shared
    assert evaluation.column_names == [*shared, "id"]
    assert train[1] == {
        "input_ids": [2, 4, 3],
        "attention_mask": [1, 1, 1],
        "token_type_ids": [0, 0, 0],
        "labels": 0,
        "length": 3,
    }
    assert list(train["labels"]) == [1, 0, 0]
    assert list(train["length"]) == [6, 3, 4]  # cut at 6


def test_evaluation_goes_from_long_to_short(
    data: TaskData, task: Any, tokenizer: Any, tmp_path: Path
) -> None:
    _, evaluation = tokens.tokenise(data, task(), tokenizer, "words", 16, tmp_path)
    assert list(evaluation["length"]) == [11, 4, 4, 3, 3]
    assert list(evaluation["id"]) == ["eval:1", "eval:2", "eval:3", "eval:0", "eval:4"]
    assert list(evaluation["labels"]) == [1, 0, 1, 0, 0]


def test_pairs(task: Any, tokenizer: Any, tmp_path: Path) -> None:
    side = Examples(["eval:0", "eval:1"], ["a", "a b"], ["b", "c"], [0, 1])
    data = assemble(side, side, ["no", "yes"], {})
    train, _ = tokens.tokenise(data, task(), tokenizer, "words", 16, tmp_path)
    assert train[0]["input_ids"] == [2, 4, 3, 5, 3]
    assert train[0]["token_type_ids"] == [0, 0, 0, 1, 1]


def test_no_type_ids_where_the_tokenizer_has_none(
    data: TaskData, task: Any, tokenizer: Any, tmp_path: Path
) -> None:
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    train, _ = tokens.tokenise(data, task(), tokenizer, "words", 16, tmp_path)
    assert train.column_names == ["input_ids", "attention_mask", "labels", "length"]


def test_many_texts_keep_their_order(task: Any, tokenizer: Any, tmp_path: Path) -> None:
    count = 10_050  # more than are tokenised at a time
    side = Examples(
        [f"eval:{i}" for i in range(count)],
        ["a" if i % 2 else "b c" for i in range(count)],
        None,
        [i % 2 for i in range(count)],
    )
    data = assemble(side, side, ["no", "yes"], {})
    train, evaluation = tokens.tokenise(data, task(), tokenizer, "words", 16, tmp_path)
    assert list(train["length"]) == [3 if i % 2 else 4 for i in range(count)]
    assert len(evaluation) == count


def test_second_call_reads_the_cache(
    data: TaskData, task: Any, tokenizer: Any, tmp_path: Path
) -> None:
    first = tokens.tokenise(data, task(), tokenizer, "words", 16, tmp_path)
    # no tokenizer is needed any more
    second = tokens.tokenise(data, task(), None, "words", 16, tmp_path)
    assert [side.to_dict() for side in first] == [side.to_dict() for side in second]


def test_cache_tells_data_tokenizer_and_length_apart(
    data: TaskData, task: Any, tokenizer: Any, tmp_path: Path
) -> None:
    other = assemble(data.eval, data.train, data.labels, {})
    for content, name, length in ((data, "x", 8), (other, "x", 8), (data, "y", 8), (data, "x", 4)):
        tokens.tokenise(content, task(), tokenizer, name, length, tmp_path)
    assert len(list((tmp_path / "tokens").iterdir())) == 4


def test_several_at_once(data: TaskData, task: Any, tokenizer: Any, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        calls = [
            pool.submit(tokens.tokenise, data, task(), tokenizer, "words", 16, tmp_path)
            for _ in range(8)
        ]
    assert {call.result()[1].num_rows for call in calls} == {5}
    assert len(list((tmp_path / "tokens").iterdir())) == 1  # nothing half-written is left


def test_a_failure_leaves_nothing_behind(
    data: TaskData, task: Any, tokenizer: Any, tmp_path: Path
) -> None:
    (tmp_path / "tokens").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="tokens"):
        tokens.tokenise(data, task(), tokenizer, "words", 16, tmp_path)
