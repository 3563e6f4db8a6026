"""What an evaluation writes: a row a question and way, and each task's means, differences and p-value."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.data.tasks.ask import write_tasks
from pipeline.data.tasks.questions import read_tasks
from pipeline.evaluation.direct.evaluate import Answers, summary, write_evaluation
from pipeline.evaluation.statistics import interval
from pipeline.models.base import load_base
from pipeline.params import Evaluate, Tasks
from pipeline.thought.model import NO_THOUGHT, PAUSE, QUIET_STAR, QuietStarForCausalLM
from tests.local_hub import commonsense_qa_rows, configured, gsm8k_rows, model_folder, word_tokenizer

ROOT = Path(__file__).parents[3]
PARAMS = Evaluate(seed=1, batch_size=2, thought_temperature=0.0, bootstrap_samples=2000, device="cpu")
COLUMNS = ["task", "index", "prompt", "answer", "way", "predicted", "correct", "prob", "thought"]
DIFFERENCE = {"accuracy", "ci_low", "ci_high", "p_value", "prob", "prob_ci_low", "prob_ci_high"}


def answers(**ways: tuple[list[bool], list[float]]) -> dict[str, Answers]:
    """Of each way, which questions were right and the right answer's probability."""
    return {way: Answers(np.array(right), np.array(prob)) for way, (right, prob) in ways.items()}


RIGHT_WITHOUT = [True, False, False, True, True, False, False, False]
RIGHT_THINKING = [False, True, True, True, True, False, False, False]


def test_the_summary_pairs_the_questions():
    """Two questions won and one lost of eight: one more right in all."""
    metrics = summary(answers(thought=(RIGHT_THINKING, [0.3] * 8), no_thought=(RIGHT_WITHOUT, [0.1] * 8)), PARAMS)
    assert metrics["n"] == 8 and list(metrics) == ["n", "no_thought", "thought", "difference"]
    assert metrics["no_thought"] == {"prob": pytest.approx(0.1), "accuracy": 3 / 8}
    assert metrics["thought"] == {"prob": pytest.approx(0.3), "accuracy": 4 / 8}
    difference = metrics["difference"]
    assert set(difference) == DIFFERENCE
    assert difference["accuracy"] == pytest.approx(1 / 8) and difference["prob"] == pytest.approx(0.2)
    # the same gain at every question: paired, there is nothing uncertain about it
    assert difference["prob_ci_low"] == pytest.approx(0.2) == difference["prob_ci_high"]
    differences = np.array(RIGHT_THINKING, float) - np.array(RIGHT_WITHOUT, float)
    assert (difference["ci_low"], difference["ci_high"]) == interval(differences, None, 2000, 1)
    assert difference["ci_low"] < 0 < difference["ci_high"]
    assert difference["p_value"] == 1.0  # a fair coin lands on the same side twice of three, or oftener, always


def test_the_p_value_is_mcnemars():
    """Six questions won and none lost: heads six times, or tails."""
    table = answers(thought=([True] * 9, [0.5] * 9), no_thought=([True] * 3 + [False] * 6, [0.5] * 9))
    assert summary(table, PARAMS)["difference"]["p_value"] == pytest.approx(2 / 64)


def test_the_model_before_training_is_another_way():
    ways = {"thought": (RIGHT_THINKING, [0.3] * 8), "no_thought": (RIGHT_WITHOUT, [0.1] * 8)}
    metrics = summary(answers(base=([True] + [False] * 7, [0.2] * 8), **ways), PARAMS)
    assert list(metrics) == ["n", "base", "no_thought", "thought", "difference"]
    assert metrics["base"] == {"prob": pytest.approx(0.2), "accuracy": 1 / 8}


