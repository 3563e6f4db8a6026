"""The folder that the stage writes."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from transformers import PreTrainedTokenizerFast

from pipeline.evaluation.perplexity.measure import write_perplexity
from pipeline.params import Perplexity
from tests.evaluation.perplexity.readers import BYTE_LEVEL, METASPACE, write_spans
from tests.thought.tiny import LLAMA, quiet_star

PARAMS = Perplexity(seed=1, texts=4, batch_size=2, thought_temperature=0.0, bootstrap_samples=50, device="cpu")
TEXTS = [" What is the learning (A) 12\n", " don't ask 7 times é", " 42", " more of the text", " never read"]
GROUPS = ("deciles", "kinds", "positions", "weights")
METRICS = ["n_texts", "n_tokens", "loss", "perplexity", "improvement", "helped", "hurt", "threshold", "mixing_weight"]
METRICS += ["agreement", "deciles"]


@pytest.mark.parametrize(
    "method, tokenizer", [("quiet_star", BYTE_LEVEL), ("pause", METASPACE), ("no_thought", BYTE_LEVEL)]
)
def test_the_files_agree_with_each_other(method: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    write_spans(tmp_path / "heldout.arrow", tokenizer, TEXTS)
    base = {**LLAMA, "vocab_size": len(tokenizer), "max_position_embeddings": 128}
    model = quiet_star(base, method=method, thought_tokens=2, start_token_id=None, end_token_id=None)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    results = tmp_path / "results"
    write_perplexity(PARAMS, tmp_path / "model", tmp_path / "heldout.arrow", results)

    tokens = pd.read_parquet(results / "tokens.parquet")
    metrics = json.loads((results / "metrics.json").read_text())
    assert list(metrics) == METRICS and list(tokens["text"].unique()) == [0, 1, 2, 3]  # not the fifth
    assert metrics["n_tokens"] == len(tokens)
    gain = (tokens["nll_no_thought"] - tokens["nll_thought"]).mean()
    assert metrics["improvement"]["mean"] == pytest.approx(gain, abs=1e-12)
    for name in GROUPS:
        rows = pd.read_csv(results / f"{name}.csv")
        assert rows["n"].sum() == len(tokens) and rows["share"].sum() == pytest.approx(1)
        assert np.average(rows["improvement"], weights=rows["n"]) == pytest.approx(gain, rel=1e-4, abs=1e-9)
    assert set(pd.read_csv(results / "kinds.csv")["group"]) == set(tokens["kind"])
    assert pd.read_csv(results / "density.csv")["tokens"].sum() == len(tokens)
    extremes = pd.read_csv(results / "extremes.csv", keep_default_na=False)
    assert (len(extremes) == 0) == (method == "no_thought")
    assert (metrics["agreement"]["spearman"] is None) == (method == "no_thought")
    assert len(list(results.iterdir())) == 8
