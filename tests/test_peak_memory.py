"""Memory stays flat as a corpus grows tenfold: texts, tokens and questions are on the disk, not in memory."""

import os
import subprocess
import sys

import pytest

from tests.stage_runner import ENVIRONMENT, ROOT


def peak(stage: str, count: int) -> int:
    """MB of a process of its own."""
    run = [sys.executable, "-m", "tests.peak_memory", stage, str(count)]
    environment = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(run, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return int(done.stdout)


# held in memory, the texts of 40,000 documents would be 80 MB; questions, which once were, took 42 MB where they are
# evaluated and 68 with samples of a chain of thought (measured; 40 of those are what a first batch of 2,000 rows takes)
@pytest.mark.parametrize(
    "stage, count, more", [("tokenize", 4000, 60), ("evaluate", 500, 25), ("chain_of_thought", 500, 54)]
)
def test_ten_times_as_much_takes_no_more_memory(stage: str, count: int, more: int):
    assert peak(stage, 10 * count) - peak(stage, count) < more