@pytest.mark.parametrize("base", [True, False])
def test_a_run_without_thoughts_has_no_difference(base: bool):
    ways = {"no_thought": (RIGHT_WITHOUT, [0.1] * 8)} | ({"base": (RIGHT_THINKING, [0.3] * 8)} if base else {})
    metrics = summary(answers(**ways), PARAMS)
    assert set(metrics) == {"n", *ways}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Questions of two tasks, a base model and a model of each method, trained on nothing."""
    root = tmp_path_factory.mktemp("evaluation")
    base = model_folder(root / "base")
    torch.manual_seed(0)
    for method in (QUIET_STAR, PAUSE, NO_THOUGHT):
        model = QuietStarForCausalLM.from_base(load_base(base), [3], method=method, thought_tokens=2)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.add_((0.5 if "mixing_head" in name else 0.05) * torch.randn_like(parameter))
        model.save_pretrained(root / method)
        word_tokenizer().save_pretrained(root / method)
    configured(root / "hub/openai/gsm8k", "main", "test", gsm8k_rows(5))
    configured(root / "hub/tau/commonsense_qa", None, "validation", commonsense_qa_rows(5))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        files = ["tasks/gsm8k.yaml", "tasks/commonsense_qa.yaml"]
        write_tasks(Tasks(files, root=str(root / "hub")), root / "tasks")
        patch.setenv("DVC_ROOT", str(root))
        yield root


def evaluated(folder: Path, method: str, results: Path, base: bool = True, **changes: object) -> tuple:
    params = Evaluate(**vars(PARAMS) | {"bootstrap_samples": 20} | changes)
    write_evaluation(params, folder / method, folder / "base" if base else None, folder / "tasks", results)
    metrics = json.loads((results / "metrics.json").read_text())
    return pd.read_parquet(results / "predictions.parquet"), metrics


@pytest.mark.parametrize(
    "method, ways",
    [
        (QUIET_STAR, ["thought", "no_thought", "base"]),
        (PAUSE, ["thought", "no_thought", "base"]),
        (NO_THOUGHT, ["no_thought", "base"]),
    ],
)
def test_a_row_a_question_and_way(folder: Path, method: str, ways: list[str], tmp_path: Path):
    rows, metrics = evaluated(folder, method, tmp_path)
    assert list(rows.columns) == COLUMNS
    assert not rows.duplicated(["task", "index", "way"]).any()
    read = {name: list(questions) for name, (_, questions) in read_tasks(folder / "tasks").items()}
    assert list(metrics) == list(read) == ["commonsense_qa", "gsm8k"]
    for name, questions in read.items():
        for way in ways:
            some = rows[(rows["task"] == name) & (rows["way"] == way)]
            assert list(some["index"]) == list(range(5))
            assert list(zip(some["prompt"], some["answer"], strict=True)) == [(q.prompt, q.answer) for q in questions]
            assert list(some["correct"]) == [p == q.answer for p, q in zip(some["predicted"], questions, strict=True)]
            assert some["prob"].between(0, 1, inclusive="neither").all()
            assert metrics[name][way] == {"prob": some["prob"].mean(), "accuracy": some["correct"].mean()}
            assert (some["thought"] != "").all() == (way == "thought" and method == QUIET_STAR)
            assert (some["thought"] == "").all() == (way != "thought" or method != QUIET_STAR)
    assert len(rows) == 2 * 5 * len(ways)
    for task in metrics.values():
        assert set(task) == {"n", *ways} | ({"difference"} if "thought" in ways else set())
        assert task["n"] == 5


def test_the_base_model_is_asked_itself(folder: Path, tmp_path: Path):
    """Its answers are another model's than the trained one's, and the same whatever was trained."""
    rows = {m: evaluated(folder, m, tmp_path / m)[0] for m in (QUIET_STAR, NO_THOUGHT)}
    probs = {m: some.groupby("way", sort=False)["prob"].agg(list) for m, some in rows.items()}
    assert probs[QUIET_STAR]["base"] == probs[NO_THOUGHT]["base"]
    assert probs[NO_THOUGHT]["base"] != probs[NO_THOUGHT]["no_thought"]


def test_a_baseline_is_asked_without_the_base_model(folder: Path, tmp_path: Path):
    rows, metrics = evaluated(folder, PAUSE, tmp_path, base=False)
    assert set(rows["way"]) == {"thought", "no_thought"} and "base" not in metrics["gsm8k"]


def test_the_first_questions_of_each_task(folder: Path, tmp_path: Path):
    rows, metrics = evaluated(folder, NO_THOUGHT, tmp_path / "some", questions=2)
    every, _ = evaluated(folder, NO_THOUGHT, tmp_path / "all")
    assert metrics["gsm8k"]["n"] == metrics["commonsense_qa"]["n"] == 2
    expected = every[every["index"] < 2].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows, expected, rtol=1e-4)


def test_drawn_thoughts_are_those_of_the_seed(folder: Path, tmp_path: Path):
    drawn = {"thought_temperature": 1.0}
    runs = [evaluated(folder, QUIET_STAR, tmp_path / str(i), seed=i % 2, **drawn)[0] for i in range(3)]
    assert list(runs[0]["thought"]) == list(runs[2]["thought"]) != list(runs[1]["thought"])
