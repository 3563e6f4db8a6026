"""10,000 broken parameter and task files, and some hundred grids and presets: each is read, or refused in one line."""

import random
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from pipeline import params
from pipeline.ablations.grid import read_grid
from pipeline.data.tasks import ask
from pipeline.data.tasks.spec import read_task
from pipeline.errors import UserError
from pipeline.preset import options as preset
from tests.bad_input.mutations import VALUES, mutated
from tests.local_hub import commonsense_qa_rows, gsm8k_rows

ROOT = Path(__file__).parents[2]
TASKS = sorted((ROOT / "tasks").rglob("*.yaml"))
ROWS = [
    *gsm8k_rows(2),
    *commonsense_qa_rows(2),
    {"question": None, "answer": float("nan"), "choices": [1, None], "answerKey": 10**30},
]
A_TEST = 500  # cases


def refusals(read: Callable[[], object], cases: range, write: Callable[[random.Random], bytes]) -> int:
    """How many of the ``cases`` are refused, each in one line; any other end of one fails the test and shows it."""
    refused = 0
    for case in cases:
        content = write(random.Random(case))
        try:
            read()
        except UserError as error:
            refused += 1
            assert str(error).isprintable() and str(error), f"case {case}: {str(error)!r}"
        except BaseException as error:
            raise AssertionError(f"case {case} ends with {error!r}: {content[:3000]!r}") from error
    return refused


@pytest.mark.parametrize("start", range(0, 5000, A_TEST))
def test_parameters(start: int, tmp_path: Path):
    path, shipped = tmp_path / "params.yaml", (ROOT / "params.yaml").read_bytes()

    def write(rng: random.Random) -> bytes:
        path.write_bytes(mutated(shipped, rng))
        return path.read_bytes()

    refused = refusals(lambda: params.load(path), range(start, start + A_TEST), write)
    assert A_TEST / 2 < refused < A_TEST  # a comment may hold anything


@pytest.mark.parametrize("start", range(0, 5000, A_TEST))
def test_task_files(start: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "task.yaml"
    monkeypatch.setattr(ask, "rows", lambda source: iter(ROWS))

    def write(rng: random.Random) -> bytes:
        path.write_bytes(mutated(rng.choice(TASKS).read_bytes(), rng))
        rng.shuffle(ROWS)
        return path.read_bytes()

    def read() -> None:
        list(islice(ask.questions(read_task(path), None), len(ROWS)))

    assert refusals(read, range(start, start + A_TEST), write) > A_TEST / 2
    assert refusals(lambda: read_task(path), range(start, start + 50), write) < 50


def test_grids(tmp_path: Path):
    path, shipped = tmp_path / "grid.yaml", (ROOT / "ablations.yaml").read_bytes()

    def write(rng: random.Random) -> bytes:
        path.write_bytes(mutated(shipped, rng))
        return path.read_bytes()

    assert 100 < refusals(lambda: read_grid(path), range(300), write) < 300


def test_presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    presets = shutil.copytree(preset.PRESETS, tmp_path / "presets")
    monkeypatch.setattr(preset, "PRESETS", presets)
    monkeypatch.chdir(ROOT)
    path = presets / "scale/real.yaml"
    shipped = path.read_bytes()

    def write(rng: random.Random) -> bytes:
        path.write_bytes(mutated(shipped, rng))
        return path.read_bytes()

    assert 100 < refusals(lambda: preset.options(["scale=real"]), range(200), write) < 200


def test_preset_words(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    names = ("train.steps", "tasks.files", "base_model.path", "train", "", ".", "scale", "corpus.hub.train.rows")
    word: list[str] = []

    def write(rng: random.Random) -> bytes:
        word[:] = [f"{rng.choice(names)}{rng.choice(('=', '', '==', '=='))}{rng.choice(VALUES)}"]
        return word[0].encode()

    assert 50 < refusals(lambda: preset.options(["scale=smoke", *word]), range(200), write) < 200
