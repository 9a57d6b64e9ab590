"""Hydra with its basic launcher, with joblib's, or with the Optuna sweeper on joblib's."""

from dataclasses import dataclass

import hydra
from hydra.core.config_store import ConfigStore
from recorded import open_record, trial


@dataclass
class Config:
    """What is swept."""

    rank: int = 1
    seed: int = 0


ConfigStore.instance().store(name="bench", node=Config)


@hydra.main(version_base="1.3", config_path=None, config_name="bench")
def run(config: Config) -> float:
    """One trial."""
    return trial(config.rank, config.seed)


if __name__ == "__main__":
    open_record()  # the database is made once, before there are several who would
    run()
