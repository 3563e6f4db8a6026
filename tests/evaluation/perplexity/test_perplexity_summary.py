"""What metrics.json says."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings

from pipeline.evaluation.perplexity.groups import (
    agreement,
    by_decile,
    group_table,
    interval_over_texts,
    losses_of,
    summarize,
)
from tests.evaluation.perplexity.made_up import any_tokens, random_tokens, slow_interval


def metrics_of(tokens: pd.DataFrame) -> dict:
    return losses_of(tokens) | summarize(tokens, group_table(tokens, by_decile(tokens)))


def slow_ranks(values: list[float]) -> np.ndarray:
    """For each value, how many are below it, and half of how many are equal."""
    array = np.array(values)
    return (array[:, None] > array).sum(1) + (array[:, None] == array).sum(1) / 2


def slow_spearman(pairs: list[tuple[float, float]]) -> float:
    return np.corrcoef(*(slow_ranks(values) for values in zip(*pairs, strict=True)))[0, 1]


def test_the_figures_are_those_of_all_tokens():
    tokens = random_tokens(20, 30)
    found, means = metrics_of(tokens), tokens.mean(numeric_only=True)
    assert (found["n_texts"], found["n_tokens"], found["threshold"]) == (20, len(tokens), 0.01)
    losses = {way: means[f"nll_{way}"] for way in ("before", "no_thought", "thought")}
    assert found["loss"] == pytest.approx(losses)
    assert found["perplexity"] == pytest.approx({way: np.exp(loss) for way, loss in losses.items()})
    assert found["mixing_weight"] == pytest.approx(means["weight"])
    gains = tokens["nll_no_thought"] - tokens["nll_thought"]
    for name, value in {"improvement": gains, "helped": gains > 0.01, "hurt": gains < -0.01}.items():
        expected = interval_over_texts(value, tokens["text"], None if name == "improvement" else (0, 1))
        assert list(found[name].values()) == pytest.approx([value.mean(), *expected])
    rows = group_table(tokens, by_decile(tokens)).rename(columns={"group": "decile"})
    columns = ["decile", "base_loss", "improvement", "ci_low", "ci_high", "n"]
    assert found["deciles"] == rows[columns].to_dict("records") and list(rows["decile"]) == list(range(1, 11))


def test_of_one_text_the_improvement_has_no_interval():
    tokens = random_tokens(20, 30).assign(text=0)
    found = metrics_of(tokens)
    assert (found["improvement"]["ci_low"], found["improvement"]["ci_high"]) == (None, None)
    assert {row[end] for row in found["deciles"] for end in ("ci_low", "ci_high")} == {None}
    assert 0 <= found["helped"]["ci_low"] < found["helped"]["ci_high"] <= 1


@given(any_tokens())
@settings(max_examples=40)
def test_any_tokens_make_json_and_agreement_is_the_correlation_of_ranks(tokens: pd.DataFrame):
    found = json.loads(json.dumps(metrics_of(tokens), allow_nan=False))
    estimate = found["agreement"]
    changed = tokens[tokens["helped"] | tokens["hurt"]]
    constant = changed["weight"].nunique() < 2 or changed["improvement"].nunique() < 2
    assert estimate["n_tokens"] == len(changed)
    assert (estimate["spearman"] is None) == constant
    if not constant:
        assert -1 <= estimate["ci_low"] <= estimate["ci_high"] <= 1
        assert estimate["spearman"] == pytest.approx(slow_spearman(changed[["weight", "improvement"]].to_numpy()))
    assert sum(row["n"] for row in found["deciles"]) == len(tokens) == found["n_tokens"]


@pytest.mark.parametrize(
    "kind", ["some", "ties", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("strong", "against"))]
)
def test_the_interval_of_agreement_is_that_of_ranking_every_draw(kind: str):
    tokens = random_tokens(150, 6, seed=3)
    if kind != "some":
        noise = {"strong": 0.1, "against": 0.3, "ties": 0.3}[kind]
        sign = -1 if kind == "against" else 1
        noises = np.random.default_rng(1).normal(0, noise, len(tokens))
        tokens["improvement"] = np.exp(5 * (sign * tokens["weight"] + noises))  # far from normal
    if kind == "ties":
        tokens["improvement"] = tokens["improvement"].where(tokens["improvement"] > 1.5, 0)
        tokens["weight"] = tokens["weight"].round(1)
    texts = [list(part.itertuples(index=False)) for _, part in tokens.groupby("text")[["weight", "improvement"]]]
    low, high = slow_interval(texts, slow_spearman, samples=800)
    found = agreement(tokens)
    assert [found["ci_low"], found["ci_high"]] == pytest.approx([low, high], abs=0.12 * (high - low))
    assert found["ci_low"] < found["spearman"] < found["ci_high"]


def test_the_interval_of_full_agreement_ends_there():
    tokens = random_tokens(900, 5)
    for sign in (1, -1):
        found = agreement(tokens.assign(improvement=sign * tokens["weight"] ** 3))
        assert list(found.values()) == pytest.approx([sign] * 3, abs=0.02)
        assert all(abs(value) <= 1 + 1e-12 for value in found.values())
