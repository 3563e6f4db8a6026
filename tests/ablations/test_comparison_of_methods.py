"""The comparison of methods: what is trained on which budget, and what a row says. DVC is a stub."""

import sys
from pathlib import Path

import pandas as pd
import pytest

from pipeline import params
from pipeline.ablations import experiments, methods
from pipeline.ablations.grid import Arm
from pipeline.errors import UserError
from pipeline.preset import options as preset
from tests.ablations.toy import STUB, Project


@pytest.mark.parametrize("name", methods.TRAININGS)
def test_at_equal_operations_each_training_costs_what_the_reference_does(name: str):
    """By the plan's own count, which `pipeline.plan` prints; at equal text each reads as many texts."""
    train = params.load().train
    reference = methods.training(methods.REFERENCE, methods.TEXT)[1]
    words, text = methods.training(name, methods.TEXT)
    assert text["steps"] == train.steps and preset.options(words)["arms.methods"] == [_method(words)]
    words, equal = methods.training(name, methods.OPERATIONS)
    assert equal["training_operations"] == pytest.approx(reference["training_operations"], rel=methods.CLOSE)
    read = params.load(changes=preset.options(words)).train
    assert equal["steps"] == sum(stage.steps for stage in read.every_stage)
    assert equal["thoughts_per_token"] == pytest.approx(text["thoughts_per_token"])


def _method(words: list[str]) -> str:
    return params.load(changes=preset.options(words)).arms.methods[0]


def test_every_method_thinks_after_the_marker_and_the_plan_counts_one_thought_a_text():
    for name in methods.TRAININGS:
        words, facts = methods.training(name, methods.TEXT)
        train = params.load(changes=preset.options(words)).train
        assert train.thinking.where == "marker"
        many = 0 if name == methods.CONTINUED else train.rationales
        assert facts["thoughts_per_token"] == pytest.approx(many / params.load().tokenize.span)


def figures() -> pd.DataFrame:
    rows = [("micro", "accuracy", "quiet_star", 0.9), ("micro", "accuracy", "quiet_star/swapped", 0.2)]
    rows += [("micro", "accuracy", "quiet_star/gated", 0.8), ("micro/4", "accuracy", "quiet_star", 0.7)]
    rows += [("heldout", "loss", "quiet_star", 9.0), ("micro", "prob", "quiet_star", 0.5)]
    return pd.DataFrame(rows, columns=["task", "measure", "arm", "value"])


def test_a_training_with_a_gate_has_a_row_with_it_and_one_without(monkeypatch: pytest.MonkeyPatch):
    choices = "chooser,share,loss\ngate,0.05,2.0\ngate,0.1,1.6\nentropy,0.1,3.0\nmarker,0.02,1.5\n"
    monkeypatch.setattr(methods, "figures_of", lambda arm: figures())
    monkeypatch.setattr(methods, "git", lambda *words: choices)
    monkeypatch.setattr(methods, "MARKED", [*methods.MARKED, "train.gate_share=0.09"])
    words, facts = methods.training("gated", methods.TEXT)
    arm = Arm("gated", {"name": "gated", "seed": 3, **facts}, preset.options(words), "", "", "")
    rows = methods.rows_of(arm, methods.TEXT).set_index("method")
    assert list(rows.index) == ["signed", "gated"] and set(rows["task"]) == {"micro"} and set(rows["seed"]) == {3}
    assert rows["accuracy"].tolist() == [0.9, 0.8] and rows["heldout_loss"].tolist() == [1.5, 1.6]
    assert rows["content_effect"]["signed"] == pytest.approx(0.7) and pd.isna(rows["content_effect"]["gated"])
    assert rows["generation_passes"].tolist() == [1.1, 1.5]  # five tokens, at a fiftieth of the text or at a tenth
    assert rows["thoughts_per_token"].tolist() == [rows["thoughts_per_token"]["signed"]] * 2


def compare(*words: str) -> pd.DataFrame:
    sys.argv = ["methods", *words]
    methods.main()
    return pd.read_csv("results/methods.csv")


def test_each_training_is_run_once_and_what_has_rows_is_not_run_again(tmp_path: Path, monkeypatch, capsys):
    project = Project(tmp_path / "project")
    (tmp_path / "dvc.py").write_text(STUB)
    monkeypatch.setattr(experiments, "DVC", (sys.executable, str(tmp_path / "dvc.py")))
    monkeypatch.setattr(methods, "_thinking", lambda arm, run, chooser: (0.02, 1.5))
    monkeypatch.chdir(project.folder)
    first = compare("quiet_star", "--seeds", "1")
    assert list(first.columns) == methods.COLUMNS and first["budget"].tolist() == ["operations", "text"]
    assert len(project.ran) == 1  # it costs what the reference does: one training is both
    second = compare("quiet_star", "no_thought", "--seeds", "1", "--budgets", "text")
    assert len(project.ran) == 2 and sorted(set(second["method"])) == ["no_thought", "quiet_star"]
    assert "all trainings are done" in capsys.readouterr().out
    words = Path("results/methods.md").read_text()
    assert "## micro, at equal text" in words and "| no_thought | 0.500 |  |" in words
    with pytest.raises(UserError, match="there is no method other to compare"):
        compare("other")
