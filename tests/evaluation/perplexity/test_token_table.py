"""The table of every held-out token's losses, and the folder that the stage writes."""

import json
from copy import deepcopy
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
from pipeline.evaluation.perplexity.choices import after_marker
from pipeline.evaluation.perplexity.groups import GROUPINGS
from pipeline.evaluation.perplexity.kinds import TokenReader
from pipeline.evaluation.perplexity.measure import write_perplexity
from pipeline.evaluation.perplexity.tokens import COLUMNS, Passes, loss_before, token_table
from pipeline.files import write_rows
from pipeline.models.device import autocast
from pipeline.models.trained import put
from pipeline.params import Perplexity
from pipeline.resume import Scratch
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.sampler import Sampling
from tests.evaluation.chain_of_thought.asking import tiny_model
from tests.evaluation.perplexity.made_up import BYTE_LEVEL, METASPACE, write_spans

PARAMS = Perplexity(seed=1, texts=3, batch_size=2, thought_temperature=0.0, device="cpu")
LENGTHS = (8, 5, 2)


def random_spans(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Spans:
    ids = torch.randint(2, len(tokenizer), (3, 8), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [{"input_ids": row, "length": n} for row, n in zip(ids, LENGTHS, strict=True)]
    write_rows(folder / "spans.arrow", rows, SPANS)
    return Spans(folder / "spans.arrow", len(tokenizer))


def table_of(params: Perplexity, model: QuietStarForCausalLM, tokenizer: PreTrainedTokenizerFast, spans: Spans):
    """The base model is here the trained one with its weights moved."""
    with TemporaryDirectory() as folder:
        passes = Passes(params, spans, Scratch(Path(folder) / "rows"))
        return token_table(params, model, tokenizer, loss_before(moved(model), passes), passes)


def moved(model: QuietStarForCausalLM) -> QuietStarForCausalLM:
    model = deepcopy(model)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.5)
    return model


def losses(logits: torch.Tensor, ids: torch.Tensor) -> object:
    """About the losses of the tokens ``ids`` (N,) after the first."""
    return pytest.approx([-row.log_softmax(-1)[i].item() for row, i in zip(logits[0], ids[1:], strict=False)], rel=1e-4)


@pytest.mark.parametrize("tokenizer, temperature", [(BYTE_LEVEL, 1.0), (METASPACE, 0.0)])
@torch.no_grad()
def test_rows_are_those_of_each_text_alone(tokenizer: PreTrainedTokenizerFast, temperature: float, tmp_path: Path):
    model, spans = tiny_model(tokenizer, thought_tokens=2, gate=True), random_spans(tmp_path, tokenizer)
    table = table_of(replace(PARAMS, seed=5, thought_temperature=temperature), model, tokenizer, spans)
    assert list(table.columns) == COLUMNS and list(table.index) == list(range(sum(n - 1 for n in LENGTHS)))
    reader, sampling = TokenReader(tokenizer), Sampling(temperature, 5)
    texts = [spans[text]["input_ids"][None, :n] for text, n in enumerate(LENGTHS)]
    outputs = [model(ids, sampling=sampling, text_keys=torch.tensor([text])) for text, ids in enumerate(texts)]
    pool = {
        int(i) for output, n in zip(outputs, LENGTHS, strict=True) for i in output.thoughts.ids[0, 0, : n - 1].flatten()
    }
    for text, (n, (ids,), output) in enumerate(zip(LENGTHS, texts, outputs, strict=True)):
        rows = table[table["text"] == text]
        assert list(rows["position"]) == list(range(1, n))
        assert list(rows["token"]) == [reader.text(i) for i in ids[1:].tolist()]
        assert list(rows["kind"]) == reader.kinds(ids.tolist())[1:]
        assert list(rows["nll_before"]) == losses(moved(model)(ids[None]).base_logits, ids)
        assert list(rows["nll_no_thought"]) == losses(output.base_logits, ids)
        assert list(rows["nll_thought"]) == losses(output.logits, ids)
        # a donor's thoughts stand at the same positions; those of a shorter text begin again
        places = {other: [i % (LENGTHS[other] - 1) for i in range(n)] for other in range(3) if other != text}
        given = [outputs[other].thoughts.ids[:, :, some] for other, some in places.items()]
        swapped = [losses(model(ids[None], thought_ids=some).logits, ids) for some in given]
        donor = [list(rows["nll_swapped"]) == some for some in swapped].index(True)
        for column, thoughts in (("holds_next", output.thoughts.ids), ("holds_next_swapped", given[donor])):
            pairs = zip(ids[1:].tolist(), thoughts[0, 0].tolist(), strict=False)
            assert list(rows[column]) == [token in thought for token, thought in pairs]
        # tokens that some thought has
        pairs = torch.tensor([[a, b] for a in pool for b in pool])
        every = model(ids.expand(len(pairs), -1), thought_ids=pairs[:, None, None].expand(-1, 1, n, -1)).logits
        for i, loss in enumerate(rows["nll_random"]):
            assert min(abs(-every[:, i].log_softmax(-1)[:, ids[i + 1]] - loss)) < 1e-4
        assert rows["weight"].to_numpy() == pytest.approx(output.weight[0, : n - 1].numpy(), rel=1e-4, abs=1e-5)
        assert rows["gate"].to_numpy() == pytest.approx(output.gate[0, : n - 1].numpy(), rel=1e-4, abs=1e-5)
        entropy = torch.distributions.Categorical(logits=output.base_logits[0, : n - 1]).entropy()
        assert rows["entropy"].to_numpy() == pytest.approx(entropy.numpy(), rel=1e-4)
        assert list(rows["thought"]) == [tokenizer.decode(t) for t in output.thoughts.ids[0, 0, : n - 1]]


def test_a_thought_does_not_hold_the_token_that_ended_it(tmp_path: Path):
    """Each thought is empty, and the texts are of nothing but the token that ends them all."""
    endings = {"thoughts_end": True, "ending_token_ids": [9, *range(9), *range(10, len(BYTE_LEVEL))]}
    model = tiny_model(BYTE_LEVEL, thought_tokens=2, **endings)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()  # the same token is always drawn
        (drawn,) = set(model(torch.tensor([[5, 6]]), sampling=Sampling(0.0)).thoughts.ids.flatten().tolist())
    for token in (drawn, 9):  # 9 stands in the ended places of thoughts that are given
        write_rows(tmp_path / "spans.arrow", [{"input_ids": [token] * 8, "length": 8}] * 3, SPANS)
        table = table_of(PARAMS, model, BYTE_LEVEL, Spans(tmp_path / "spans.arrow", len(BYTE_LEVEL)))
        assert set(table["thought"]) == {""} and not table.filter(like="holds_next").any(axis=None)


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


def test_in_bfloat16_losses_are_close_and_not_rounded_themselves(tmp_path: Path):
    spans, tables = random_spans(tmp_path, BYTE_LEVEL), []
    for precision in ("float32", "bfloat16"):
        model = put(tiny_model(BYTE_LEVEL, thought_tokens=2), "cpu", precision)
        with autocast("cpu", precision):
            tables.append(table_of(PARAMS, model, BYTE_LEVEL, spans))
    exact, rounded = (torch.tensor(table["nll_no_thought"].to_numpy()) for table in tables)
    assert 0 < (rounded - exact).abs().max() < 0.1
    assert (rounded != rounded.bfloat16()).any() and torch.equal(rounded, rounded.float().double())
    assert {p.dtype for p in model.base.model.layers.parameters() if p.ndim > 1} == {torch.bfloat16}


TEXTS = [" What is the learning (A) 12\n", " don't ask 7 times é", " 42", " more of the text", " never read"]
METRICS = ["n_texts", "n_tokens", "loss", "perplexity"]
OF_THOUGHTS = ["improvement", "helped", "hurt", "threshold", "mixing_weight", "agreement", "deciles"]


@pytest.mark.parametrize(
    "method, tokenizer, ways_of_method",
    [("quiet_star", BYTE_LEVEL, 5), ("pause", METASPACE, 3), ("no_thought", BYTE_LEVEL, 2)],
)
def test_the_files_agree_with_each_other(
    method: str, tokenizer: PreTrainedTokenizerFast, ways_of_method: int, tmp_path: Path
):
    write_spans(tmp_path / "heldout.arrow", tokenizer, TEXTS)
    model = tiny_model(tokenizer, method=method, thought_tokens=2)
    model.save_pretrained(tmp_path / "model")
    moved(model).base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "model")
    results = tmp_path / "results"
    inputs = [tmp_path / name for name in ("model", "base", "heldout.arrow")]
    write_perplexity(replace(PARAMS, texts=4), *inputs, results, "of")

    tokens = pd.read_parquet(results / "tokens.parquet")
    spans = Spans(tmp_path / "heldout.arrow", model.vocabulary, 4)
    assert tokens["after_marker"].to_list() == after_marker(spans, tokenizer, "of").tolist()
    assert tokens["after_marker"].sum() == 1  # of "of the"
    metrics = json.loads((results / "tables/metrics.json").read_text())
    ways = [name.removeprefix("nll_") for name in tokens if name.startswith("nll_")]
    assert ways == ["before", "no_thought", "thought", "swapped", "random"][:ways_of_method]
    assert list(tokens["text"].unique()) == [0, 1, 2, 3]  # not the fifth
    holds = [name for name in tokens if name.startswith("holds_next")]
    assert len(holds) == (3 if method == "quiet_star" else 0)
    assert list(metrics) == METRICS + (OF_THOUGHTS[:3] + holds + OF_THOUGHTS[3:] if method != "no_thought" else [])
    assert [metrics[name] for name in holds] == pytest.approx([tokens[name].mean() for name in holds])
    assert metrics["loss"] == pytest.approx({way: tokens[f"nll_{way}"].mean() for way in ways})
    if method == "no_thought":
        assert len(list((results / "tables").iterdir())) == 1
        return
    assert metrics["n_tokens"] == len(tokens) and (tokens["thought"] != "").any() == (method == "quiet_star")
    gain = (tokens["nll_no_thought"] - tokens["nll_thought"]).mean()
    assert metrics["improvement"]["mean"] == pytest.approx(gain, abs=1e-12)
    for name in GROUPINGS:
        rows = pd.read_csv(results / f"tables/{name}.csv")
        assert rows["n"].sum() == len(tokens) and rows["share"].sum() == pytest.approx(1)
        assert np.average(rows["improvement"], weights=rows["n"]) == pytest.approx(gain, rel=1e-4, abs=1e-9)
    assert set(pd.read_csv(results / "tables/kinds.csv")["group"]) == set(tokens["kind"])
    assert pd.read_csv(results / "tables/density.csv")["tokens"].sum() == len(tokens)
    assert len(list((results / "tables").iterdir())) == 8
    choices = pd.read_csv(results / "tables/choices.csv")
    assert set(choices["chooser"]) == {"entropy", "random", "marker"} and "gate" not in tokens
    assert choices.loc[choices["share"] == 1, "gain"].to_numpy() == pytest.approx(gain, rel=1e-4, abs=1e-9)
