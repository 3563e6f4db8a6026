"""What an evaluation writes: a row for each question and way, each way's means, and what thinking costs."""

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from pipeline.data.tasks.questions import read_tasks
from pipeline.evaluation.direct.evaluate import PREDICTIONS, write_evaluation
from pipeline.params import Evaluate
from pipeline.thought.methods import NO_THOUGHT, PAUSE, QUIET_STAR
from tests.evaluation.chain_of_thought.asking import tasks_folder, trained_folder

PARAMS = Evaluate(seed=1, batch_size=2, thought_temperature=0.0, device="cpu")
CONTROLS = ["swapped", "random", "same_last"]
WAYS = {
    QUIET_STAR: ["thought", "no_thought", *CONTROLS],
    PAUSE: ["thought", "no_thought"],
    NO_THOUGHT: ["no_thought"],
    "untrained": ["thought", "no_thought", "sampled", "mean16", *CONTROLS],
}
# K is 2: with [start] and [end] 4 more tokens for each one that is predicted
COSTS = dict.fromkeys(WAYS, {"thought_length": 2.0, "operations": 5.0})
COSTS |= {NO_THOUGHT: {"thought_length": 0.0, "operations": 1.0}}
COSTS |= {"untrained": COSTS[QUIET_STAR] | {"operations_mean16": 65.0}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Questions of three tasks, and a model of each method, trained on nothing; one task has two groups."""
    root = tmp_path_factory.mktemp("evaluation")
    tasks = tasks_folder(root / "tasks", 5)
    pd.read_parquet(tasks / "b.parquet").assign(group=list("xxyyy")).to_parquet(tasks / "b.parquet")
    one = pd.read_parquet(tasks / "c.parquet").iloc[:1].assign(group="only")  # nobody to swap with
    one.to_parquet(tasks / "c.parquet")
    for method in WAYS:
        trained_folder(root / method, method=method, thought_tokens=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(root))
        yield root


def evaluated(folder: Path, method: str, results: Path, **changes: object) -> tuple[pd.DataFrame, dict]:
    write_evaluation(Evaluate(**vars(PARAMS) | changes), folder / method, folder / "tasks", results)
    metrics = json.loads((results / "metrics.json").read_text())
    return pd.read_parquet(results / "predictions.parquet"), metrics


def test_the_share_of_positions_that_a_gate_wants_a_thought_at(folder: Path, tmp_path: Path):
    """All of a threshold below every score, and none of one above; its cost goes with it."""
    for threshold, share, way in ((-1e9, 1.0, "thought"), (1e9, 0.0, "no_thought")):
        name = f"gated{share}"
        trained_folder(folder / name, thought_tokens=2, gate=True, gate_threshold=threshold)
        rows, metrics = evaluated(folder, name, tmp_path / name)
        assert metrics["cost"] == COSTS[QUIET_STAR] | {"gated_share": share, "operations_gated": 1 + 4 * share}
        columns = ["task", "index", "predicted", "prob", "thought"]
        gated, expected = (rows.loc[rows["way"] == some, columns].reset_index(drop=True) for some in ("gated", way))
        pd.testing.assert_frame_equal(gated, expected, rtol=1e-5)
        assert metrics["a"]["gated"]["accuracy"] == metrics["a"][way]["accuracy"]


@pytest.mark.parametrize("method", WAYS)
def test_a_row_for_each_question_and_way(method: str, folder: Path, tmp_path: Path):
    rows, metrics = evaluated(folder, method, tmp_path)
    asked = {name: list(questions) for name, (_, questions) in read_tasks(folder / "tasks").items()}
    assert list(rows.columns) == PREDICTIONS.names
    assert list(metrics) == [*asked, "cost"] and metrics["cost"] == COSTS[method]
    for name, questions in asked.items():
        groups = [q.group or str(i) for i, q in enumerate(questions)]
        found = [way for way in metrics[name] if way not in ("n", "groups")]
        assert set(found) - {"same_last"} == set(WAYS[method]) - {"same_last"} - ({"swapped"} if name == "c" else set())
        assert (metrics[name]["n"], metrics[name]["groups"]) == (len(questions), len(set(groups)))
        for way in found:
            some = rows[(rows["task"] == name) & (rows["way"] == way)]
            own = [questions[i] for i in some["index"]]
            assert len(own) == len(questions) or way == "same_last"
            assert list(zip(some["prompt"], some["answer"], strict=True)) == [(q.prompt, q.answer) for q in own]
            assert list(some["group"]) == [groups[i] for i in some["index"]]
            assert list(some["correct"]) == list(some["predicted"] == some["answer"])
            assert some["prob"].between(0, 1, inclusive="neither").all()
            means = {"n": len(own), "accuracy": some["correct"].mean(), "prob": some["prob"].mean()}
            assert metrics[name][way] == means
            assert set(some["thought"] != "") == {way not in ("no_thought", "mean16") and method != PAUSE}


def test_a_donors_thought_is_a_whole_other_questions(folder: Path, tmp_path: Path):
    """The same in batches of another size, of another group, and with the same last token where that is asked."""
    rows = [evaluated(folder, QUIET_STAR, tmp_path / str(n), batch_size=n, thought_temperature=1.0)[0] for n in (2, 4)]
    assert list(rows[0]["thought"]) == list(rows[1]["thought"])
    for name in "ab":
        by_way = {way: some.set_index("index") for way, some in rows[0][rows[0]["task"] == name].groupby("way")}
        own = by_way["thought"]
        assert sorted(by_way["swapped"]["thought"]) == sorted(own["thought"]) != sorted(by_way["random"]["thought"])
        for way in ("swapped", "same_last"):
            for index, row in by_way.get(way, own[:0]).iterrows():
                others = own[own["group"] != row["group"]] if way == "same_last" or name == "a" else own.drop(index)
                assert row["thought"] in set(others["thought"])
                assert way == "swapped" or row["thought"][-1] == own.loc[index, "thought"][-1]


def test_thoughts_are_drawn_from_the_seed_and_belong_to_their_questions(folder: Path, tmp_path: Path):
    drawn = {"thought_temperature": 1.0}
    runs = [evaluated(folder, QUIET_STAR, tmp_path / str(i), seed=i % 2, **drawn)[0] for i in range(3)]
    assert list(runs[0]["thought"]) == list(runs[2]["thought"]) != list(runs[1]["thought"])
    without = [list(rows.loc[rows["way"] == "no_thought", "prob"]) for rows in runs]
    assert without[0] == without[1]
    some, metrics = evaluated(folder, QUIET_STAR, tmp_path / "some", seed=0, questions=2, **drawn)
    assert metrics["a"]["n"] == metrics["b"]["n"] == 2
    own = [rows[rows["way"].isin(["thought", "no_thought"])] for rows in (some, runs[0][runs[0]["index"] < 2])]
    pd.testing.assert_frame_equal(*(rows.reset_index(drop=True) for rows in own), rtol=1e-4)


@pytest.mark.parametrize("method", [pytest.param("untrained", marks=pytest.mark.slow), PAUSE, NO_THOUGHT])
def test_in_bfloat16_probabilities_are_close(method: str, folder: Path, tmp_path: Path):
    """All ways run in it; those with thoughts may have other thoughts, so their probabilities are not compared."""
    tables = []
    for precision in ("float32", "bfloat16"):
        rows, _ = evaluated(folder, method, tmp_path / precision, precision=precision)
        assert set(rows["way"]) == set(WAYS[method]) and rows["prob"].between(0, 1, inclusive="neither").all()
        tables.append(rows[rows["way"] == "no_thought"])
    exact, rounded = (torch.tensor(rows["prob"].to_numpy()) for rows in tables)
    assert 0 < (rounded / exact).log().abs().max() < 0.2
