"""How long the plan of 10,000 trials takes, as a user waits for it and inside.

    python bench/plan.py

Types a space of 10,000 trials with ``plan=json``, several times, and prints the seconds of each
whole process beside those of one that prints ``--help``, which is what Python, Hydra and the
configuration cost by themselves.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SPACE = (
    "-m", "model=llama3_8b,llama3_2_1b", "task=yelp5", "method=lora,qlora",
    "target=attention,all_linear", "lora.r=1,2,4,...,512", "lora.alpha=r,2r,3r,4r,5r",
    "train.learning_rate=1e-5,2e-5,5e-5,1e-4,2e-4", "seed=range(0,5)", "device=a100_40gb",
)  # fmt: skip
TIMES = 5


def seconds(*words: str) -> tuple[float, str]:
    """Wall seconds and output of one call."""
    start = time.perf_counter()
    command = [sys.executable, str(ROOT / "sweep.py"), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return time.perf_counter() - start, done.stdout


def main() -> None:
    """Print the table."""
    helps = [seconds("--help")[0] for _ in range(TIMES)]
    plans = [seconds(*SPACE, "plan=json") for _ in range(TIMES)]
    trials = len(json.loads(plans[0][1])["trials"])
    load = os.getloadavg()[0]
    print(f"{trials} trials; load of the machine {load:.1f} on {os.cpu_count()} cores")
    for name, found in (("--help", helps), ("plan=json", [s for s, _ in plans])):
        print(f"{name:10} median {statistics.median(found):.2f} s, least {min(found):.2f} s")


if __name__ == "__main__":
    main()
