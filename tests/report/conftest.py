"""Writes the fake outputs of the other stages."""

import json
from pathlib import Path

import fake_outputs as fake
import pytest

from pipeline.report import ReportInputs


@pytest.fixture
def inputs(tmp_path: Path) -> ReportInputs:
    """A complete set of inputs: gsm8k helped, commonsense_qa undecided."""
    paths = {
        "evaluate_metrics": tmp_path / "evaluate.json",
        "perplexity_metrics": tmp_path / "perplexity.json",
        "train_metrics": tmp_path / "train.json",
        "train_steps": tmp_path / "steps.csv",
        "train_heldout": tmp_path / "heldout.csv",
        "base_model_steps": tmp_path / "base_steps.csv",
        "tokens": tmp_path / "tokens.parquet",
        "predictions": tmp_path / "predictions.parquet",
        "params": tmp_path / "params.yaml",
    }
    tasks = {"gsm8k": fake.task(0.8, 0.77, 0.83), "commonsense_qa": fake.task(0.01, -0.02, 0.04)}
    paths["evaluate_metrics"].write_text(json.dumps(tasks))
    paths["perplexity_metrics"].write_text(json.dumps(fake.perplexity()))
    paths["train_metrics"].write_text(json.dumps(fake.train()))
    fake.train_steps().to_csv(paths["train_steps"], index=False)
    fake.train_heldout().to_csv(paths["train_heldout"], index=False)
    fake.base_model_steps().to_csv(paths["base_model_steps"], index=False)
    fake.tokens().to_parquet(paths["tokens"])
    fake.predictions().to_parquet(paths["predictions"])
    paths["params"].write_text("# a comment\ntrain:\n  learning_rate: 1e-4  # <b>\n")
    return ReportInputs(**paths, passages=2)
