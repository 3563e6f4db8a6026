"""Whose thoughts stand in the place of a text's own; and where thoughts count nothing, no gain is anything but 0."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.direct.evaluate import write_evaluation
from pipeline.evaluation.donors import (
    ENDED,
    NOBODY,
    controls_of,
    derangement,
    ending_together,
    pooled,
    random_thoughts,
    same_last,
)
from pipeline.evaluation.perplexity.measure import write_perplexity
from pipeline.params import Evaluate, Perplexity
from tests.evaluation.chain_of_thought.asking import TOKENIZERS, tasks_folder, tiny_model
from tests.evaluation.perplexity.made_up import METASPACE, write_spans

GROUPS = st.lists(st.integers(0, 6).map(str), min_size=1, max_size=40)
TOKENS = st.lists(st.integers(0, 9), max_size=3).map(lambda tokens: tokens + [ENDED] * (3 - len(tokens)))
THOUGHTS = st.lists(TOKENS, min_size=1, max_size=6).map(np.array)


@given(GROUPS, st.integers(0, 2**32 - 1))
def test_each_gives_once_and_to_another_group_as_far_as_that_is_possible(groups: list[str], seed: int):
    donors, largest = derangement(groups, seed), max(map(groups.count, groups))
    assert donors.tolist() == derangement(groups, seed).tolist()
    if largest == len(groups):
        assert set(donors) == {NOBODY}
        return
    assert sorted(donors) == list(range(len(groups))) and (donors != np.arange(len(groups))).all()
    alike = sum(group == groups[donor] for group, donor in zip(groups, donors, strict=True))
    assert alike == max(0, 2 * largest - len(groups))


def test_a_group_has_donors_of_many_groups_and_another_seed_other_donors():
    groups = np.arange(400) % 20
    donors = derangement(groups, 1)
    assert min(len(set(groups[donors[groups == group]])) for group in range(20)) > 7
    assert (donors == derangement(groups, 2)).mean() < 0.1


@given(st.data(), GROUPS, st.integers(0, 2**32 - 1))
def test_a_donor_with_the_same_last_token_is_of_another_group(data: st.DataObject, groups: list[str], seed: int):
    lasts = data.draw(st.lists(st.integers(0, 3), min_size=len(groups), max_size=len(groups)))
    for i, donor in enumerate(same_last(lasts, groups, seed)):
        others = [j for j in range(len(groups)) if lasts[j] == lasts[i] and groups[j] != groups[i]]
        assert donor in others if others else donor == NOBODY


def test_the_last_token_is_that_of_the_thought_before_the_first_token_that_is_asked():
    """Here the answer's first token is given, and the thoughts before it all end alike."""
    own = [{"answer": np.array([[0, 1], [0, last]])} for last in (5, 6, 5, 7)]
    controls = controls_of(own.__getitem__, list("abcd"), [1] * 4, 10, 1)
    assert [controls(i).get("same_last") is not None for i in range(4)] == [True, False, True, False]


@given(THOUGHTS, st.integers(1, 9))
def test_random_thoughts_are_as_long_and_of_the_tokens_that_thoughts_have(own: np.ndarray, count: int):
    drawn, again = (random_thoughts(own, pooled([own], 10), 1, 2) for _ in range(2))
    assert ((drawn == ENDED) == (own == ENDED)).all() and set(drawn.flat) <= set(own.flat)
    assert (drawn == again).all()
    assert ending_together(own, count).tolist() == ([own[0].tolist()] * count + own[1:].tolist())[-count:]


def test_where_thoughts_before_answers_are_empty_tokens_are_of_all_thoughts():
    own = [{"answer": np.array([[ENDED]]), "written": np.array([[token]])} for token in (3, 4)]
    controls = controls_of(own.__getitem__, list("ab"), [0, 0], 10, 1)
    assert {controls(i)["random"]["written"].item() for i in range(2)} <= {3, 4}


def test_random_tokens_are_as_frequent_as_in_all_thoughts():
    own = np.array([[1, 1, 1, 4, ENDED]] * 5000)
    counts = np.bincount(random_thoughts(own, pooled([own], 6), 3)[:, :4].flatten(), minlength=6) / 20000
    assert np.abs(counts - [0, 0.75, 0, 0, 0.25, 0]).max() < 0.02


def test_at_a_mixing_weight_of_0_no_thought_changes_anything(tmp_path: Path):
    """Not by a rounding error: not an answer, a probability or a loss, whoever's thoughts they are."""
    model, tokenizer = tiny_model(METASPACE), TOKENIZERS["words"]()
    with torch.no_grad():
        model.mixing_head[-1].weight.zero_()
    for folder, one in (("model", model), ("base", model.base)):
        one.save_pretrained(tmp_path / folder)
        tokenizer.save_pretrained(tmp_path / folder)
    shared = {"seed": 1, "batch_size": 2, "thought_temperature": 1.0, "device": "cpu"}
    write_spans(tmp_path / "heldout.arrow", METASPACE, [" What is (A) 12", " don't", " 42 of it"])
    inputs = [tmp_path / name for name in ("model", "base", "heldout.arrow")]
    write_perplexity(Perplexity(texts=3, **shared), *inputs, tmp_path / "perplexity", "A:")
    tokens = pd.read_parquet(tmp_path / "perplexity/tokens.parquet").filter(like="nll_")
    assert tokens.shape[1] == 5 and (tokens.nunique(axis=1) == 1).all()
    write_evaluation(Evaluate(**shared), tmp_path / "model", tasks_folder(tmp_path / "tasks"), tmp_path / "evaluate")
    rows = pd.read_parquet(tmp_path / "evaluate/predictions.parquet")
    answers = rows.groupby(["task", "index"])[["predicted", "prob"]].nunique()
    assert rows["way"].nunique() >= 4 and (answers == 1).all(axis=None)
