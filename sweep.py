"""lorasweep's command line: ``python sweep.py -m method=lora,qlora lora.r=1,2,4,...,512``."""

import sys

import hydra
from omegaconf import DictConfig

from lorasweep import cli


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def run(config: DictConfig) -> None:
    """Run one trial in this process (no ``-m``)."""
    from lorasweep.running import sweep

    # Exits itself: Hydra would write a line of its own about an error that passes through it.
    sys.exit(cli.guarded(lambda: sweep.run_one(config)))


if __name__ == "__main__":
    sys.exit(cli.main(run, sys.argv[1:]))
