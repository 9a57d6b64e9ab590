"""The trial with its record, as a user of MLflow writes it into the function that is swept."""

from functools import cache

import mlflow
from mlflow.entities import Metric
from noop import curve, metrics, params, work


@cache
def open_record() -> None:
    """Choose the experiment, once a process (the address is in MLFLOW_TRACKING_URI)."""
    mlflow.set_experiment("bench")


def trial(rank: int, seed: int) -> float:
    """Run one trial and record it."""
    open_record()
    scores = metrics(rank, seed)
    with mlflow.start_run() as run:
        mlflow.log_params(params(rank, seed))
        work(rank, seed)
        # One call for the whole curve; a call a step, as most would have it, takes longer.
        points = [Metric("train/loss", value, 0, step) for step, value in curve(rank)]
        mlflow.MlflowClient().log_batch(run.info.run_id, metrics=points)
        mlflow.log_metrics(scores)
    return scores["eval/accuracy"]
