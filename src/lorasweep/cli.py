"""The command line around Hydra: errors as sentences, all at once, with an exit code that tells."""

import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from lorasweep import errors
from lorasweep.running import signals
from lorasweep.space import checks, grammar, hydra_cache, schema, words
from lorasweep.space.composition import Composed, Composer, describe

CONF = Path(__file__).resolve().parents[2] / "conf"
_HYDRAS_OWN = ("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i")
_OURS = ("-m", "--multirun")  # flags that leave the rest to be overrides
_COMPLETION = ("--shell-completion", "-sc")
_STUDY = ("study=", "+study=")
# What composed the request when its words were checked: this process carries out no other.
_checked: list[Composer] = []


def main(hydra_main: Callable[[], Any], arguments: Sequence[str]) -> int:
    """Run Hydra's main and return the exit code.

    Args:
        hydra_main: the function that ``hydra.main`` decorated; reads ``sys.argv``.
        arguments: what was typed, without the program's name.
    """
    signals.attend()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # one that is told to be ASCII has no α
            stream.reconfigure(errors="replace")

    def act() -> int:
        schema.register()
        hydra_cache.hasten()
        typed = sys.argv[1:] = words.readable(arguments)
        if not any(a.split("=")[0] in (*_HYDRAS_OWN, *_COMPLETION) for a in typed):
            if all(a in _OURS for a in typed if a.startswith("-")):
                code = refuse_words(typed)
                if code is not None:
                    return code
            # Hydra would print its own traceback; with this it lets errors through to us.
            os.environ["HYDRA_FULL_ERROR"] = "1"
        hydra_main()
        return errors.DONE

    return guarded(act)


def guarded(act: Callable[[], int]) -> int:
    """Do something; what goes wrong is printed as sentences. Returns the exit code."""
    try:
        return act()
    except KeyboardInterrupt:
        return errors.STOPPED
    except errors.LorasweepError as error:
        return explain(error)
    except (HydraException, OmegaConfBaseException) as error:
        return explain(errors.RequestError([describe(error)]))
    except RuntimeError as error:
        if "home directory" not in str(error):
            raise
        reason = "there is no home folder: set HOME, or LORASWEEP_CACHE to a folder for the cache"
        return explain(errors.RequestError([reason]))
    except OSError as error:
        return explain(errors.RecordError(f"{error.filename or 'disk'}: {error.strerror or error}"))


def explain(error: errors.LorasweepError) -> int:
    """Print what was wrong, a line a problem, and return the exit code."""
    problems = error.problems if isinstance(error, errors.RequestError) else [str(error)]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if isinstance(error, errors.RequestError):
        print("nothing was started", file=sys.stderr)
    return error.exit_code


def study_params(overrides: Sequence[str], composer: Composer) -> dict[str, Any]:
    """Return what the study named on the command line sweeps; nothing for an unknown one."""
    # All that is fixed will be composed anyway; where it is refused, the study alone says it too.
    for fixed in (grammar.fixed(overrides), [o for o in overrides if o.startswith(_STUDY)]):
        try:
            return dict(composer(fixed).hydra.sweeper.params)
        except errors.RequestError:
            continue
    return {}


def composer_for(loader: ConfigLoader, hydra_overrides: Sequence[str]) -> Composer:
    """Return what composes configurations under overrides of Hydra's own settings.

    Without any it is the one that checked the words of the request, which has composed some.
    """
    others = [o for o in hydra_overrides if not o.startswith("hydra.mode=")]
    return Composer(loader, others) if others or not _checked else _checked[0]


def refuse_words(arguments: Sequence[str]) -> int | None:
    """Check the words of the request before Hydra does, so that all problems come at once.

    Returns:
        The exit code where only the plan of a sweep was wanted, which needs no more of Hydra.

    Raises:
        RequestError: a word is wrong; holds the problems of the rest of the request too.
    """
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from lorasweep.request import request
    from lorasweep.running import sweep

    overrides = [a for a in arguments if not a.startswith("-")]
    multirun = any(a in _OURS for a in arguments)
    problems: list[str] = []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composer = Composer(GlobalHydra.instance().config_loader())
        _checked[:] = [composer]
        params = study_params(overrides, composer)
        read = grammar.read(overrides, params, composer, problems)
        if read.axes and not multirun and not any(f.startswith(_STUDY) for f in read.fixed):
            keys = ", ".join(k for axis in read.axes for k in axis.keys)
            problems.append(f"{keys}: a list of values needs -m (python sweep.py -m …)")
        if not problems:  # before Hydra makes a folder of that name
            problems += checks.name_problems(composer(read.fixed).flat)
        if not problems and _plans_only(composer(read.fixed), overrides, multirun):
            return sweep.run(overrides, params, composer)
        if not problems:
            return None
        try:
            request.request_of(overrides, params, composer)
        except errors.RequestError as error:
            problems += error.problems
    raise errors.RequestError(problems)


def _plans_only(found: Composed, overrides: Sequence[str], multirun: bool) -> bool:
    """Whether Hydra, with nothing changed about it, would only have our sweeper show a plan."""
    mode = found.hydra.mode or (RunMode.MULTIRUN if multirun else RunMode.RUN)
    return (
        found.flat["plan"] in ("table", "json")
        and mode == RunMode.MULTIRUN
        and found.hydra.sweeper._target_ == "hydra_plugins.lorasweep_sweeper.LorasweepSweeper"
        and not found.hydra.callbacks
        and not any(o.lstrip("+~").startswith("hydra") for o in overrides)
    )
