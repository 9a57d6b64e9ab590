"""The user's own files: what is read, and what is said when that cannot be."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorasweep.errors import RequestError
from lorasweep.tasks import sources

ROWS = [(f"sentence {i}, “quoted”", "pos" if i % 3 else "neg") for i in range(30)]


def as_csv(rows: list[tuple[str, str]], separator: str = ",") -> str:
    quoted = [f'"{text}"{separator}{label}' for text, label in rows]
    return "\n".join([f"text{separator}label", *quoted]) + "\n"


def only_problem(task: dict[str, Any]) -> str:
    (found,) = sources.problems(task)
    with pytest.raises(RequestError) as caught:
        sources.load(task, Path("unused"))
    assert caught.value.problems == [found]
    return found


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet", "CSV"])
def test_every_format_gives_the_same_task(ending: str, task: Any, tmp_path: Path) -> None:
    path = tmp_path / f"train.{ending}"
    if ending == "parquet":
        table = {"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}
        pq.write_table(pa.table({**table, "vector": [[1.0]] * len(ROWS)}), path)
    elif ending == "jsonl":
        lines = [json.dumps({"text": text, "label": label}) for text, label in ROWS]
        path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    else:
        path.write_text(as_csv(ROWS, "\t" if ending == "tsv" else ","), encoding="utf-8-sig")
    quotes = True if ending == "tsv" else None
    asked = task(train_file=str(path), eval_file=str(path), quotes=quotes)
    assert sources.problems(asked) == []
    data = sources.load(asked, tmp_path)
    assert data.labels == ["neg", "pos"]
    assert data.train.texts == [text for text, _ in ROWS]
    assert data.train.labels == [int(label == "pos") for _, label in ROWS]
    assert data.train.ids[:2] == ["train:0", "train:1"]
    assert data.eval.ids[:2] == ["eval:0", "eval:1"]
    assert data.provenance["eval_texts_also_in_train"] == len(ROWS)


def test_what_separated_files_may_hold(task: Any, write: Any, tmp_path: Path) -> None:
    long = "x" * 200_000
    text = f'text,label\r\n"two\r\nlines, and ""quotes""",1\r\n{long},2\r\n\r\nNA,2\r\nnull,1\r\n'
    path = write("odd.csv", text)
    data = sources.load(task(train_file=path, eval_file=path), tmp_path)
    assert data.train.texts == ['two\r\nlines, and "quotes"', long, "NA", "null"]


def tsv(*rows: tuple[str, str]) -> str:
    return "".join(f"{text}\t{label}\n" for text, label in (("text", "label"), *rows))


OPENED = [('"I laughed .', "pos"), ("Then I cried .", "neg"), ('They refused ."', "pos")]
BEGINS = [('"Alien" is the best', "pos"), ('a "comedy" without jokes', "neg"), ('"', "neg")]


@pytest.mark.parametrize("rows", [OPENED, BEGINS])
def test_quotes_in_a_tsv_are_a_part_of_its_texts(
    rows: list[tuple[str, str]], task: Any, write: Any, tmp_path: Path
) -> None:
    path = write("train.tsv", tsv(*rows))
    data = sources.load(task(train_file=path, eval_file=path), tmp_path)
    assert data.train.texts == [text for text, _ in rows]
    assert [data.labels[number] for number in data.train.labels] == [label for _, label in rows]


def test_a_tsv_or_csv_is_read_with_quotes_or_without_as_it_is_told(
    task: Any, write: Any, tmp_path: Path
) -> None:
    text = tsv(('"a ""b"""', "1"), ('"two\tfields"', "2"))
    path = write("train.tsv", text)
    read = sources.load(task(train_file=path, eval_file=path, quotes=True), tmp_path)
    assert read.train.texts == ['a "b"', "two\tfields"]
    assert "and say task.quotes=true" in sources.problems(task(train_file=path))[0]
    plain = write("train.csv", 'text,label\n"a,1\nb",2\n')
    read = sources.load(task(train_file=plain, eval_file=plain, quotes=False), tmp_path)
    assert read.train.texts == ['"a', 'b"']


@pytest.mark.parametrize("rows", [(('"a"', "1"), ('"b c"', "2")), (('"a ""b"""', "1"), ("c", "2"))])
def test_a_tsv_with_quotes_of_its_format_is_not_read_silently(
    rows: tuple[tuple[str, str], ...], task: Any, write: Any, tmp_path: Path
) -> None:
    path = write("train.tsv", tsv(*rows))
    said = sources.problems(task(train_file=path, eval_file=path))
    assert "task.quotes=true to take them off, or task.quotes=false to keep them" in said[0]
    kept = sources.load(task(train_file=path, eval_file=path, quotes=False), tmp_path)
    assert kept.train.texts == [text for text, _ in rows]


