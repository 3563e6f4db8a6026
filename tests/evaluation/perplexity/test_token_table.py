"""The table of every held-out token's losses."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from pipeline.data.spans import SPANS, Spans
from pipeline.errors import UserError
from pipeline.evaluation.perplexity.kinds import TokenReader
from pipeline.evaluation.perplexity.tokens import token_table
from pipeline.files import write_rows
from pipeline.params import Perplexity
from pipeline.resume import Scratch
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.sampler import Sampling
from tests.evaluation.perplexity.readers import BYTE_LEVEL, METASPACE
from tests.thought.tiny import LLAMA, quiet_star

PARAMS = Perplexity(seed=1, texts=3, batch_size=2, thought_temperature=0.0, bootstrap_samples=200, device="cpu")
LENGTHS = (8, 5, 2)
COLUMNS = ["text", "position", "token", "kind", "nll_no_thought", "nll_thought", "weight", "thought"]
TOKENIZERS = pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, METASPACE], ids=["byte-level", "metaspace"])


def tiny_model(tokenizer: PreTrainedTokenizerFast, method: str = "quiet_star") -> QuietStarForCausalLM:
    base = {**LLAMA, "vocab_size": len(tokenizer)}
    return quiet_star(base, method=method, thought_tokens=2, start_token_id=None, end_token_id=None).eval()


def random_spans(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Spans:
    ids = torch.randint(2, len(tokenizer), (3, 8), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [{"input_ids": row, "length": n} for row, n in zip(ids, LENGTHS, strict=True)]
    write_rows(folder / "spans.arrow", rows, SPANS)
    return Spans(folder / "spans.arrow", len(tokenizer))


def table_of(params: Perplexity, model: QuietStarForCausalLM, tokenizer: PreTrainedTokenizerFast, spans: Spans):
    with TemporaryDirectory() as folder:
        return token_table(params, model, tokenizer, spans, Scratch(Path(folder) / "rows"))


@TOKENIZERS
@torch.no_grad()
def test_rows_are_those_of_each_text_alone(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    model, spans = tiny_model(tokenizer), random_spans(tmp_path, tokenizer)
    table = table_of(PARAMS, model, tokenizer, spans)
    assert list(table.columns) == COLUMNS and list(table.index) == list(range(sum(n - 1 for n in LENGTHS)))
    reader = TokenReader(tokenizer)
    for text, n in enumerate(LENGTHS):
        ids = spans[text]["input_ids"][:n]
        output = model(ids[None], sampling=Sampling(0.0))
        rows = table[table["text"] == text]
        assert list(rows["position"]) == list(range(1, n))
        assert list(rows["token"]) == [reader.text(i) for i in ids[1:].tolist()]
        assert list(rows["kind"]) == reader.kinds(ids.tolist())[1:]
        for column, logits in (("nll_no_thought", output.base_logits), ("nll_thought", output.logits)):
            expected = [-logits[0, i - 1].log_softmax(-1)[ids[i]].item() for i in range(1, n)]
            assert rows[column].to_numpy() == pytest.approx(np.array(expected), rel=1e-4)
        assert rows["weight"].to_numpy() == pytest.approx(output.weight[0, : n - 1].numpy(), rel=1e-4, abs=1e-5)
        assert list(rows["thought"]) == [tokenizer.decode(t) for t in output.thoughts.ids[0, 0, : n - 1]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_batch_size_changes_nothing(temperature: float, tmp_path: Path):
    model, spans = tiny_model(BYTE_LEVEL), random_spans(tmp_path, BYTE_LEVEL)
    tables = [table_of(Perplexity(1, 3, size, temperature, 10, "cpu"), model, BYTE_LEVEL, spans) for size in (1, 2, 3)]
    pd.testing.assert_frame_equal(tables[0], tables[1], rtol=1e-4)
    pd.testing.assert_frame_equal(tables[0], tables[2], rtol=1e-4)


@torch.no_grad()
def test_thoughts_are_drawn_from_the_seed(tmp_path: Path):
    model, spans = tiny_model(BYTE_LEVEL), random_spans(tmp_path, BYTE_LEVEL)
    table = table_of(Perplexity(5, 3, 2, 1.0, 10, "cpu"), model, BYTE_LEVEL, spans)
    for text, n in enumerate(LENGTHS):
        ids, key = spans[text]["input_ids"][:n], spans[text]["text_keys"][None]
        output = model(ids[None], sampling=Sampling(1.0, 5), text_keys=key)
        expected = [BYTE_LEVEL.decode(t) for t in output.thoughts.ids[0, 0, : n - 1]]
        assert list(table.loc[table["text"] == text, "thought"]) == expected


@TOKENIZERS
def test_tokens_and_kinds_are_those_of_the_whole_text(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    text = " trains What is the learning (A) 12\n  do not ask"
    ids = tokenizer(text)["input_ids"]
    write_rows(tmp_path / "spans.arrow", [{"input_ids": ids, "length": len(ids)}], SPANS)
    table = table_of(PARAMS, tiny_model(tokenizer), tokenizer, Spans(tmp_path / "spans.arrow", len(tokenizer)))
    assert TokenReader(tokenizer).text(ids[0]) + "".join(table["token"]) == text
    assert table["kind"].iloc[0] == "word middle"  # it goes on with the token before it, which has no row
    word = text.index("learning")
    ends = table["token"].str.len().cumsum() + len(text) - table["token"].str.len().sum()
    inside = table[(ends > word) & (ends <= word + len("learning"))]
    pieces = [(token.strip(), kind) for token, kind in zip(inside["token"], inside["kind"], strict=True)]
    spoken = [kind for piece, kind in pieces if piece]
    assert spoken == ["word start"] + ["word middle"] * (len(spoken) - 1) and len(spoken) > 1


@pytest.mark.parametrize("method", ["pause", "no_thought"])
def test_a_method_that_samples_no_thoughts(method: str, tmp_path: Path):
    table = table_of(PARAMS, tiny_model(BYTE_LEVEL, method), BYTE_LEVEL, random_spans(tmp_path, BYTE_LEVEL))
    assert list(table.columns) == COLUMNS and (table["thought"] == "").all()
    same = (table["nll_no_thought"] == table["nll_thought"]).all() and (table["weight"] == 0).all()
    assert same == (method == "no_thought")


def test_losses_that_are_not_numbers_are_refused(tmp_path: Path):
    model = tiny_model(BYTE_LEVEL)
    with torch.no_grad():
        model.end_embedding.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        table_of(PARAMS, model, BYTE_LEVEL, random_spans(tmp_path, BYTE_LEVEL))
