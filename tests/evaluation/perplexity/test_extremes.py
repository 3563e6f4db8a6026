"""Where thoughts changed most."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.perplexity.extremes import COLUMNS, EXCERPT, extremes_table
from pipeline.files import write_table
from tests.evaluation.perplexity.made_up import BYTE_LEVEL, METASPACE, random_tokens, write_spans

WORDS = " the 12 What is it?"


def extremes(tokens: pd.DataFrame, folder: Path, texts: list[str], tokenizer=BYTE_LEVEL) -> pd.DataFrame:
    return extremes_table(tokens, write_spans(folder / "spans.arrow", tokenizer, texts), tokenizer)


def read_again(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    write_table(folder / "extremes.csv", table)
    return pd.read_csv(folder / "extremes.csv", dtype=str, keep_default_na=False)


def test_the_largest_gains_and_losses(tmp_path: Path):
    tokens = random_tokens(40, 9).rename(columns={"nll_before": "base_loss"})
    found = extremes(tokens.rename(columns={"base_loss": "nll_before"}), tmp_path, [f"{WORDS} {i}" for i in range(40)])
    assert list(found.columns) == COLUMNS and len(found) == 40
    passages = tokens.groupby("text", as_index=False)[["improvement", "base_loss"]].mean()
    for what, rows in (("passage", passages), ("thought", tokens)):
        for side, ascending in (("gain", False), ("loss", True)):
            part = found[(found["what"] == what) & (found["side"] == side)]
            columns = ["improvement", "base_loss", "text", *(["position"] if what == "thought" else [])]
            best = rows.sort_values("improvement", ascending=ascending)[columns][:10]
            assert part[columns].to_numpy(dtype=float) == pytest.approx(best.to_numpy(dtype=float))
            assert list(part["rank"]) == list(range(1, 11))
    assert found["position"].isna().equals(found["what"] == "passage")
    assert (found.loc[found["what"] == "passage", ["token", "thought"]] == "").all(axis=None)


def test_the_largest_content_effects(tmp_path: Path):
    """What another text's thought loses, whatever is gained over no thought."""
    tokens = random_tokens(40, 9)
    content = np.random.default_rng(3).normal(size=len(tokens))
    tokens = tokens.assign(nll_swapped=tokens["nll_thought"] + content)
    found = extremes(tokens, tmp_path, [f"{WORDS} {i}" for i in range(40)])
    found = found[found["side"] == "content"]
    best = tokens.assign(content=content).sort_values("content", ascending=False)[["text", "position", "content"]][:10]
    shown = found.loc[found["what"] == "thought", ["text", "position", "content"]]
    assert shown.to_numpy(float) == pytest.approx(best.to_numpy(float))
    means = pd.Series(content).groupby(tokens["text"]).mean().sort_values(ascending=False)[:10]
    assert found.loc[found["what"] == "passage", "content"].to_numpy() == pytest.approx(means.to_numpy())


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, METASPACE], ids=["byte-level", "metaspace"])
def test_excerpts_are_the_text_before_the_token_and_the_passage(tokenizer, tmp_path: Path):
    texts = [f"{WORDS} {i}" for i in range(6)]
    tokens = random_tokens(6, 9)
    found = extremes(tokens, tmp_path, texts, tokenizer)
    for row in found.itertuples():
        ids = tokenizer(texts[row.text])["input_ids"]
        expected = texts[row.text].strip() if row.what == "passage" else tokenizer.decode(ids[: row.position])
        assert row.excerpt.strip() == expected.strip() and expected


def test_excerpts_are_cut_where_they_are_long(tmp_path: Path):
    text = "".join(f" {i}," for i in range(300))
    tokens = random_tokens(1, 1).assign(position=500, improvement=1.0)
    passage, thought = extremes(tokens, tmp_path, [text])["excerpt"]
    before = BYTE_LEVEL.decode(BYTE_LEVEL.encode(text)[:500])
    assert passage == text[:EXCERPT] + "…" and thought == "…" + before[-EXCERPT:]


def test_what_did_not_change_is_neither_and_equal_gains_come_in_reading_order(tmp_path: Path):
    tokens = random_tokens(60, 5)
    tokens["improvement"] = np.select([tokens["text"] == 1, tokens["text"] % 3 == 0], [-0.25, 0.5], 0.0)
    found = extremes(tokens, tmp_path, [WORDS] * 60)
    gains, losses = (found[found["side"] == side] for side in ("gain", "loss"))
    assert set(losses["text"]) == {1} and list(gains.loc[gains["what"] == "passage", "text"]) == list(range(0, 30, 3))
    places = ["text", "position"]
    first = tokens.loc[tokens["improvement"] == 0.5, places].head(10)
    assert gains.loc[gains["what"] == "thought", places].to_numpy(dtype=int).tolist() == first.to_numpy().tolist()
    found = read_again(extremes(tokens.assign(improvement=0.0), tmp_path, [WORDS] * 60), tmp_path)
    assert found.empty and list(found.columns) == COLUMNS


def test_any_text_survives_the_table(tmp_path: Path):
    texts = ["a\r\nb\rc", 'He said, "NA"\n', "null"]
    tokens = random_tokens(3, 4)
    tokens["token"], tokens["thought"] = "\r", 'x,"\r\ny'
    table = extremes(tokens, tmp_path, texts)
    found = read_again(table, tmp_path)
    assert len(found) == len(table) and list(found["rank"].astype(int)) == list(table["rank"])
    passages = found[found["what"] == "passage"]
    unix = ["a\nb\nc", *texts[1:]]
    assert list(passages["excerpt"]) == [unix[int(text)] for text in passages["text"]]
    thoughts = found[found["what"] == "thought"]
    assert set(thoughts["token"]) == {"\n"} and set(thoughts["thought"]) == {'x,"\ny'}
    assert (passages["position"] == "").all() and thoughts["position"].str.isdigit().all()
