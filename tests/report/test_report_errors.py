"""What is missing or malformed ends in one line that names the file."""

import json
from pathlib import Path

import pandas as pd
import pytest
from fake_outputs import comparisons, extremes, figures, groups, perplexity, predictions, task, tokens, train, votes

from pipeline.errors import UserError
from pipeline.report import ReportInputs, write_report

pytestmark = pytest.mark.usefixtures("undrawn")


def complaint(inputs: ReportInputs, out: Path) -> str:
    with pytest.raises(UserError) as error:
        write_report(inputs, out)
    assert "\n" not in str(error.value)
    assert not out.exists(), "no half-written report"
    return str(error.value)


FILES = [name for name in ReportInputs.__dataclass_fields__ if name != "passages"]


@pytest.mark.parametrize("name", FILES)
def test_missing_file(inputs: ReportInputs, tmp_path: Path, name: str):
    path = getattr(inputs, name)
    path.unlink()
    assert complaint(inputs, tmp_path / "out") == f"{path}: no such file"


@pytest.mark.parametrize("name", FILES)
def test_file_of_another_kind(inputs: ReportInputs, tmp_path: Path, name: str):
    path = getattr(inputs, name)
    path.write_bytes(b"\xff\xfe\x00 not\n this")
    assert complaint(inputs, tmp_path / "out").startswith(f"{path}: cannot be read: ")


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("metrics")])
def test_metrics_that_are_not_an_object(inputs: ReportInputs, tmp_path: Path, name: str):
    path = getattr(inputs, name)
    path.write_text("[1]")
    assert complaint(inputs, tmp_path / "out") == f"{path}: not a JSON object"


def test_metric_missing(inputs: ReportInputs, tmp_path: Path):
    metrics = task(0.1, 0.0, 0.2)
    del metrics["difference"]["ci_low"]
    inputs.evaluate_metrics.write_text(json.dumps({"gsm8k": metrics}))
    assert complaint(inputs, tmp_path / "out") == f"{inputs.evaluate_metrics}: no gsm8k.difference.ci_low"


@pytest.mark.parametrize("value", [float("nan"), None, "much", [1]])
def test_metric_not_a_number(inputs: ReportInputs, tmp_path: Path, value):
    inputs.evaluate_metrics.write_text(json.dumps({"gsm8k": task(0.1, value, 0.2)}))
    wanted = f"{inputs.evaluate_metrics}: gsm8k.difference.ci_low is not a finite number"
    assert complaint(inputs, tmp_path / "out") == wanted


def test_method_unknown(inputs: ReportInputs, tmp_path: Path):
    inputs.train_metrics.write_text(json.dumps(train("shouting")))
    wanted = f"{inputs.train_metrics}: method is 'shouting', not one of quiet_star, pause, no_thought"
    assert complaint(inputs, tmp_path / "out") == wanted


def test_method_missing(inputs: ReportInputs, tmp_path: Path):
    inputs.train_metrics.write_text(json.dumps({"steps": 60}))
    assert complaint(inputs, tmp_path / "out") == f"{inputs.train_metrics}: no method"


def test_votes_without_measures(inputs: ReportInputs, tmp_path: Path):
    inputs.cot_metrics.write_text(json.dumps({"gsm8k": {"n": 32, "samples": 8, "no_thought": 0.5}}))
    assert complaint(inputs, tmp_path / "out") == f"{inputs.cot_metrics}: gsm8k.no_thought is not an object"


def test_shares_missing(inputs: ReportInputs, tmp_path: Path):
    inputs.perplexity_metrics.write_text(json.dumps(perplexity() | {"helped": {"share": 0.1, "ci_low": 0.1}}))
    assert complaint(inputs, tmp_path / "out") == f"{inputs.perplexity_metrics}: no helped.ci_high"


def test_parameters_malformed(inputs: ReportInputs, tmp_path: Path):
    inputs.params.write_text("train: nothing")
    assert complaint(inputs, tmp_path / "out").startswith(f"{inputs.params}: train is nothing")


@pytest.mark.parametrize(
    "name, table, wrong",
    [
        ("compare_figures", figures().drop(columns="arm"), "no column arm"),
        ("compare_figures", figures().assign(mean=None), "blank or infinite values in column mean"),
        ("compare_comparisons", comparisons().assign(p_value="tiny"), "not numbers in column p_value"),
        ("compare_comparisons", comparisons().assign(ci_low=float("inf")), "blank or infinite values in column ci_low"),
        ("cot_votes", votes().drop(columns=["way", "k"]), "no column k, way"),
        ("kinds", groups(["1"]).head(0), "no rows"),
        ("weights", groups(["1"]).drop(columns="group"), "no column group"),
        (
            "density",
            pd.DataFrame({"base_loss": [1], "improvement": ["x"], "tokens": [1]}),
            "not numbers in column improvement",
        ),
        ("extremes", extremes().drop(columns="excerpt"), "no column excerpt"),
        ("train_steps", pd.DataFrame({"step": [1], "base_loss": [1]}), "no column talk_loss, mixing_weight, reward"),
    ],
)
def test_table_malformed(inputs: ReportInputs, tmp_path: Path, name: str, table: pd.DataFrame, wrong: str):
    path = getattr(inputs, name)
    table.to_csv(path, index=False)
    assert complaint(inputs, tmp_path / "out").startswith(f"{path}: {wrong}")


@pytest.mark.parametrize(
    "table, wrong",
    [
        (tokens().head(0), "no rows"),
        (tokens().drop(columns="thought"), "no column thought"),
        (tokens().assign(nll_thought=float("inf")), "blank or infinite values in column nll_thought"),
        (tokens().assign(weight="heavy"), "not numbers in column weight"),
    ],
)
def test_tokens_malformed(inputs: ReportInputs, tmp_path: Path, table: pd.DataFrame, wrong: str):
    table.to_parquet(inputs.tokens)
    assert complaint(inputs, tmp_path / "out") == f"{inputs.tokens}: {wrong}"


def _without(index: int, way: str) -> pd.DataFrame:
    table = predictions()
    return table[(table["index"] != index) | (table["way"] != way)]


@pytest.mark.parametrize(
    "table, wrong",
    [
        (predictions().drop(columns=["prompt", "answer"]), "no column prompt, answer"),
        (predictions().query("way != 'base'"), "question 4 of commonsense_qa has 0 rows of way base, not one"),
        (_without(3, "thought"), "question 3 of "),
        (
            pd.concat([predictions(), predictions().query("index == 2 and task == 'gsm8k'")]),
            "question 2 of gsm8k has 2 rows",
        ),
    ],
)
def test_predictions_malformed(inputs: ReportInputs, tmp_path: Path, table: pd.DataFrame, wrong: str):
    table.to_parquet(inputs.predictions)
    assert complaint(inputs, tmp_path / "out").startswith(f"{inputs.predictions}: {wrong}")
