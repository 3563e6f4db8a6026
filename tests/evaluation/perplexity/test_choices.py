"""What is kept where a rule chooses few tokens, against loops over tokens."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from transformers import PreTrainedTokenizerFast

from pipeline.evaluation.perplexity.choices import COLUMNS, SHARES, after_marker, choices_table
from tests.evaluation.perplexity.made_up import (
    BYTE_FALLBACK,
    BYTE_LEVEL,
    METASPACE,
    random_tokens,
    slow_interval,
    write_spans,
)


def made_up(texts: int = 30) -> pd.DataFrame:
    """The gate knows the gain but for some noise, the entropy knows nothing; "A:" stands before each tenth token."""
    tokens, rng = random_tokens(texts, 20, seed=3), np.random.default_rng(4)
    count = len(tokens)
    tokens["token"] = ["x A:" if i % 10 == 8 else "y" for i in range(count)]
    return tokens.assign(
        after_marker=tokens.groupby("text")["token"].shift() == "x A:",
        nll_no_thought=tokens["nll_no_thought"] + 0.5,  # so that thoughts help for certain
        improvement=tokens["improvement"] + 0.5,
        nll_swapped=tokens["nll_thought"] + rng.normal(0.5, 1, count),
        entropy=rng.random(count),
        gate=tokens["improvement"] + 0.5 + rng.normal(0, 0.1, count),
    )


def test_rows_equal_loops_over_the_tokens():
    tokens = made_up()
    table = choices_table(tokens, seed=5)
    assert list(table.columns) == COLUMNS
    rows = tokens.to_dict("records")
    marked = sum(a["token"] == "x A:" and a["text"] == b["text"] for a, b in zip(rows, rows[1:], strict=False))
    shares = sorted([*SHARES, marked / len(rows)])
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
    last = table.iloc[-1]
    own = [(b["nll_no_thought"] - b["nll_thought"]) for a, b in zip(rows, rows[1:], strict=False)
           if a["token"] == "x A:" and a["text"] == b["text"]]  # fmt: skip
    assert (last["share"], last["gain"]) == pytest.approx((marked / len(rows), sum(own) / len(rows)))
    everywhere = table[table["share"] == 1.0]
    assert everywhere[["kept_gain", "kept_content"]].to_numpy() == pytest.approx(1.0)
    assert everywhere["loss"].to_numpy() == pytest.approx(tokens["nll_thought"].mean())


def test_the_random_choice_is_seeded_and_a_share_of_it_is_a_part_of_a_larger_one():
    tokens = made_up()
    table = choices_table(tokens, seed=5)
    pd.testing.assert_frame_equal(table, choices_table(tokens, seed=5))
    assert not table.equals(choices_table(tokens, seed=6))
    where = table["chooser"] != "random"
    pd.testing.assert_frame_equal(table[where], choices_table(tokens, seed=6)[where])


def test_intervals_are_those_of_draws_of_whole_texts():
    tokens = made_up(150)
    row = choices_table(tokens, seed=5).set_index(["chooser", "share"]).loc["gate"]
    row = row.iloc[list(row.index.round(2)).index(0.2)]
    chosen = tokens["gate"].rank(method="first", ascending=False) <= round(0.2 * len(tokens))
    here = tokens.assign(value=tokens["improvement"].where(chosen, 0.0))
    low, high = slow_interval([list(part["value"]) for _, part in here.groupby("text")], np.mean)
    assert [row["gain_low"], row["gain_high"]] == pytest.approx([low, high], abs=0.08 * (high - low))


def test_without_a_gate_sampled_thoughts_or_a_marker():
    tokens = made_up().drop(columns=["gate", "nll_swapped"])
    table = choices_table(tokens.assign(after_marker=False), seed=5)
    assert set(table["chooser"]) == {"entropy", "random"}
    assert table["content"].isna().all() and table["kept_content"].isna().all() and table["gain"].notna().all()


@pytest.mark.filterwarnings("error")
def test_where_thoughts_change_nothing_there_is_no_share_of_it():
    tokens = made_up()
    tokens["nll_swapped"] = tokens["nll_thought"]
    table = choices_table(tokens, seed=5)
    assert table["kept_gain"].notna().all() and table["kept_content"].isna().all()
    table = choices_table(tokens.assign(nll_no_thought=tokens["nll_thought"]), seed=5)
    assert table["kept_gain"].isna().all() and (table["gain"] == 0).all()
    harmed = tokens.assign(nll_no_thought=tokens["nll_thought"] - 1, nll_swapped=tokens["nll_thought"] - 1)
    table = choices_table(harmed, seed=5)
    assert table[["kept_gain", "kept_content"]].isna().all(axis=None) and (table["gain"] < 0).all()


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, METASPACE, BYTE_FALLBACK], ids=["bytes", "words", "fallback"])
@pytest.mark.parametrize("marker", ["A:", "\N{THEREFORE}", "答:", "n "])
def test_after_the_marker_is_where_the_text_ends_with_it(
    tokenizer: PreTrainedTokenizerFast, marker: str, tmp_path: Path
):
    """Also a marker whose characters are bytes, each a token of its own; not of the next text."""
    texts = [f"than {marker} 7 or A", f": {marker}{marker}7", f"{marker}  7 {marker}"]
    spans = write_spans(tmp_path / "spans.arrow", tokenizer, texts)
    expected = []
    for text in range(len(texts)):
        ids = spans[text]["input_ids"][spans[text]["attention_mask"] > 0].tolist()
        before = [tokenizer.decode(ids[: i + 1]) for i in range(len(ids) - 1)]
        expected += [some.endswith(marker) or some.rstrip(" ").endswith(marker) for some in before]
    assert list(after_marker(spans, tokenizer, marker)) == expected
    assert any(expected) == (marker in tokenizer.decode(tokenizer(texts[0])["input_ids"]))
