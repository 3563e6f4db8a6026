"""The loss of every held-out token."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.files import write_rows
from pipeline.loop import Spans
from pipeline.params import Perplexity
from pipeline.perplexity import summary, token_table
from pipeline.thought.sampler import Sampling
from pipeline.tokens import SPANS
from pipeline.tokens.tokenizer import train_tokenizer
from tests.thought.tiny import LLAMA, quiet_star

PARAMS = Perplexity(seed=1, texts=3, batch_size=2, thought_temperature=0.0, bootstrap_samples=200, device="cpu")
LENGTHS = (8, 5, 2)
TOKENIZER = train_tokenizer(["some text to learn from"] * 3, 280)
MODEL = quiet_star(
    {**LLAMA, "vocab_size": len(TOKENIZER)}, thought_tokens=2, start_token_id=None, end_token_id=None
).eval()


@pytest.fixture
def spans(tmp_path: Path) -> Spans:
    ids = torch.randint(2, 258, (3, 8), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [{"input_ids": row, "length": n} for row, n in zip(ids, LENGTHS, strict=True)]
    write_rows(tmp_path / "spans.parquet", rows, SPANS)
    return Spans(tmp_path / "spans.parquet")


@torch.no_grad()
def test_losses_are_those_of_each_text_alone(spans: Spans):
    table = token_table(PARAMS, MODEL, TOKENIZER, spans)
    assert len(table) == sum(n - 1 for n in LENGTHS)
    for text, n in enumerate(LENGTHS):
        ids = spans[text]["input_ids"][:n]
        output = MODEL(ids[None], sampling=Sampling(0.0))
        rows = table[table["text"] == text]
        assert list(rows["position"]) == list(range(1, n))
        assert list(rows["token"]) == [TOKENIZER.decode(i) for i in ids[1:]]
        for column, logits in (("nll_no_thought", output.base_logits), ("nll_thought", output.logits)):
            expected = [-logits[0, i - 1].log_softmax(-1)[ids[i]].item() for i in range(1, n)]
            assert rows[column].to_numpy() == pytest.approx(np.array(expected), rel=1e-4)
        assert rows["weight"].to_numpy() == pytest.approx(output.weight[0, : n - 1].numpy(), rel=1e-4, abs=1e-5)
        assert list(rows["thought"]) == [TOKENIZER.decode(t) for t in output.thoughts.ids[0, 0, : n - 1]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_batch_size_changes_nothing(spans: Spans, temperature: float):
    tables = [token_table(Perplexity(1, 3, size, temperature, 10, "cpu"), MODEL, TOKENIZER, spans) for size in (1, 3)]
    pd.testing.assert_frame_equal(*tables, rtol=1e-4)


def fake(texts: int, tokens: int) -> pd.DataFrame:
    """Tokens whose improvement is a tenth of their loss."""
    losses = np.arange(1, texts * tokens + 1) / 10
    text = np.tile(np.arange(texts), tokens)
    return pd.DataFrame({"text": text, "nll_no_thought": losses, "nll_thought": 0.9 * losses, "weight": 0.5})


def test_the_summary():
    table = fake(5, 20)
    metrics = summary(table, PARAMS)
    assert (metrics["n_texts"], metrics["n_tokens"], metrics["mixing_weight"]) == (5, 100, 0.5)
    assert metrics["loss"]["no_thought"] == pytest.approx(5.05)
    assert metrics["perplexity"]["thought"] == pytest.approx(np.exp(0.9 * 5.05))
    assert metrics["improvement"]["mean"] == pytest.approx(0.505)
    assert metrics["improvement"]["ci_low"] <= 0.505 <= metrics["improvement"]["ci_high"]


def test_deciles_are_tenths_from_the_easiest_tokens_to_the_hardest():
    deciles = summary(fake(5, 20), PARAMS)["deciles"]
    assert [d["decile"] for d in deciles] == list(range(1, 11)) and all(d["n"] == 10 for d in deciles)
    assert [d["base_loss"] for d in deciles] == pytest.approx([i + 0.55 for i in range(10)])
    assert [d["improvement"] for d in deciles] == pytest.approx([0.1 * (i + 0.55) for i in range(10)])


def test_fewer_tokens_than_deciles_and_equal_losses():
    table = fake(1, 3)
    assert sum(d["n"] for d in summary(table, PARAMS)["deciles"]) == 3
    table["nll_no_thought"] = 1.0
    assert sum(d["n"] for d in summary(table, PARAMS)["deciles"]) == 3
