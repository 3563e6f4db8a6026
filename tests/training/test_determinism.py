"""The same seed gives the same bytes, whatever else differs: hash seed, locale, time zone, order of files."""

import json
import os
import random
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.stage_runner import ENVIRONMENT, EVALUATE, PERPLEXITY, ROOT, TRAIN, copy_project, run_stages
from tests.test_stages import written

pytestmark = pytest.mark.slow
ELSEWHERE = {"PYTHONHASHSEED": "12345", "LC_ALL": "C", "LANG": "C", "TZ": "Asia/Kathmandu"}
RUN = ("corpus", "tasks", "tokenize", "base_model", TRAIN, EVALUATE, PERPLEXITY)


def run_elsewhere(folder: Path, stages: tuple[str, ...], environment: dict[str, str]) -> None:
    code = f"from tests.stage_runner import *; run_stages(Path({str(folder)!r}), {stages})"
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # part of a run's fingerprint
    environment = {**os.environ, **ENVIRONMENT, **threads, **environment}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 0, done.stderr


def same(folder: Path, finished: Path, count: int) -> None:
    """Check that all that stages have written, at least ``count`` files, is the same."""
    found, expected = written(folder), written(finished)
    assert len(found) >= count
    assert [name for name in found if found[name] != expected[name]] == []


def test_hash_seed_locale_and_time_zone_do_not_matter(finished: Path, tmp_path: Path):
    folder = copy_project(tmp_path / "project")
    run_elsewhere(folder, RUN, ELSEWHERE)
    same(folder, finished, count=20)


def test_threads_change_rounding_at_most(finished: Path, tmp_path: Path):
    folder = shutil.copytree(finished, tmp_path / "project")
    run_elsewhere(folder, (TRAIN, EVALUATE), {"OMP_NUM_THREADS": "2"})
    for stage in ("train", "evaluate"):
        metrics = (
            json.loads((one / f"results/{stage}/quiet_star-1/metrics.json").read_text()) for one in (folder, finished)
        )
        pd.testing.assert_frame_equal(*map(pd.json_normalize, metrics), rtol=1e-5)


def test_the_order_of_files_does_not_matter(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scandir, listdir = os.scandir, os.listdir

    class Entries(chain):
        def __enter__(self) -> "Entries":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        close = __exit__

    def shuffled(*args: object) -> Entries:
        with scandir(*args) as found:
            some = list(found)
        return Entries(random.Random(1).sample(some, len(some)))

    folder = copy_project(tmp_path / "project")
    monkeypatch.setattr(os, "scandir", shuffled)
    monkeypatch.setattr(os, "listdir", lambda *args: listdir(*args)[::-1])
    run_stages(folder)
    monkeypatch.undo()
    same(folder, finished, count=50)
