"""A sweep of which nothing is left to run, and the words with which every sweep ends."""

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lorasweep import addresses, glance, packs, width
from lorasweep.errors import DONE, SOME_FAILED
from lorasweep.screen import collapsed, means, results
from lorasweep.trial import FINAL_STATES, State, Trial, lacks_adapter

if TYPE_CHECKING:
    from lorasweep.app import Request

Row = Mapping[str, Any]
ROOT = Path(__file__).resolve().parents[2]  # where the Makefile is
DEFAULT = "outputs"  # record that `make ui` and its like take without being told


def final(settings: Trial) -> frozenset[State]:
    """States in which a trial is not run again, as the user wishes to resume.

    With ``resume=fresh`` that holds for what was started since the sweep began anew.
    """
    states = set(FINAL_STATES)
    if settings["resume"] == "only_missing":
        states |= {"failed", "oom"}
    if settings["pruner.name"] == "none":
        states.discard("pruned")  # it would be trained to its end now
    return frozenset(states)


def enough(settings: Trial) -> Callable[[Row], bool]:
    """Say which recorded runs (their rows, or their tags) need not be repeated."""
    states, counts = final(settings), packs.counts(settings)
    return lambda run: (
        run.get("lorasweep.state") in states and counts(run) and not lacks_adapter(run, settings)
    )


def ordered(request: "Request", rows: Mapping[str, Row]) -> list[Row]:
    """Best first by the first objective; what has no value comes last."""
    return sorted(rows.values(), key=request.objectives[0].loss)


def tell(
    request: "Request", rows: Sequence[Row], front: Sequence[bool], total: int, screen: Console
) -> int:
    """Show the table of a sweep and how many trials are done. Returns how many failed."""
    if rows:
        by = ", ".join(o.name for o in request.objectives)
        over_seeds = means(rows, request.varying)
        if over_seeds is not None:
            width.show(screen, over_seeds, ["F1 macro"])
        spare = ["trainable", "memory", "train s", "F1 macro"]
        width.show(screen, results(rows, by, front, request.varying), spare)
    one_class = sum(map(collapsed, rows))
    if one_class:
        many = f"{one_class} of them predict" if one_class > 1 else "1 of them predicts"
        screen.print(f"{many} one class for all items", markup=False)
    states = [row["lorasweep.state"] for row in rows]
    failed, diverged = states.count("failed") + states.count("oom"), states.count("diverged")
    seconds = time.time() - request.began
    parts = [f"{states.count('done')} of {total} trials done"]
    parts += [f"{diverged} diverged"] if diverged else []  # a result, and no failure
    text = ", ".join([*parts, f"{failed} failed", f"in {seconds:.0f} s"])
    screen.print(text, markup=False)
    return failed


def tell_next(settings: Trial, screen: Console) -> None:
    """Say how to look at the runs: in words that work from the folder one is in, as typed."""
    make = "make" if Path.cwd() == ROOT else f"make -C {shlex.quote(str(ROOT))}"
    uri = addresses.absolute(str(settings["tracking.uri"]))
    file = addresses.record_file(uri)
    if file is not None:
        place = file.parent if file.name == addresses.NAME else file
        uri = str(place.relative_to(ROOT) if place.is_relative_to(ROOT) else place)
    record = "" if uri == DEFAULT else " " + shlex.quote(f"RECORD={uri.replace('$', '$$')}")
    browse = f"with `{make} ui{record}`" if file is not None else f"at {uri}"
    told = f"compare the runs {browse}, draw them with `{make} figures{record}`"
    screen.print(told, markup=False, soft_wrap=True)  # a command is not cut


def shown(request: "Request", trials: Sequence[Trial], screen: Console) -> int | None:
    """Show a sweep whose record is whole. Returns its exit code, or None where it has to be run.

    That needs no more than to read the record. Whatever is unusual (a search, several
    objectives, a server, a run or a result that somebody left behind) is for those who write.
    """
    settings = request.settings
    file = addresses.record_file(str(settings["tracking.uri"]))
    if request.search is not None or len(request.objectives) > 1 or file is None:
        return None
    if settings["resume"] == "fresh":
        return None
    study, sampler = str(settings["name"]), request.sampler(trials)
    if not file.exists() or not glance.at_rest(file, study, sampler.identity):
        return None
    if any((Path(str(settings["output_dir"])) / study).glob("*/result.json")):
        return None
    keys = {t.key for t in trials}
    rows = glance.latest(glance.read(file) or [], keys, packs.counts(settings))
    if len(rows) < len(keys) or not all(map(enough(settings), rows.values())):
        return None
    heard = f"{sampler.total} trials, {sampler.total} already in the record"
    screen.print(f"study '{study}', sweep {sampler.identity}: {heard}", markup=False)
    failed = tell(request, ordered(request, rows), [False] * len(rows), sampler.total, screen)
    tell_next(settings, screen)
    return SOME_FAILED if failed else DONE
