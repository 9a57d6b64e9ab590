"""When a worker counts as busy, and what a damaged weights file looks like."""

import json
from pathlib import Path

import pytest

from lorasweep.errors import RecordError
from lorasweep.models import source
from lorasweep.record import Record, read
from lorasweep.use import Use


def test_a_worker_with_several_trials_is_busy_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("lorasweep.use.time.time", lambda: now[0])
    use = Use()
    for second, worker, key in ((100, 0, "a"), (101, 0, "b"), (104, 1, "c")):
        now[0] = second
        use.begin(worker, key)
    for second, key in ((105, "a"), (106, "b"), (110, "c")):
        now[0] = second
        use.end(key)
    assert use.busy == (106 - 100) + (110 - 104)
    assert use.idle_share(2) == pytest.approx(1 - 12 / 20)


def safetensors(length: int) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, length]}}).encode()
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (safetensors(8) + bytes(8), None),
        (safetensors(8) + bytes(7), "bytes"),
        (safetensors(8) + bytes(9), "bytes"),
        (safetensors(8)[:20], "cut off"),
        (b"abc", "no header"),
        ((5).to_bytes(8, "little") + b"{bad}", "unreadable"),
        ((2).to_bytes(8, "little") + b"[]", "unreadable"),
    ],
)
def test_damage_is_seen_in_the_header(tmp_path: Path, content: bytes, says: str | None) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    found = source.damaged(file)
    assert found is None if says is None else says in (found or "")


def test_a_record_that_is_not_there_or_broken_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="make sweep"):
        read(f"sqlite:///{tmp_path}/none.db")
    broken = tmp_path / "broken.db"
    broken.write_text("no database, but long enough to be taken for the header of one " * 20)
    with pytest.raises(RecordError, match="cannot be used"):
        Record(f"sqlite:///{broken}", tmp_path)


def test_a_folder_made_once_is_never_seen_half_made(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "part").write_text("x")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        source.made_once(tmp_path / "it", fail)
    assert list(tmp_path.iterdir()) == []
    made = source.made_once(tmp_path / "it", lambda to: (to / "part").write_text("x") and None)
    assert (made / "part").read_text() == "x"