def test_how_quotes_are_read_is_known_by_the_hash_where_there_are_any(
    task: Any, write: Any
) -> None:
    def digests(name: str, text: str) -> list[str | None]:
        path = write(name, text)
        return [sources.digest(task(train_file=path, quotes=q)) for q in (None, True, False)]

    usual, quoted, plain = digests("a.tsv", tsv(*OPENED))
    assert usual == plain != quoted
    usual, quoted, plain = digests("a.csv", 'text,label\n"a",1\nb,2\n')
    assert usual == quoted != plain
    assert len(set(digests("b.tsv", tsv(("a", "1"), ("b", "2"))))) == 1


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([10, 9, 1], ["1", "9", "10"]),
        (["10", "9", "-1"], ["-1", "9", "10"]),
        ([2.0, 1.0], ["1", "2"]),
        (["b", "10", "a"], ["10", "a", "b"]),
        ([True, False], ["False", "True"]),
    ],
)
def test_order_of_classes(labels: list[Any], classes: list[str], task: Any, tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"text": [f"t{i}" for i in range(len(labels))], "label": labels}), path)
    assert sources.load(task(train_file=path, eval_file=path), tmp_path).labels == classes


def test_pairs_of_texts(task: Any, write: Any, tmp_path: Path) -> None:
    lines = [json.dumps({"a": f"a{i}", "b": f"b{i}", "same": i % 2}) for i in range(20)]
    path = write("pairs.jsonl", "\n".join(lines))
    data = sources.load(task(train_file=path, text="a", text_pair="b", label="same"), tmp_path)
    for side in (data.train, data.eval):
        assert side.pairs == [text.replace("a", "b") for text in side.texts]


def test_hold_out_is_stratified_and_follows_the_seed(task: Any, write: Any, tmp_path: Path) -> None:
    rows = [(f"text {i}", "rare" if i % 10 == 0 else "common") for i in range(200)]
    asked = task(train_file=write("train.csv", as_csv(rows)))
    data = sources.load(asked, tmp_path)
    assert Counter(data.eval.labels) == {0: 36, 1: 4}
    assert Counter(data.train.labels) == {0: 144, 1: 16}
    assert set(data.train.ids) | set(data.eval.ids) == {f"train:{i}" for i in range(200)}
    assert sources.load(asked, tmp_path) == data
    other = sources.load({**asked, "subset_seed": 1}, tmp_path)
    assert set(other.eval.ids) != set(data.eval.ids)
    assert other.digest != data.digest


def test_hold_out_keeps_equal_texts_on_one_side(task: Any, write: Any, tmp_path: Path) -> None:
    rows = [(f"text {i % 20}", "even" if i % 2 else "odd") for i in range(200)]
    data = sources.load(task(train_file=write("train.csv", as_csv(rows))), tmp_path)
    assert len(data.eval) > 0
    assert data.provenance["eval_texts_also_in_train"] == 0


def test_hold_out_leaves_a_class_of_one_in_train(task: Any, write: Any, tmp_path: Path) -> None:
    rows = [*[(f"text {i}", "common") for i in range(10)], ("only", "single")]
    data = sources.load(task(train_file=write("train.csv", as_csv(rows))), tmp_path)
    assert "only" in data.train.texts


