"""What is kept where a rule chooses few tokens, against loops over tokens."""

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.perplexity.choices import COLUMNS, SHARES, choices_table, follows
from tests.evaluation.perplexity.made_up import random_tokens, slow_interval


def made_up(texts: int = 30) -> pd.DataFrame:
    """The gate knows the gain but for some noise, the entropy knows nothing; "A:" stands before each tenth token."""
    tokens, rng = random_tokens(texts, 20, seed=3), np.random.default_rng(4)
    count = len(tokens)
    return tokens.assign(
        nll_swapped=tokens["nll_thought"] + rng.normal(0.5, 1, count),
        entropy=rng.random(count),
        gate=tokens["improvement"] + rng.normal(0, 0.1, count),
        token=["x A:" if i % 10 == 8 else "y" for i in range(count)],
    )


def test_rows_equal_loops_over_the_tokens():
    tokens = made_up()
    table = choices_table(tokens, "A:", seed=5)
    assert list(table.columns) == COLUMNS
    rows = tokens.to_dict("records")
    after = sum(a["token"] == "x A:" and a["text"] == b["text"] for a, b in zip(rows, rows[1:], strict=False))
    shares = sorted([*SHARES, after / len(rows)])
    assert list(table["chooser"]) == [name for name in ("gate", "entropy", "random") for _ in shares] + ["marker"]
    for row in table[table["chooser"].isin(["gate", "entropy"])].itertuples():
        count = round(shares[row.Index % len(shares)] * len(rows))
        chosen = sorted(rows, key=lambda token: -token[row.chooser])[:count]
        gain = sum(token["nll_no_thought"] - token["nll_thought"] for token in chosen)
        content = sum(token["nll_swapped"] - token["nll_thought"] for token in chosen)
        assert row.share == pytest.approx(count / len(rows))
        assert (row.gain, row.content) == pytest.approx((gain / len(rows), content / len(rows)))
        assert row.loss == pytest.approx((sum(token["nll_no_thought"] for token in rows) - gain) / len(rows))
        all_gain, all_content = tokens["improvement"].sum(), (tokens["nll_swapped"] - tokens["nll_thought"]).sum()
        assert (row.kept_gain, row.kept_content) == pytest.approx((gain / all_gain, content / all_content))
    marked = table.iloc[-1]
    own = [(b["nll_no_thought"] - b["nll_thought"]) for a, b in zip(rows, rows[1:], strict=False)
           if a["token"] == "x A:" and a["text"] == b["text"]]  # fmt: skip
    assert (marked["share"], marked["gain"]) == pytest.approx((after / len(rows), sum(own) / len(rows)))
    everywhere = table[table["share"] == 1.0]
    assert everywhere[["kept_gain", "kept_content"]].to_numpy() == pytest.approx(1.0)
    assert everywhere["loss"].to_numpy() == pytest.approx(tokens["nll_thought"].mean())


def test_the_random_choice_is_seeded_and_a_share_of_it_is_a_part_of_a_larger_one():
    tokens = made_up()
    table = choices_table(tokens, "A:", seed=5)
    pd.testing.assert_frame_equal(table, choices_table(tokens, "A:", seed=5))
    assert not table.equals(choices_table(tokens, "A:", seed=6))
    where = table["chooser"] != "random"
    pd.testing.assert_frame_equal(table[where], choices_table(tokens, "A:", seed=6)[where])


def test_intervals_are_those_of_draws_of_whole_texts():
    tokens = made_up(150)
    row = choices_table(tokens, "A:", seed=5).set_index(["chooser", "share"]).loc["gate"]
    row = row.iloc[list(row.index.round(2)).index(0.2)]
    chosen = tokens["gate"].rank(method="first", ascending=False) <= round(0.2 * len(tokens))
    here = tokens.assign(value=tokens["improvement"].where(chosen, 0.0))
    low, high = slow_interval([list(part["value"]) for _, part in here.groupby("text")], np.mean)
    assert [row["gain_low"], row["gain_high"]] == pytest.approx([low, high], abs=0.08 * (high - low))


def test_without_a_gate_sampled_thoughts_or_a_marker():
    tokens = made_up().drop(columns=["gate", "nll_swapped"])
    table = choices_table(tokens, "B:", seed=5)
    assert set(table["chooser"]) == {"entropy", "random"}
    assert table["content"].isna().all() and table["kept_content"].isna().all() and table["gain"].notna().all()


@pytest.mark.filterwarnings("error")
def test_where_thoughts_change_nothing_there_is_no_share_of_it():
    tokens = made_up()
    tokens["nll_swapped"] = tokens["nll_thought"]
    table = choices_table(tokens, "A:", seed=5)
    assert table["kept_gain"].notna().all() and table["kept_content"].isna().all()
    table = choices_table(tokens.assign(nll_no_thought=tokens["nll_thought"]), "A:", seed=5)
    assert table["kept_gain"].isna().all() and (table["gain"] == 0).all()


def test_a_marker_may_be_several_tokens_but_not_of_two_texts():
    tokens = pd.DataFrame({"text": [0, 0, 0, 1, 1, 1], "token": ["x", "A", ":", ":", "A:", "b"]})
    assert list(follows(tokens, "A:")) == [False] * 5 + [True]
    assert list(follows(tokens.assign(text=0), "A:")) == [False, False, False, True, False, True]
    spaced = pd.DataFrame({"text": 0, "token": ["A:", " ", "7", " ", "A: "]})
    assert list(follows(spaced, "A:")) == [False, True, True, False, False]
    assert list(follows(spaced, "7 ")) == [False, False, False, False, True]
