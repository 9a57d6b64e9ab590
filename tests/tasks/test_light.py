"""A refused typo must answer in about a second, so nothing heavy is loaded with the package."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "datasets", "sklearn", "pandas", "pyarrow", "numpy"}


@pytest.mark.parametrize(
    "code",
    [
        "import lorasweep.tasks.sources",
        # a csv is checked with the standard library alone
        "from lorasweep.tasks import sources; import collections; sources.problems("
        "collections.defaultdict(lambda: None, source='files', train_file='no.csv', "
        "eval_fraction=0.5))",
    ],
)
def test_no_heavy_imports(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert HEAVY.isdisjoint(done.stdout.split())