def test_digest_follows_content_not_name(task: Any, write: Any) -> None:
    first, second = write("a.csv", as_csv(ROWS)), write("b.csv", as_csv(ROWS))
    changed = write("c.csv", as_csv(ROWS[:-1]))
    hashes = [sources.digest(task(train_file=path)) for path in (first, second, changed)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert sources.digest(task(train_file=first, eval_file=changed)) not in hashes
    assert sources.digest(task(train_file="nowhere.csv")) is None
    assert sources.digest(task(source="reviews5")) is None


def test_missing_file_and_folder(task: Any, tmp_path: Path) -> None:
    assert "there is no such file" in only_problem(task(train_file=str(tmp_path / "no.csv")))
    assert "is a folder" in only_problem(task(train_file=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("train.xlsx", "PK", "'.xlsx' are not known (only .csv, .tsv, .jsonl, .parquet)"),
        ("train.csv", "", "is empty"),
        ("train.jsonl", "\n", "is empty"),
        ("train.csv", "text,label\n", "holds no rows"),
        ("train.parquet", "not parquet", "not a readable parquet file"),
        ("train.csv", "text,label\na,1,x\nb,2\nc\n", "2 rows do not have the 2 fields"),
        ("train.csv", "text,label\na,1,x\nb,2\nc\n", "on lines 2, 4"),
        ("train.csv", 'text,label\na,1\n"b,2\n', "are the quotes in pairs?"),
        ("train.csv", "text,text,label\na,b,1\n", "two columns are called text"),
        ("train.jsonl", '{"text": "a", "label": 1}\n{"text": \n', "line 2 is not JSON"),
        ("train.jsonl", '["a", 1]\n', "line 1 is not an object"),
        ("train.csv", "text,label\na,1\nb,\n,2\n", "1 of 3 rows hold nothing in the column"),
        ("train.csv", "text,label\na,1\nb,1\n", "has one class only ('1')"),
        ("train.csv", "text,label\na,1\nb,2\n", "no class has two different texts"),
        ("train.jsonl", '{"text": 5, "label": 1}', "1 of 1 rows are not text in the column 'text'"),
        ("train.jsonl", '{"text": "a", "label": ["x"]}', "rows hold a list in the column 'label'"),
        ("train.jsonl", '{"text": "\\ud83d", "label": 1}', "rows hold half a character"),
    ],
)
def test_what_is_wrong_with_one_file(
    name: str, content: str, says: str, task: Any, write: Any
) -> None:
    found = sources.problems(task(train_file=write(name, content)))
    assert any(says in text for text in found), found
    assert all(text.startswith("task.train_file=") for text in found)


def test_wrong_encoding_says_where(task: Any, write: Any) -> None:
    path = write("train.csv", "text,label\nplain,1\ncafé,2\n", encoding="latin-1")
    said = only_problem(task(train_file=path))
    assert "line 3, byte 22 is 0xe9" in said
    assert "save it as UTF-8" in said
    assert "UTF-8" in only_problem(task(train_file=write("wide.csv", as_csv(ROWS), "utf-16")))


def test_missing_columns_are_listed_and_the_nearest_suggested(task: Any, write: Any) -> None:
    path = write("train.csv", "Text,stars,other\na,1,x\n")
    found = sources.problems(task(train_file=path, label="star", text_pair="other"))
    assert len(found) == 2
    assert "no column 'text' (task.text)" in found[0]
    assert "no column 'star' (task.label); did you mean 'stars'? (it has Text, stars" in found[1]


def test_blank_cells_are_counted_and_located(task: Any, write: Any) -> None:
    rows = "".join(f"{'' if i % 2 else 'x'},{i % 3}\n" for i in range(20))
    said = only_problem(task(train_file=write("train.csv", "text,label\n" + rows)))
    assert "10 of 20 rows hold nothing in the column 'text'" in said
    assert "rows 1, 3, 5, 7, 9 and 5 more" in said


def test_labels_that_train_does_not_have(task: Any, write: Any) -> None:
    train = write("train.csv", "text,label\na,1\nb,2\n")
    evaluation = write("eval.csv", "text,label\na,1\nb,3\nc,12\n")
    said = only_problem(task(train_file=train, eval_file=evaluation))
    assert said.startswith("task.eval_file=")
    assert "labels that the training data do not: 3, 12 (they have 1, 2)" in said


def test_sizes_that_cannot_be(task: Any, write: Any) -> None:
    path = write("train.csv", as_csv(ROWS))
    found = sources.problems(task(train_file=path, eval_file=path, train_size=31, eval_size=1))
    assert len(found) == 2
    assert "task.train_size=31: made_up has 30 rows" in found[0]
    assert "task.eval_size=1: fewer than the 2 classes" in found[1]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.2, None])
def test_share_to_hold_out(share: float | None, task: Any, write: Any) -> None:
    path = write("train.csv", as_csv(ROWS))
    asked = task(train_file=path, eval_fraction=share)
    assert only_problem(asked).startswith(f"task.eval_fraction={share}")
    assert sources.problems({**asked, "eval_file": path}) == []


def test_everything_is_said_at_once(task: Any, write: Any) -> None:
    found = sources.problems(
        task(
            train_file=write("train.csv", "text,label\na,\n,2\nb,3\n"),
            eval_file=write("eval.csv", "words,label\na,1\n"),
        )
    )
    assert len(found) == 3


def test_unknown_source(task: Any) -> None:
    said = only_problem(task(source="file"))
    assert (
        said == "task.source=file: not known; did you mean 'files'? (known: reviews5, hub, files)"
    )
