"""Training that goes wrong is told of once, at the step where it does; training that goes well is not."""

import math
from pathlib import Path

import pandas as pd
import pytest

from pipeline.training.warnings import HARM, WINDOW, warnings

ROOT = Path(__file__).parents[2]
STEPS = 60
WELL = {"thought_entropy": 2.0, "reward": 0.03, "mixing_weight": 0.1}
AWAY = "predictions are pushed away from what thoughts say"
WRONG = [
    ("thought_entropy", 0.1, "thoughts have become nearly always the same"),
    ("thought_entropy", 9.0, "thoughts have become noise"),
    ("reward", -1.5, "thoughts make the text after them less likely"),
    ("mixing_weight", -0.5, AWAY),
    ("mixing_weight", 1.0, "predictions without thoughts no longer count"),
]


def log(column: str | None = None, value: float = 0.0, since: int = 30) -> pd.DataFrame:
    """A log in which, from a step on, a column has this value."""
    table = pd.DataFrame({"step": range(1, STEPS + 1)} | {name: [good] * STEPS for name, good in WELL.items()})
    if column is not None:
        table.loc[table["step"] >= since, column] = value
    return table


def heldout(*losses: float) -> pd.DataFrame:
    return pd.DataFrame({"step": range(0, 30 * len(losses), 30), "base_loss": losses})


GOOD = heldout(3.0, 2.9)


def test_nothing_is_told_of_training_that_goes_well_but_for_one_step():
    table = log()
    table.loc[40, ["reward", "mixing_weight"]] = -0.5
    assert list(warnings(table, GOOD)) == []


@pytest.mark.parametrize("column, value, told", WRONG)
def test_what_goes_wrong_is_told_once(column: str, value: float, told: str):
    (warning,) = warnings(log(column, value), GOOD)
    assert told in warning and column.replace("_", " ") in warning
    step = int(warning.split(":")[0].removeprefix("step "))
    assert 30 <= step < 30 + WINDOW
    mean = log(column, value)[column][step - WINDOW : step].mean()
    assert f"{mean:.3g} over the last {WINDOW} steps, {WELL[column]:.3g} over the first" in warning


def test_a_mixing_weight_that_is_always_one_is_the_methods_own():
    assert list(warnings(log("mixing_weight", 1.0, since=0), GOOD)) == []


def test_a_method_without_a_column_is_not_judged_by_it():
    table = log("reward", -1.0)
    table["thought_entropy"] = math.nan  # as pandas reads a blank column
    assert len(list(warnings(table, GOOD))) == 1


@pytest.mark.parametrize("column, value, told", WRONG)
def test_steps_in_which_nothing_thinks_hide_nothing(column: str, value: float, told: str):
    table = log(column, value)
    table.loc[table["step"] % 3 == 1, list(WELL)] = math.nan
    assert [told in line for line in warnings(table, GOOD)] == [True]


def test_harm_is_told_once_where_it_is_more_than_is_allowed():
    """Against the model before training, whatever was gained meanwhile."""
    assert list(warnings(log(), heldout(3.0, 2.5, 2.9, 3.0 + HARM))) == []
    (warning,) = warnings(log(), heldout(3.0, 2.9, 3.0061, 3.2))
    assert warning.startswith("step 60: training harms the model") and "3.0061, 3.0000 before" in warning


@pytest.mark.parametrize(("run", "told"), [("quiet_star-1", []), ("pause-1", [AWAY]), ("no_thought-1", [])])
def test_the_default_run_warns_of_nothing_but_what_its_page_says(run: str, told: list[str]):
    """docs/results.md says why: at most positions there is nothing to think about."""
    folder = ROOT / "results/train" / run
    found = list(warnings(*(pd.read_csv(folder / name) for name in ("steps.csv", "heldout.csv"))))
    assert [line.split(": ")[1] for line in found] == told
