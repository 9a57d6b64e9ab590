"""Ray Tune over the grid, two CPUs, one a trial.

ray_app.py RANKS SEEDS FOLDER
"""

import sys
from typing import Any

import ray
from ray import tune
from recorded import open_record, trial


def trainable(config: dict[str, Any]) -> dict[str, float]:
    """One trial."""
    return {"score": trial(config["rank"], config["seed"])}


if __name__ == "__main__":
    ranks, seeds, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    open_record()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    space = {
        "rank": tune.grid_search(list(range(1, ranks + 1))),
        "seed": tune.grid_search(list(range(seeds))),
    }
    results = tune.Tuner(
        trainable,
        param_space=space,
        # Not its default: a process a trial would import MLflow 200 times.
        tune_config=tune.TuneConfig(metric="score", mode="max", reuse_actors=True),
        run_config=tune.RunConfig(storage_path=folder, name="bench", verbose=0),
    ).fit()
    print(len(results), "trials,", results.num_errors, "errors")
    sys.exit(bool(results.num_errors))
