"""A sweep of which nothing is left to run: answered from the record alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from lorasweep import addresses
from lorasweep.errors import DONE, SOME_FAILED
from lorasweep.planning import packs
from lorasweep.record import latest, sqlite_reader
from lorasweep.running.ending import ordered, tell, tell_next
from lorasweep.running.resume import enough
from lorasweep.trial import naming
from lorasweep.trial.trial import Trial

if TYPE_CHECKING:
    from lorasweep.request.request import Request


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
    if not file.exists() or not sqlite_reader.at_rest(file, study, sampler.identity):
        return None
    if any((Path(str(settings["output_dir"])) / study).glob("*/result.json")):
        return None
    keys = {t.key for t in trials}
    rows = latest.latest(sqlite_reader.read(file) or [], keys, packs.counts(settings))
    if len(rows) < len(keys) or not all(map(enough(settings), rows.values())):
        return None
    heard = f"{naming.counted(sampler.total, 'trial')}, {sampler.total} already in the record"
    screen.print(f"study '{study}', sweep {sampler.identity}: {heard}", markup=False)
    failed = tell(request, ordered(request, rows), [False] * len(rows), sampler.total, screen)
    tell_next(settings, screen)
    return SOME_FAILED if failed else DONE
