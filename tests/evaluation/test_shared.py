"""Processes take turns at batches; `tests/evaluation/test_killed.py` runs whole stages in two."""

import shutil
from pathlib import Path

import pytest

from pipeline.evaluation import shared
from pipeline.resume import ROWS, Scratch
from tests.stage_runner import EVALUATE, PERPLEXITY, run_as_module, set_params


def as_rank(rank: int, of: int, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": of, "MASTER_ADDR": "one", "MASTER_PORT": 9}
    for name, value in launched.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize("rank, own", [(0, [0, 3, 6]), (1, [1, 4]), (2, [2, 5])])
def test_a_process_computes_every_so_manyth_item_and_no_more(rank: int, own: list, monkeypatch: pytest.MonkeyPatch):
    """All processes meet once a turn, also those that have nothing to do in the last one."""
    as_rank(rank, 3, monkeypatch)
    met = []
    monkeypatch.setattr(shared, "gather_object", lambda mine: met.append(mine) or mine)
    assert list(shared.in_turns(lambda item: item * 10, range(7))) == [10 * item for item in own]
    assert len(met) == 3


def test_one_process_computes_an_item_when_it_is_asked_for():
    done = []
    results = shared.in_turns(lambda item: done.append(item) or -item, range(5))
    assert (next(results), next(results), done) == (0, -1, [0, 1])
    assert list(results) == [-2, -3, -4]


def test_what_a_copy_adds_is_not_kept(tmp_path: Path):
    kept = Scratch(tmp_path / ROWS)
    kept.add([{"a": 1}, {"a": 2}])
    copy = Scratch(tmp_path / ROWS, copy=True)
    copy.add([{"a": 3}])
    assert [list(some.rows) for some in (kept, copy)] == [[{"a": 1}, {"a": 2}], [{"a": 1}, {"a": 2}, {"a": 3}]]
    assert copy.folder == tmp_path and [path.name for path in tmp_path.iterdir()] == [ROWS]
    assert len(Scratch(tmp_path / ROWS).rows) == 2


@pytest.mark.slow
@pytest.mark.parametrize("stage", [EVALUATE, PERPLEXITY, "chain_of_thought"])
def test_the_shipped_launcher_gives_the_bytes_of_one_process(stage: str, finished: Path, tmp_path: Path):
    name = stage.split()[0]
    one, two = (shutil.copytree(finished, tmp_path / number) for number in ("one", "two"))
    for folder, launcher in ((one, "single"), (two, "launchers/cpus.yaml")):
        set_params(folder, {f"{name}.batch_size": 1, f"{name}.launcher": launcher})
        shutil.rmtree(folder / "results" / name)
        done = run_as_module(folder, stage)
        assert done.code == 0, done.stderr
    assert outputs(two, name) == outputs(one, name) != {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "what, told",
    [
        ("from pipeline.errors import UserError; raise UserError('alone')", "alone"),
        ("import os; os.kill(os.getpid(), 9)", "process 1 was ended by signal 9: `dvc repro` resumes the run"),
    ],
)
def test_one_process_that_fails_ends_all_with_one_line(what: str, told: str, finished: Path, tmp_path: Path):
    """The second process, at its second batch."""
    folder = shutil.copytree(finished, tmp_path / "project")
    set_params(folder, {"evaluate.batch_size": 1, "evaluate.launcher": "launchers/cpus.yaml"})
    shutil.rmtree(folder / "results/evaluate")
    with (folder / "pipeline/evaluation/shared.py").open("a") as code:
        code.write("\n\n_gather, _turns = gather_object, []\n\n\ndef gather_object(mine):\n    _turns.append(mine)\n")
        code.write(f"    if rank() == 1 and len(_turns) == 2:\n        {what}\n    return _gather(mine)\n")
    done = run_as_module(folder, EVALUATE)
    lines = [line for line in done.complaint if line.startswith(("error:", "Traceback"))]  # not the main one's progress
    assert (done.code, lines) == (1, [f"error: {told}"])
    assert outputs(folder, "evaluate") == {}
    (rows,) = folder.glob(".resume/evaluate/*/*/rows.jsonl")
    assert len(rows.read_text().splitlines()) == 2  # of the first turn


def outputs(folder: Path, name: str) -> dict[Path, bytes]:
    files = (path for path in (folder / "results" / name).rglob("*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}
