"""Optuna's study in a journal file, shared by two processes, as its documentation advises.

optuna_app.py TRIALS SEEDS FOLDER
"""

import multiprocessing
import os
import sys

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import MaxTrialsCallback
from optuna.trial import Trial, TrialState
from recorded import open_record, trial

WORKERS, RANKS = 2, 10


def objective(suggested: Trial, seeds: int) -> float:
    """One trial."""
    return trial(suggested.suggest_int("rank", 1, RANKS), suggested.suggest_int("seed", 0, seeds))


def optimize(trials: int, seeds: int, folder: str) -> None:
    """A worker's share of the study."""
    storage = JournalStorage(JournalFileBackend(f"{folder}/journal.log"))
    sampler = optuna.samplers.RandomSampler(seed=os.getpid())
    study = optuna.load_study(study_name="bench", storage=storage, sampler=sampler)
    if os.environ.get("BENCH_SLEEP"):  # who is early takes more; costs a look at all trials
        ended = (TrialState.COMPLETE, TrialState.RUNNING)
        callbacks, share = [MaxTrialsCallback(trials, states=ended)], None
    else:
        callbacks, share = [], trials // WORKERS
    study.optimize(lambda t: objective(t, seeds - 1), n_trials=share, callbacks=callbacks)


if __name__ == "__main__":
    trials, seeds, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    open_record()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(f"{folder}/journal.log"))
    optuna.create_study(study_name="bench", storage=storage, direction="maximize")
    start = multiprocessing.get_context("spawn").Process
    processes = [start(target=optimize, args=(trials, seeds, folder)) for _ in range(WORKERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))
