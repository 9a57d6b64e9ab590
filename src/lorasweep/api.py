"""The door for notebooks and scripts: the command line's words in, the tidy table out."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import time

import pandas as pd
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from lorasweep import cli
from lorasweep.errors import RecordError, RequestError
from lorasweep.record import reading
from lorasweep.request.request import request_of
from lorasweep.results import tidy
from lorasweep.running.sweep import carry_out
from lorasweep.space import schema, words
from lorasweep.space.composition import Composer, describe


def sweep(*overrides: str) -> pd.DataFrame:
    """Run the sweep that ``python sweep.py -m *overrides`` runs, and return its trials.

        sweep("method=lora,qlora", "lora.r=1,2,4,...,512")
        sweep("study=patil2025_rank", "model=smollm2_135m")

    Trials run in worker processes, so that this one keeps its memory and touches no GPU; a
    script needs no ``if __name__ == "__main__"``. Trials that the record has are not run again.

    Args:
        overrides: what one would type, a string a word, without quotes for the shell.

    Returns:
        One row a trial of this sweep, with the columns of ``results/trials.parquet``. Failed
        trials have a row too (``state``). After ``plan=table`` or ``plan=json``, which run
        nothing, no rows.

    Raises:
        RequestError: the request was wrong; nothing has been started.
        RecordError: the record or the disk cannot be used.
        KeyboardInterrupt: the user stopped it; the same call goes on from there.
    """
    began = time()
    schema.register()
    try:
        with _composer() as composer:
            read = words.readable(overrides)
            params = cli.study_params(read, composer)
            request = request_of(read, params, composer)
            typed = ", ".join(f'"{word}"' for word in overrides)
            outcome = carry_out(replace(request, command=f"sweep({typed})", began=began))
    except (HydraException, OmegaConfBaseException) as error:
        raise RequestError([describe(error)]) from error
    except OSError as error:
        message = f"{error.filename or 'disk'}: {error.strerror or error}"
        raise RecordError(message) from error
    if outcome.interrupted:
        raise KeyboardInterrupt
    return _table(str(request.settings["tracking.uri"]), set(outcome.keys))


def _table(uri: str, keys: set[str]) -> pd.DataFrame:
    """Return these trials of the record."""
    rows = reading.read(uri) if keys else []  # a plan alone makes no record
    return tidy.tidy(row for row in rows if row["lorasweep.key"] in keys)


@contextmanager
def _composer() -> Iterator[Composer]:
    """Compose configurations, in an application of Hydra's too."""
    hydra = GlobalHydra.instance()
    outer, hydra.hydra = hydra.hydra, None
    try:
        with initialize_config_dir(str(cli.CONF), version_base="1.3"):
            yield Composer(GlobalHydra.instance().config_loader())
    finally:
        GlobalHydra.instance().hydra = outer
