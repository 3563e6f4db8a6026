"""What an evaluation writes: a row for each question and way; each task's means, differences and p-value."""

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from pipeline.data.tasks.questions import read_tasks
from pipeline.evaluation import statistics
from pipeline.evaluation.direct.evaluate import summary, write_evaluation
from pipeline.evaluation.statistics import SHARE_DIFFERENCE, totals
from pipeline.params import Evaluate
from pipeline.thought.methods import NO_THOUGHT, PAUSE, QUIET_STAR
from tests.evaluation.chain_of_thought.asking import tasks_folder, trained_folder
from tests.local_hub import model_folder

PARAMS = Evaluate(seed=1, batch_size=2, thought_temperature=0.0, device="cpu")
COLUMNS = ["task", "index", "prompt", "answer", "way", "predicted", "correct", "prob", "thought"]
DIFFERENCE = ["accuracy", "ci_low", "ci_high", "p_value", "prob", "prob_ci_low", "prob_ci_high"]


def answers(**ways: tuple[list[bool], float]) -> pd.DataFrame:
    """For each way, which questions were right, and the right answer's probability at each."""
    return pd.concat(pd.DataFrame({"way": way, "correct": right, "prob": prob}) for way, (right, prob) in ways.items())


WAYS = {
    QUIET_STAR: ["thought", "no_thought", "base"],
    PAUSE: ["thought", "no_thought"],  # as a baseline is asked: without the base model
    NO_THOUGHT: ["no_thought", "base"],
}
RIGHT_WITHOUT = [True, False, False, True, True, False, False, False]
RIGHT_THINKING = [False, True, True, True, True, False, False, False]


def test_the_summary_pairs_the_questions():
    """Two questions won and one lost of eight: one more right in all."""
    metrics = summary(answers(thought=(RIGHT_THINKING, 0.3), no_thought=(RIGHT_WITHOUT, 0.1)))
    assert metrics["n"] == 8 and list(metrics) == ["n", "no_thought", "thought", "difference"]
    assert metrics["no_thought"] == {"prob": pytest.approx(0.1), "accuracy": 3 / 8}
    assert metrics["thought"] == {"prob": pytest.approx(0.3), "accuracy": 4 / 8}
    difference = metrics["difference"]
    assert list(difference) == DIFFERENCE
    assert difference["accuracy"] == pytest.approx(1 / 8) and difference["prob"] == pytest.approx(0.2)
    assert difference["prob_ci_low"] < 0.2 < difference["prob_ci_high"]
    expected = statistics.difference(totals(RIGHT_THINKING), totals(RIGHT_WITHOUT), SHARE_DIFFERENCE)
    assert (difference["ci_low"], difference["ci_high"], difference["p_value"]) == expected[1:]
    assert difference["ci_low"] < 0 < difference["ci_high"]
    assert difference["p_value"] == 1.0
    # six questions won and none lost: six heads, or six tails
    table = answers(thought=([True] * 9, 0.5), no_thought=([True] * 3 + [False] * 6, 0.5))
    assert summary(table)["difference"]["p_value"] == pytest.approx(2 / 64, rel=0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Questions of three tasks, a base model and a model of each method, trained on nothing."""
    root = tmp_path_factory.mktemp("evaluation")
    model_folder(root / "base")
    tasks_folder(root / "tasks", 5)
    for method in WAYS:
        trained_folder(root / method, method=method, thought_tokens=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(root))
        yield root


def evaluated(folder: Path, method: str, results: Path, base: bool = True, **changes: object) -> tuple:
    params = Evaluate(**vars(PARAMS) | changes)
    write_evaluation(params, folder / method, folder / "base" if base else None, folder / "tasks", results)
    metrics = json.loads((results / "metrics.json").read_text())
    return pd.read_parquet(results / "predictions.parquet"), metrics


def test_a_row_for_each_question_and_way(folder: Path, tmp_path: Path):
    probs = {}
    for method, ways in WAYS.items():
        rows, metrics = evaluated(folder, method, tmp_path / method, base="base" in ways)
        read = {name: list(questions) for name, (_, questions) in read_tasks(folder / "tasks").items()}
        assert list(rows.columns) == COLUMNS and len(rows) == (5 + 5 + 2) * len(ways)
        assert list(metrics) == list(read) == ["a", "b", "c"]
        for name, questions in read.items():
            assert set(metrics[name]) == {"n", *ways} | ({"difference"} if "thought" in ways else set())
            assert metrics[name]["n"] == len(questions)
            for way in ways:
                some = rows[(rows["task"] == name) & (rows["way"] == way)]
                probs[method, name, way] = list(some["prob"])
                assert list(some["index"]) == list(range(len(questions)))
                expected = [(q.prompt, q.answer) for q in questions]
                assert list(zip(some["prompt"], some["answer"], strict=True)) == expected
                assert list(some["correct"]) == list(some["predicted"] == some["answer"])
                assert some["prob"].between(0, 1, inclusive="neither").all()
                assert metrics[name][way] == {"prob": some["prob"].mean(), "accuracy": some["correct"].mean()}
                assert set(some["thought"] != "") == {way == "thought" and method == QUIET_STAR}
    # the base model is itself asked: it answers the same whatever was trained, and not as the trained model does
    for name in read:
        assert probs[QUIET_STAR, name, "base"] == probs[NO_THOUGHT, name, "base"]
        assert probs[NO_THOUGHT, name, "base"] != probs[NO_THOUGHT, name, "no_thought"]


def test_thoughts_are_drawn_from_the_seed_and_belong_to_their_questions(folder: Path, tmp_path: Path):
    drawn = {"thought_temperature": 1.0, "base": False}
    runs = [evaluated(folder, QUIET_STAR, tmp_path / str(i), seed=i % 2, **drawn)[0] for i in range(3)]
    assert list(runs[0]["thought"]) == list(runs[2]["thought"]) != list(runs[1]["thought"])
    without = [list(rows.loc[rows["way"] == "no_thought", "prob"]) for rows in runs]
    assert without[0] == without[1]
    some, metrics = evaluated(folder, QUIET_STAR, tmp_path / "some", seed=0, questions=2, **drawn)
    assert metrics["a"]["n"] == metrics["b"]["n"] == 2
    expected = runs[0][runs[0]["index"] < 2].reset_index(drop=True)
    pd.testing.assert_frame_equal(some, expected, rtol=1e-4)
