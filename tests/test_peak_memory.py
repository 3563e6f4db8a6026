"""Memory stays flat while the data grow tenfold: texts, tokens and questions stay on the disk."""

import os
import subprocess
import sys

import pytest

from tests.stage_runner import ENVIRONMENT, ROOT


def peak(stage: str, count: int) -> int:
    """The peak memory of a new process, in MB."""
    run = [sys.executable, "-m", "tests.peak_memory", stage, str(count)]
    environment = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(run, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return int(done.stdout)


# in memory, the texts of 40,000 documents would take 80 MB; questions, which once were in memory, took 42 MB in
# evaluation and 68 MB with samples of a chain of thought (measured; a first batch of 2,000 rows takes 40 MB of these)
@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, count, more", [("tokenize", 4000, 60), ("evaluate", 500, 25), ("chain_of_thought", 500, 54)]
)
def test_ten_times_as_much_takes_no_more_memory(stage: str, count: int, more: int):
    assert peak(stage, 10 * count) - peak(stage, count) < more
