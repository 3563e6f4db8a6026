"""Real processes that are killed with `kill -9`."""

import os
from contextlib import suppress
from pathlib import Path

import psutil
import torch


def same_threads() -> dict[str, str]:
    """The environment of a process at the same work: the number of threads is part of the fingerprint."""
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}


def kill_tree(process: psutil.Process) -> None:
    """Kill ``process`` and everything below it, children first."""
    with suppress(psutil.NoSuchProcess):  # ended since it was listed
        for one in (*process.children(recursive=True), process):
            with suppress(psutil.NoSuchProcess):
                one.kill()


def checkpoint_often(project: Path) -> None:
    """Have a copy of the project take a checkpoint at every row of the log."""
    code = project / "pipeline/training/checkpoints.py"
    code.write_text(code.read_text().replace("LEAST_SECONDS = 10", "LEAST_SECONDS = 0"))
