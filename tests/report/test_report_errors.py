"""What is missing or malformed ends in one line that names the file."""

import json
from pathlib import Path

import pandas as pd
import pytest
from fake_outputs import perplexity, predictions, task, tokens, train_steps

from pipeline.errors import UserError
from pipeline.report import ReportInputs, write_report


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


@pytest.mark.parametrize("value", [float("nan"), None, "much"])
def test_metric_not_a_number(inputs: ReportInputs, tmp_path: Path, value):
    inputs.evaluate_metrics.write_text(json.dumps({"gsm8k": task(0.1, value, 0.2)}))
    wanted = f"{inputs.evaluate_metrics}: gsm8k.difference.ci_low is not a finite number"
    assert complaint(inputs, tmp_path / "out") == wanted


@pytest.mark.parametrize(
    "deciles, wrong",
    [
        ({"1": 0.1}, "deciles is not a list of objects"),
        ([1, 2], "deciles is not a list of objects"),
        ([], "no column decile, base_loss, improvement, ci_low, ci_high, n"),
    ],
)
def test_deciles_malformed(inputs: ReportInputs, tmp_path: Path, deciles, wrong: str):
    inputs.perplexity_metrics.write_text(json.dumps(perplexity() | {"deciles": deciles}))
    assert complaint(inputs, tmp_path / "out") == f"{inputs.perplexity_metrics}: {wrong}"


def test_step_column_missing_or_not_numbers(inputs: ReportInputs, tmp_path: Path):
    train_steps().drop(columns=["reward", "loss"]).to_csv(inputs.train_steps, index=False)
    assert complaint(inputs, tmp_path / "out") == f"{inputs.train_steps}: no column loss, reward"
    train_steps().assign(reward="high").to_csv(inputs.train_steps, index=False)
    assert complaint(inputs, tmp_path / "out") == f"{inputs.train_steps}: not numbers in column reward"


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


def test_predictions_malformed(inputs: ReportInputs, tmp_path: Path):
    predictions().drop(columns=["prompt", "answer"]).to_parquet(inputs.predictions)
    assert complaint(inputs, tmp_path / "out") == f"{inputs.predictions}: no column prompt, answer"
