"""The folder that the stage writes."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.data.spans import SPANS
from pipeline.evaluation.perplexity.measure import write_perplexity
from pipeline.files import write_rows
from pipeline.params import Perplexity
from tests.evaluation.perplexity.readers import BYTE_LEVEL, METASPACE
from tests.thought.tiny import LLAMA, quiet_star

PARAMS = Perplexity(seed=1, texts=4, batch_size=2, thought_temperature=0.0, bootstrap_samples=50, device="cpu")
TEXTS = [" What is the learning (A) 12\n", " don't ask 7 times é", " 42", " more of the text", " never read"]
GROUPS = ("deciles", "kinds", "positions", "weights")
METRICS = {
    "n_texts",
    "n_tokens",
    "loss",
    "perplexity",
    "improvement",
    "helped",
    "hurt",
    "threshold",
    "mixing_weight",
    "agreement",
    "deciles",
}


def written(folder: Path, tokenizer, method: str) -> Path:
    rows = [tokenizer(text)["input_ids"] for text in TEXTS]
    width = max(map(len, rows))
    pad = tokenizer.pad_token_id
    spans = [{"input_ids": ids + [pad] * (width - len(ids)), "length": len(ids)} for ids in rows]
    write_rows(folder / "heldout.arrow", spans, SPANS)
    base = {**LLAMA, "vocab_size": len(tokenizer), "max_position_embeddings": 128}
    model = quiet_star(base, method=method, thought_tokens=2, start_token_id=None, end_token_id=None)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_perplexity(PARAMS, folder / "model", folder / "heldout.arrow", folder / "results")
    return folder / "results"


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, METASPACE], ids=["byte-level", "metaspace"])
@pytest.mark.parametrize("method", ["quiet_star", "pause", "no_thought"])
def test_the_files_agree_with_each_other(method: str, tokenizer, tmp_path: Path):
    results = written(tmp_path, tokenizer, method)
    tokens = pd.read_parquet(results / "tokens.parquet")
    metrics = json.loads((results / "metrics.json").read_text())
    assert set(metrics) == METRICS and list(tokens["text"].unique()) == [0, 1, 2, 3]  # not the fifth
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


def test_the_same_run_writes_the_same_bytes(tmp_path: Path):
    one, other = (written(tmp_path / name, BYTE_LEVEL, "quiet_star") for name in ("one", "other"))
    names = sorted(path.name for path in one.iterdir())
    assert len(names) == 8 and names == sorted(path.name for path in other.iterdir())
    assert [name for name in names if (one / name).read_bytes() != (other / name).read_bytes()] == []
