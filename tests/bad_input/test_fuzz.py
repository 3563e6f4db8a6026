"""Broken parameter and task files, grids and presets, each read or refused in one line.

400 of them in the fast tier, 10,000 more in the slow one.
"""

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
SHARES = [range(200), *(pytest.param(range(i, i + 1000), marks=pytest.mark.slow) for i in range(200, 5200, 1000))]


def refusals(read: Callable[[], object], cases: range, write: Callable[[random.Random], bytes]) -> int:
    """Count the ``cases`` that are refused, each in one line. A case that ends in another way fails the test."""
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


def mutations(path: Path, *shipped: bytes) -> Callable[[random.Random], bytes]:
    """A function that writes one of these texts to ``path`` with some changes."""

    def write(rng: random.Random) -> bytes:
        path.write_bytes(mutated(rng.choice(shipped), rng))
        return path.read_bytes()

    return write


@pytest.mark.parametrize("cases", SHARES)
def test_parameters(cases: range, tmp_path: Path):
    path = tmp_path / "params.yaml"
    refused = refusals(lambda: params.load(path), cases, mutations(path, (ROOT / "params.yaml").read_bytes()))
    assert len(cases) / 2 < refused < len(cases)  # a comment may hold anything


@pytest.mark.parametrize("cases", SHARES)
def test_task_files(cases: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "task.yaml"
    write = mutations(path, *(task.read_bytes() for task in TASKS))

    def read() -> None:
        list(islice(ask.questions(read_task(path), None), len(ROWS)))

    order = random.Random(cases.start)
    monkeypatch.setattr(ask, "rows", lambda source: iter(order.sample(ROWS, len(ROWS))))
    assert refusals(read, cases, write) > len(cases) / 2
    assert refusals(lambda: read_task(path), cases[:50], write) < 50


@pytest.mark.slow
def test_grids(tmp_path: Path):
    path = tmp_path / "grid.yaml"
    write = mutations(path, (ROOT / "ablations.yaml").read_bytes())
    assert 100 < refusals(lambda: read_grid(path), range(300), write) < 300


@pytest.mark.slow
def test_presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    presets = shutil.copytree(preset.PRESETS, tmp_path / "presets")
    monkeypatch.setattr(preset, "PRESETS", presets)
    monkeypatch.chdir(ROOT)
    write = mutations(presets / "scale/real.yaml", (presets / "scale/real.yaml").read_bytes())
    assert 100 < refusals(lambda: preset.options(["scale=real"]), range(200), write) < 200


@pytest.mark.slow
def test_preset_words(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    names = ("train.steps", "tasks.files", "base_model.path", "train", "", ".", "scale", "corpus.hub.train.rows")
    word: list[str] = []

    def write(rng: random.Random) -> bytes:
        word[:] = [f"{rng.choice(names)}{rng.choice(('=', '', '==', '=='))}{rng.choice(VALUES)}"]
        return word[0].encode()

    assert 50 < refusals(lambda: preset.options(["scale=smoke", *word]), range(200), write) < 200
