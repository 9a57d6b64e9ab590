"""What a stopped trial goes on from: all of it, as safetensors and JSON."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from lorasweep.engines.packed.bank import MATRICES
from lorasweep.engines.packed.member import Member

_FORMAT = 1  # counts up when what is written below changes
_COUNTS = ("step", "logged", "judged", "summed", "share", "texts", "tokens", "without_better")


def place(folder: Path) -> Path:
    """Folder of a trial's state, beside that of its artefacts."""
    return folder.parent / "state"


def _identity(member: Member) -> dict[str, Any]:
    """What a state belongs to: numbers go on bit by bit only in the same surroundings."""
    return {"format": _FORMAT, "key": member.trial.key, "device": str(member.loss.device)}


def save(member: Member) -> None:
    """Write where a trial stands, at the end of a step, in one move."""
    bank, row = member.adapter.bank, member.adapter.row
    tensors = {
        **{n: bank.read(getattr(bank, n), row) for n in MATRICES},
        **{f"stream.{n}": s.cpu() for n, s in member.adapter.stream.state().items()},
        "steps": bank.steps[row].cpu().reshape(1),
        "loss": member.loss.cpu().reshape(1),
    }
    if member.best is not None:
        tensors["best"] = member.best[1]
    told = {
        **_identity(member),
        **{name: getattr(member, name) for name in _COUNTS},
        "best": None if member.best is None else member.best[0],
        "order": member.order.state(),
        "curve": member.curve,
        "notes": member.notes,
    }
    final = place(member.folder)
    final.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".state-", dir=final.parent))
    save_file({n: t.contiguous() for n, t in tensors.items()}, scratch / "state.safetensors")
    (scratch / "state.json").write_text(json.dumps(told))
    shutil.rmtree(final, ignore_errors=True)
    scratch.rename(final)


def restore(member: Member) -> None:
    """Go on from what was saved, if anything was for this trial."""
    told = _told(member)
    if told is None:
        return
    tensors = load_file(place(member.folder) / "state.safetensors")
    bank, row = member.adapter.bank, member.adapter.row
    for name in MATRICES:
        bank.write(getattr(bank, name), row, tensors[name])
    bank.steps[row] = float(tensors["steps"])
    streams = {n: tensors[f"stream.{n}"] for n in ("order", "dropout")}
    member.adapter.stream.restore(streams)
    member.loss.copy_(tensors["loss"].reshape(()))
    for name in _COUNTS:
        setattr(member, name, told[name])
    member.curve = [(str(n), int(s), float(v)) for n, s, v in told["curve"]]
    member.notes = list(told.get("notes", ()))
    member.order.restore(told["order"])
    if told["best"] is not None:
        member.best = float(told["best"]), tensors["best"]
    member.mark()


def _told(member: Member) -> dict[str, Any] | None:
    try:
        told: dict[str, Any] = json.loads((place(member.folder) / "state.json").read_text())
    except (OSError, ValueError):
        return None
    same = all(told.get(name) == value for name, value in _identity(member).items())
    return told if same else None


def forget(folder: Path) -> None:
    """Remove the state of a trial that has ended for good."""
    shutil.rmtree(place(folder), ignore_errors=True)
