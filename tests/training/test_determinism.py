"""The same seed gives the same bytes, whatever else differs: hash seed, locale, time zone, order of files."""

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from tests.stage_runner import STAGES, copy_project, run_as_module, run_stage

ELSEWHERE = {"PYTHONHASHSEED": "12345", "LC_ALL": "C", "LANG": "C", "TZ": "Asia/Kathmandu"}
RUN = ("corpus", "tasks", "tokenize", "base_model", "train", "evaluate", "perplexity")


def outputs(folder: Path) -> dict[str, bytes]:
    """All that stages have written but the one table with times in it."""
    files = [path for out in ("data", "models", "results") for path in sorted((folder / out).rglob("*"))]
    return {str(f.relative_to(folder)): f.read_bytes() for f in files if f.is_file() and f.name != "speed.csv"}


def shuffled() -> None:
    """Folders are listed in another order, as another file system may do it."""
    scandir, listdir = os.scandir, os.listdir

    class Entries:
        def __init__(self, *args: object):
            with scandir(*args) as found:
                self._entries = random.Random(1).sample(some := list(found), len(some))

        def __enter__(self) -> "Entries":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __iter__(self) -> Iterator[os.DirEntry]:
            return iter(self._entries)

        def __next__(self) -> os.DirEntry:
            return self._entries.pop() if self._entries else next(iter(()))

        def close(self) -> None:
            pass

    os.scandir, os.listdir = Entries, lambda *args: listdir(*args)[::-1]


def same(folder: Path, finished: Path, written: int) -> None:
    found, expected = outputs(folder), outputs(finished)
    assert len(found) >= written
    assert [name for name in found if found[name] != expected[name]] == []


def test_hash_seed_locale_and_time_zone_do_not_matter(finished: Path, tmp_path: Path):
    folder = copy_project(tmp_path / "project")
    for stage in RUN:
        done = run_as_module(folder, stage, ELSEWHERE)
        assert done.code == 0, done.stderr
    same(folder, finished, written=20)


@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_threads_change_rounding_at_most(stage: str, finished: Path, tmp_path: Path):
    folder = shutil.copytree(finished, tmp_path / "project")
    done = run_as_module(folder, stage, {"OMP_NUM_THREADS": "2"})
    assert done.code == 0, done.stderr
    metrics = (json.loads((one / f"results/{stage}/metrics.json").read_text()) for one in (folder, finished))
    pd.testing.assert_frame_equal(*map(pd.json_normalize, metrics), rtol=1e-5)


def test_the_order_of_files_does_not_matter(finished: Path, tmp_path: Path):
    folder = copy_project(tmp_path / "project")
    for stage in STAGES:
        done = run_stage(folder, stage, shuffled)
        assert done.code == 0, done.stderr
    same(folder, finished, written=50)
