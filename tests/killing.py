"""Real processes that are killed with `kill -9`, some of them after they have kept some rows."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import psutil
import torch

from tests.stage_runner import ROOT

STOPPING = """
import json, sys, time
from pathlib import Path
from pipeline import params
from {module} import {function}
from pipeline.resume import Scratch
add, left = Scratch.add, {adds}
def add_and_stop(self, rows):
    global left
    add(self, rows)
    left -= 1
    if not left:
        print("stopped", flush=True)
        time.sleep(600)
Scratch.add = add_and_stop
{function}(params.{params}(**json.loads(sys.argv[1])), *map(Path, sys.argv[2:]))
"""


def same_threads() -> dict[str, str]:
    """The environment of a process at the same work: the number of threads is part of the fingerprint."""
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}


@contextmanager
def stopped(function: str, params: object, paths: list[Path], adds: int) -> Iterator[subprocess.Popen]:
    """A process that calls ``function`` (module.name) and waits after ``adds`` calls of `Scratch.add`.

    It is killed when the block ends.
    """
    module, _, name = function.rpartition(".")
    code = STOPPING.format(module=module, function=name, params=type(params).__name__, adds=adds)
    process = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(asdict(params)), *map(str, paths)],
        cwd=ROOT,
        env=same_threads(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout.readline() == "stopped\n"
        yield process
    finally:
        process.kill()
        process.wait()


def run_and_kill(function: str, params: object, paths: list[Path], adds: int) -> None:
    """As `stopped`, killed as soon as it waits."""
    with stopped(function, params, paths, adds):
        pass


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
