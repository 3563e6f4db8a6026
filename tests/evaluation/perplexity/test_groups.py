"""The improvement by group of tokens, and its density."""

from collections import Counter
from math import ceil, floor

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.perplexity.groups import GROUPINGS, density_table, group_table
from pipeline.evaluation.perplexity.kinds import KINDS
from tests.evaluation.perplexity.made_up import any_tokens, random_tokens, slow_interval, table

by_decile, by_kind, by_position, by_weight = GROUPINGS.values()
COLUMNS = ["group", "n", "share", "base_loss", "improvement", "ci_low", "ci_high", "helped", "hurt"]


@given(tokens=any_tokens())
@settings(max_examples=40)
def test_rows_are_means_over_the_groups_tokens(tokens: pd.DataFrame):
    for grouped in GROUPINGS.values():
        group = grouped(tokens)
        rows = group_table(tokens, group)
        assert list(rows.columns) == COLUMNS
        assert set(rows["group"]) == set(group) and rows["group"].is_unique
        for row in rows.to_dict("records"):
            part = tokens[group == row["group"]]
            gain = part["nll_no_thought"] - part["nll_thought"]
            expected = {"n": len(part), "share": len(part) / len(tokens), "base_loss": part["nll_before"].mean()}
            expected |= {"improvement": gain.mean(), "helped": (gain > 0.01).mean(), "hurt": (gain < -0.01).mean()}
            assert {key: row[key] for key in expected} == pytest.approx(expected, abs=1e-12)
            ends = np.array([row["ci_low"], row["ci_high"]], float)
            assert np.isfinite(ends).all() if part["text"].nunique() > 1 else np.isnan(ends).all()
        numbers = rows.drop(columns=["group", "ci_low", "ci_high"])
        assert np.isfinite(numbers.to_numpy(dtype=float)).all()


def test_intervals_are_those_of_draws_of_whole_texts():
    tokens = random_tokens(150, 12)
    group = by_kind(tokens)
    rows = group_table(tokens, group).set_index("group")
    for name in rows.index:
        texts = [list(part["improvement"]) for _, part in tokens[group == name].groupby("text")]
        low, high = slow_interval(texts, np.mean)
        ends = rows.loc[name, ["ci_low", "ci_high"]].astype(float).to_list()
        assert ends == pytest.approx([low, high], abs=0.08 * (high - low))


@given(any_tokens())
def test_deciles_are_tenths_from_the_easiest_tokens_to_the_hardest(tokens: pd.DataFrame):
    order = sorted(range(len(tokens)), key=lambda i: tokens["nll_before"][i])
    assert list(by_decile(tokens)[order]) == [ceil(place * 10 / len(order)) for place in range(1, len(order) + 1)]


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=20))
def test_positions_are_in_groups_of_doubling_width(positions: list[int]):
    labels = by_position(pd.DataFrame({"position": positions}))
    for position, label in zip(positions, labels, strict=True):
        ends = [int(end) for end in label.split("-")]
        assert ends[0] <= position <= ends[-1] == 2 * ends[0] - 1 and ends[0].bit_count() == 1
    assert list(by_position(pd.DataFrame({"position": range(1, 10)}))) == (
        ["1"] + ["2-3"] * 2 + ["4-7"] * 4 + ["8-15"] * 2
    )


def test_groups_come_in_their_own_order():
    tokens = random_tokens(40, 40)
    tokens.loc[0, "kind"] = "special"
    groupings = (by_kind, by_position, by_weight)
    kinds, positions, weights = (group_table(tokens, grouped(tokens))["group"] for grouped in groupings)
    assert list(by_kind(tokens)) == list(tokens["kind"])
    assert list(kinds) == [kind for kind in KINDS if kind in set(tokens["kind"])]
    assert list(positions) == ["1", "2-3", "4-7", "8-15", "16-31", "32-63"]
    lows = [float(group.split(" to ")[0]) for group in weights]
    assert lows == sorted(lows) and len(lows) == 10


@given(st.lists(st.one_of(st.sampled_from([0.0, 0.1]), st.floats(-2, 2)), min_size=1, max_size=60))
def test_weights_are_in_ten_groups_or_fewer_and_equal_ones_together(weights: list[float]):
    labels = by_weight(pd.DataFrame({"weight": weights}))
    ends: dict[str, list[float]] = {}
    for weight, label in zip(weights, labels, strict=True):
        ends.setdefault(label, []).append(weight)
    ranges = sorted((min(some), max(some)) for some in ends.values())
    assert len(ranges) <= 10 and all(a[1] < b[0] for a, b in zip(ranges, ranges[1:], strict=False))
    if len(set(weights)) == len(weights) >= 10:
        counts = [len(some) for some in ends.values()]
        assert len(counts) == 10 and max(counts) - min(counts) <= 1
    for label, some in ends.items():
        said = [float(end) for end in label.split(" to ")]
        assert said == pytest.approx([min(some), max(some)][: len(said)], rel=0.06, abs=1e-300)
        assert (len(said) == 1) == (min(some) == max(some))


def test_labels_of_weights_take_the_digits_that_they_need():
    labels = by_weight(pd.DataFrame({"weight": 0.5 + np.arange(20) * 1e-7}))
    assert labels.nunique() == 10 and labels.iloc[0] == "0.5 to 0.5000001"
    assert set(by_weight(pd.DataFrame({"weight": [-0.0] * 5}))) == {"0"}  # one weight for all is one group


@given(any_tokens())
def test_cells_of_the_density_count_their_tokens(tokens: pd.DataFrame):
    cells = density_table(tokens)
    found = {(round(c.base_loss / 0.25 - 0.5), round(c.improvement / 0.1)): c.tokens for c in cells.itertuples()}
    pairs = list(zip(tokens["nll_before"], tokens["improvement"], strict=True))
    assert found == Counter((floor(base / 0.25), floor(gain / 0.1 + 0.5)) for base, gain in pairs)
    assert len(found) == len(cells)
    for base, gain in pairs:  # every token is near the centre of a cell, the same in every run
        near = (cells["base_loss"] - base).abs().le(0.125 + 1e-9) & (cells["improvement"] - gain).abs().le(0.05 + 1e-9)
        assert near.any()


def test_no_change_is_in_the_middle_of_a_cell():
    for gain, centre in {0.0: 0.0, 0.049: 0.0, -0.049: 0.0, 0.051: 0.1, -0.16: -0.2}.items():
        tokens = table(np.zeros(1, int), np.ones(1, int), np.array([3.3]), np.array([3.3 - gain]), np.zeros(1))
        cells = density_table(tokens)
        assert cells["base_loss"].item() == 3.375 and cells["improvement"].item() == pytest.approx(centre)
