"""For tests that kill processes: the same threads again, and a checkpoint at every step."""

import os
from pathlib import Path

import torch


def same_threads() -> dict[str, str]:
    """The environment of a process at the same work: the number of threads is part of the fingerprint."""
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}


def checkpoint_often(project: Path) -> None:
    """Have a copy of the project take a checkpoint at every row of the log."""
    code = project / "pipeline/training/checkpoints.py"
    code.write_text(code.read_text().replace("LEAST_SECONDS = 10", "LEAST_SECONDS = 0"))
