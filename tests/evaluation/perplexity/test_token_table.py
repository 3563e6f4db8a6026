"""The table of every held-out token's losses, and the folder that the stage writes."""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from pipeline.data.spans import SPANS, Spans
from pipeline.errors import UserError
from pipeline.evaluation.perplexity.groups import GROUPINGS
from pipeline.evaluation.perplexity.kinds import TokenReader
from pipeline.evaluation.perplexity.measure import write_perplexity
from pipeline.evaluation.perplexity.tokens import token_table
from pipeline.files import write_rows
from pipeline.params import Perplexity
from pipeline.resume import Scratch
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.sampler import Sampling
from tests.evaluation.chain_of_thought.asking import tiny_model
from tests.evaluation.perplexity.made_up import BYTE_LEVEL, METASPACE, write_spans

PARAMS = Perplexity(seed=1, texts=3, batch_size=2, thought_temperature=0.0, device="cpu")
LENGTHS = (8, 5, 2)
COLUMNS = ["text", "position", "token", "kind", "nll_no_thought", "nll_thought", "weight", "thought"]


def random_spans(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Spans:
    ids = torch.randint(2, len(tokenizer), (3, 8), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [{"input_ids": row, "length": n} for row, n in zip(ids, LENGTHS, strict=True)]
    write_rows(folder / "spans.arrow", rows, SPANS)
    return Spans(folder / "spans.arrow", len(tokenizer))


def table_of(params: Perplexity, model: QuietStarForCausalLM, tokenizer: PreTrainedTokenizerFast, spans: Spans):
    with TemporaryDirectory() as folder:
        return token_table(params, model, tokenizer, spans, Scratch(Path(folder) / "rows"))


@pytest.mark.parametrize("tokenizer, temperature", [(BYTE_LEVEL, 1.0), (METASPACE, 0.0)])
@torch.no_grad()
def test_rows_are_those_of_each_text_alone(tokenizer: PreTrainedTokenizerFast, temperature: float, tmp_path: Path):
    model, spans = tiny_model(tokenizer, thought_tokens=2), random_spans(tmp_path, tokenizer)
    table = table_of(replace(PARAMS, seed=5, thought_temperature=temperature), model, tokenizer, spans)
    assert list(table.columns) == COLUMNS and list(table.index) == list(range(sum(n - 1 for n in LENGTHS)))
    reader = TokenReader(tokenizer)
    for text, n in enumerate(LENGTHS):
        ids, key = spans[text]["input_ids"][:n], spans[text]["text_keys"][None]
        output = model(ids[None], sampling=Sampling(temperature, 5), text_keys=key)
        rows = table[table["text"] == text]
        assert list(rows["position"]) == list(range(1, n))
        assert list(rows["token"]) == [reader.text(i) for i in ids[1:].tolist()]
        assert list(rows["kind"]) == reader.kinds(ids.tolist())[1:]
        for column, logits in (("nll_no_thought", output.base_logits), ("nll_thought", output.logits)):
            expected = [-logits[0, i - 1].log_softmax(-1)[ids[i]].item() for i in range(1, n)]
            assert rows[column].to_numpy() == pytest.approx(np.array(expected), rel=1e-4)
        assert rows["weight"].to_numpy() == pytest.approx(output.weight[0, : n - 1].numpy(), rel=1e-4, abs=1e-5)
        assert list(rows["thought"]) == [tokenizer.decode(t) for t in output.thoughts.ids[0, 0, : n - 1]]


def test_the_first_token_has_no_row_and_the_second_goes_on_with_its_word(tmp_path: Path):
    text = " trains What is the learning (A) 12\n  do not ask"
    spans = write_spans(tmp_path / "spans.arrow", BYTE_LEVEL, [text])
    table = table_of(PARAMS, tiny_model(BYTE_LEVEL, thought_tokens=2), BYTE_LEVEL, spans)
    assert BYTE_LEVEL.decode(BYTE_LEVEL(text)["input_ids"][0]) + "".join(table["token"]) == text
    assert table["kind"].iloc[0] == "word middle"


def test_losses_that_are_not_numbers_are_refused(tmp_path: Path):
    model = tiny_model(BYTE_LEVEL, thought_tokens=2)
    with torch.no_grad():
        model.end_embedding.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        table_of(PARAMS, model, BYTE_LEVEL, random_spans(tmp_path, BYTE_LEVEL))


TEXTS = [" What is the learning (A) 12\n", " don't ask 7 times é", " 42", " more of the text", " never read"]
METRICS = ["n_texts", "n_tokens", "loss", "perplexity", "improvement", "helped", "hurt", "threshold", "mixing_weight"]
METRICS += ["agreement", "deciles"]


@pytest.mark.parametrize(
    "method, tokenizer", [("quiet_star", BYTE_LEVEL), ("pause", METASPACE), ("no_thought", BYTE_LEVEL)]
)
def test_the_files_agree_with_each_other(method: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    write_spans(tmp_path / "heldout.arrow", tokenizer, TEXTS)
    tiny_model(tokenizer, method=method, thought_tokens=2).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    results = tmp_path / "results"
    write_perplexity(replace(PARAMS, texts=4), tmp_path / "model", tmp_path / "heldout.arrow", results)

    tokens = pd.read_parquet(results / "tokens.parquet")
    metrics = json.loads((results / "metrics.json").read_text())
    assert list(metrics) == METRICS and list(tokens["text"].unique()) == [0, 1, 2, 3]  # not the fifth
    assert metrics["n_tokens"] == len(tokens) and (tokens["thought"] != "").any() == (method == "quiet_star")
    same = (tokens["nll_no_thought"] == tokens["nll_thought"]).all() and (tokens["weight"] == 0).all()
    assert same == (method == "no_thought")
    gain = (tokens["nll_no_thought"] - tokens["nll_thought"]).mean()
    assert metrics["improvement"]["mean"] == pytest.approx(gain, abs=1e-12)
    for name in GROUPINGS:
        rows = pd.read_csv(results / f"{name}.csv")
        assert rows["n"].sum() == len(tokens) and rows["share"].sum() == pytest.approx(1)
        assert np.average(rows["improvement"], weights=rows["n"]) == pytest.approx(gain, rel=1e-4, abs=1e-9)
    assert set(pd.read_csv(results / "kinds.csv")["group"]) == set(tokens["kind"])
    assert pd.read_csv(results / "density.csv")["tokens"].sum() == len(tokens)
    extremes = pd.read_csv(results / "extremes.csv", keep_default_na=False)
    assert (len(extremes) == 0) == (method == "no_thought")
    assert (metrics["agreement"]["spearman"] is None) == (method == "no_thought")
    assert len(list(results.iterdir())) == 8
