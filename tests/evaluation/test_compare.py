"""The comparison with baselines: against numbers worked out by hand, and against the statistics' own functions."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.errors import UserError
from pipeline.evaluation.compare import write_compare
from pipeline.evaluation.statistics import interval, interval_over_seeds, mcnemar, share_interval
from pipeline.params import Baseline, Compare

PARAMS = Compare(seed=3, bootstrap_samples=400)
FIGURES = ["task", "measure", "arm", "seeds", "n", "mean", "ci_low", "ci_high"]
COMPARISONS = ["task", "measure", "arm", "against", "seeds", "n", "difference"]
COMPARISONS += ["ci_low", "ci_high", "only_arm", "only_against", "p_value"]
OFF = "quiet_star, thoughts off"


def predictions(folder: Path, ways: dict[str, tuple[str, list[float]]], tasks: tuple[str, ...] = ("gsm8k",)) -> None:
    """A run's answers: for each way "1011.." for the questions it has right, and the right answers' probabilities."""
    rows = [
        {"task": task, "index": i, "way": way, "prompt": f"{task} {i}", "correct": mark == "1", "prob": prob[i]}
        for task in tasks
        for way, (right, prob) in ways.items()
        for i, mark in enumerate(right)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(folder / "predictions.parquet")


def right(marks: str) -> np.ndarray:
    return np.array([mark == "1" for mark in marks])


def compared(
    folder: Path, methods: list[str], seeds: list[int], method: str = "quiet_star", seed: int = 1
) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    write_compare(PARAMS, Baseline(methods, seeds), method, seed, folder / "evaluate", folder / "compare")
    out = folder / "compare"
    figures, comparisons = (pd.read_csv(out / f"{name}.csv") for name in ("figures", "comparisons"))
    assert list(figures.columns) == FIGURES and list(comparisons.columns) == COMPARISONS
    return figures, comparisons, json.loads((out / "metrics.json").read_text())


def the(table: pd.DataFrame, **values: object) -> pd.Series:
    """The one row with these values."""
    (row,) = (row for _, row in table.iterrows() if all(row[name] == value for name, value in values.items()))
    return row


def probs(start: float) -> list[float]:
    return [start + 0.01 * i * i for i in range(8)]


THOUGHT, WITHOUT, BEFORE, PAUSES, PLAIN = "11110100", "11000100", "01000000", "11110001", "11001000"


@pytest.fixture
def one_seed(tmp_path: Path) -> Path:
    """A run with thoughts and a run of each baseline, of one seed."""
    run = {"thought": (THOUGHT, probs(0.3)), "no_thought": (WITHOUT, probs(0.2)), "base": (BEFORE, [0.1] * 8)}
    predictions(tmp_path / "evaluate", run)
    # of a baseline that pauses, what it gives without pauses is not compared
    predictions(tmp_path / "evaluate/pause-1", {"thought": (PAUSES, [0.25] * 8), "no_thought": ("0" * 8, [0.0] * 8)})
    predictions(tmp_path / "evaluate/no_thought-1", {"no_thought": (PLAIN, [0.22] * 8)})
    return tmp_path


def check_pairs(row: pd.Series, pairs: list[tuple[str, str]]) -> None:
    """The accuracies are compared in these pairs of runs, each given by its marks."""
    pairs = [(right(one), right(other)) for one, other in pairs]
    differences = np.array([one.astype(float) - other for one, other in pairs])
    assert (row["seeds"], row["n"]) == (len(pairs), 8)
    assert row["difference"] == pytest.approx(differences.mean())
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(interval_over_seeds(differences, 400, 3))
    assert row["only_arm"] == pytest.approx(np.mean([(one & ~other).sum() for one, other in pairs]))
    assert row["only_against"] == pytest.approx(np.mean([(~one & other).sum() for one, other in pairs]))
    assert row["p_value"] == pytest.approx(max(mcnemar(one, other) for one, other in pairs))


def test_every_arm_has_its_figures_and_is_compared_with_the_run(one_seed: Path):
    figures, comparisons, metrics = compared(one_seed, ["pause", "no_thought"], [1])
    assert set(figures["seeds"]) == {1} and set(figures["n"]) == {8} and len(figures) == 2 * 5
    for arm, count in {"quiet_star": 5, OFF: 3, "base": 1, "pause": 5, "no_thought": 3}.items():
        row = the(figures, measure="accuracy", arm=arm)
        assert row["mean"] == count / 8
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(share_interval(count, 8))
    prob = the(figures, measure="prob", arm="quiet_star")
    assert prob["mean"] == pytest.approx(0.3 + 0.01 * 140 / 8)
    assert (prob["ci_low"], prob["ci_high"]) == pytest.approx(interval(np.array(probs(0.3)), None, 400, 3))
    arms = {OFF: WITHOUT, "base": BEFORE, "pause": PAUSES, "no_thought": PLAIN}
    assert sorted(comparisons["against"]) == sorted([*arms] * 2)  # not with itself
    assert set(comparisons["arm"]) == {"quiet_star"} and set(metrics["gsm8k"]) == set(arms)
    alone = {OFF: (2, 0, 0.5), "base": (4, 0, 2 / 16), "pause": (1, 1, 1.0), "no_thought": (3, 1, 2 * (1 + 4) / 16)}
    for against, marks in arms.items():
        row = the(comparisons, measure="accuracy", against=against)
        check_pairs(row, [(THOUGHT, marks)])
        assert (row["only_arm"], row["only_against"], row["p_value"]) == pytest.approx(alone[against])
        names = ("difference", "ci_low", "ci_high", "p_value")
        assert metrics["gsm8k"][against] == pytest.approx({name: row[name] for name in names}, rel=1e-6)
    row = the(comparisons, measure="prob", against=OFF)  # a difference of probabilities is paired and has no test
    assert [row["difference"], row["ci_low"], row["ci_high"]] == pytest.approx([0.1] * 3)  # the same at every question
    assert row[["only_arm", "only_against", "p_value"]].isna().all()
    assert the(comparisons, measure="prob", against="pause")["ci_low"] < 0.3 + 0.175 - 0.25


def test_every_task_is_compared(tmp_path: Path):
    run = {"thought": (THOUGHT, probs(0.3)), "no_thought": (WITHOUT, probs(0.2))}
    predictions(tmp_path / "evaluate", run, tasks=("gsm8k", "commonsense_qa"))
    for methods, seeds in (([], [1]), (["pause"], [])):  # without baselines
        figures, comparisons, metrics = compared(tmp_path, methods, seeds)
        assert len(figures) == 2 * 2 * 2 and len(comparisons) == 2 * 2
        assert set(metrics) == {"gsm8k", "commonsense_qa"} and set(comparisons["against"]) == {OFF}


SEEDS = {
    "quiet_star": {1: "11110100", 2: "11111100", 3: "01110000"},
    OFF: {1: "11000000", 2: "10000100", 3: "00010000"},
    "pause": {1: "10110001", 2: "11010000", 3: "01110010"},
}


def seeded(folder: Path, own: tuple[int, ...] = (2, 3), others: tuple[int, ...] = (1, 2, 3)) -> Path:
    """The run of seed 1, its own method with the seeds ``own`` and pauses with ``others``."""
    for seed in (1, *own):
        ways = {"thought": (SEEDS["quiet_star"][seed], probs(seed / 10)), "no_thought": (SEEDS[OFF][seed], [0.1] * 8)}
        if seed == 1:
            predictions(folder / "evaluate", ways | {"base": (BEFORE, [0.1] * 8)})
        else:
            predictions(folder / f"evaluate/quiet_star-{seed}", ways)
    for seed in others:
        ways = {"thought": (SEEDS["pause"][seed], [0.2] * 8), "no_thought": ("0" * 8, [0.0] * 8)}
        predictions(folder / f"evaluate/pause-{seed}", ways)
    return folder


def test_seeds_are_averaged_and_paired(tmp_path: Path):
    """The run counts once, though its method is a baseline too: there is no `quiet_star-1`."""
    figures, comparisons, _ = compared(seeded(tmp_path), ["quiet_star", "pause"], [1, 2, 3])
    assert len(figures) == 2 * 4
    for arm, runs in SEEDS.items():
        row = the(figures, measure="accuracy", arm=arm)
        values = np.array([right(marks) for marks in runs.values()], float)
        assert (row["seeds"], row["n"]) == (3, 8)
        assert row["mean"] == pytest.approx(values.mean())
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(interval_over_seeds(values, 400, 3))
    assert the(figures, measure="accuracy", arm="base")["seeds"] == 1
    for against in (OFF, "pause"):
        pairs = [(SEEDS["quiet_star"][seed], SEEDS[against][seed]) for seed in (1, 2, 3)]
        check_pairs(the(comparisons, measure="accuracy", against=against), pairs)
    # the base model has no seed: it is compared with every run
    pairs = [(marks, BEFORE) for marks in SEEDS["quiet_star"].values()]
    check_pairs(the(comparisons, measure="accuracy", against="base"), pairs)


@pytest.mark.parametrize(
    "own, others, seeds, pairs",
    [
        ((), (1, 2, 3), [1, 2, 3], [(1, 1)]),  # seeds that only one arm has are in its figures alone
        ((2,), (2,), [2], [(2, 2)]),
        ((), (2, 3), [2, 3], [(1, 2), (1, 3)]),  # without a shared seed each run is compared with each
    ],
)
def test_which_runs_are_paired(own: tuple, others: tuple, seeds: list[int], pairs: list[tuple], tmp_path: Path):
    methods = ["quiet_star", "pause"] if own else ["pause"]
    figures, comparisons, _ = compared(seeded(tmp_path, own, others), methods, seeds)
    assert the(figures, measure="accuracy", arm="pause")["seeds"] == len(others)
    marks = [(SEEDS["quiet_star"][one], SEEDS["pause"][other]) for one, other in pairs]
    check_pairs(the(comparisons, measure="accuracy", against="pause"), marks)


def test_a_run_of_another_method(tmp_path: Path):
    runs = {
        "pause": {"thought": (PAUSES, [0.3] * 8), "no_thought": (WITHOUT, [0.2] * 8)},
        "no_thought": {"no_thought": (PLAIN, [0.22] * 8)},
        "quiet_star": {"thought": (THOUGHT, [0.3] * 8), "no_thought": ("0" * 8, [0.2] * 8)},
    }
    for method, marks, off in (("pause", PAUSES, {"pause, thoughts off"}), ("no_thought", PLAIN, set())):
        folder = tmp_path / method
        predictions(folder / "evaluate", runs[method] | {"base": (BEFORE, [0.1] * 8)})
        for other in runs.keys() - {method}:
            predictions(folder / f"evaluate/{other}-1", runs[other])
        figures, comparisons, metrics = compared(folder, [*runs], [1], method=method)
        assert set(figures["arm"]) == {*runs, "base"} | off and set(comparisons["arm"]) == {method}
        assert set(metrics["gsm8k"]) == {*runs, "base"} - {method} | off
        check_pairs(the(comparisons, measure="accuracy", against="quiet_star"), [(marks, THOUGHT)])


def refused(folder: Path, message: object) -> None:
    with pytest.raises(UserError) as error:
        compared(folder, ["pause"], [1])
    assert str(message) in str(error.value) and "\n" not in str(error.value) and not (folder / "compare").exists()


def test_runs_that_were_not_asked_the_same_questions_or_have_other_columns(one_seed: Path):
    """Fewer questions, one more task, another task, and another prompt; tests/bad_input has files that are broken."""
    path = one_seed / "evaluate/pause-1/predictions.parquet"
    rows = pd.read_parquet(path)
    for tasks, marks in ((("gsm8k",), PAUSES[:-1]), (("gsm8k", "more"), PAUSES), (("more",), PAUSES)):
        predictions(path.parent, {"thought": (marks, [0.25] * 8)}, tasks=tasks)
        refused(one_seed, "not asked the same questions")
    rows.assign(prompt="Well, " + rows["prompt"]).to_parquet(path)
    refused(one_seed, "not asked the same questions")
    pd.DataFrame({"task": ["gsm8k"]}).to_parquet(path)
    refused(one_seed, path)
