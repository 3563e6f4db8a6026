"""Where thoughts changed most: the passages and the single tokens with the largest gain and loss."""

from collections.abc import Iterator

import pandas as pd
from transformers import PreTrainedTokenizerBase

from pipeline.data.spans import Spans

EACH = 10  # passages, and thoughts, a side
EXCERPT = 400  # characters
COLUMNS = (
    "what",
    "side",
    "rank",
    "text",
    "position",
    "token",
    "thought",
    "base_loss",
    "improvement",
    "excerpt",
)


def extremes_table(tokens: pd.DataFrame, spans: Spans, tokenizer: PreTrainedTokenizerBase) -> pd.DataFrame:
    """Up to `EACH` passages and thoughts a side, largest change first; of a side only what did gain, or lose.

    what: passage (a text, whose figures are means over its tokens) or thought (a token and the thought before it);
    excerpt: the text before the token, or the passage's beginning. Line ends are as Unix has them: a lone carriage
    return would end a row of a CSV file.
    """
    means = tokens.groupby("text")[["nll_no_thought", "improvement"]].mean().reset_index()
    found = pd.concat([*_sides(means, "passage"), *_sides(tokens, "thought")], ignore_index=True)
    found = found.rename(columns={"nll_no_thought": "base_loss"}).astype({"position": "Int64"})
    found["excerpt"] = [_excerpt(row, spans, tokenizer) for row in found.itertuples()]
    texts = found[["token", "thought", "excerpt"]].fillna("").replace("\r\n?", "\n", regex=True)
    return found.assign(**texts)[[*COLUMNS]]


def _sides(table: pd.DataFrame, what: str) -> Iterator[pd.DataFrame]:
    for side, gain in (("gain", table["improvement"]), ("loss", -table["improvement"])):
        order = gain[gain > 0].sort_values(ascending=False, kind="stable").index[:EACH]
        yield table.loc[order].assign(what=what, side=side, rank=range(1, len(order) + 1))


def _excerpt(row: tuple, spans: Spans, tokenizer: PreTrainedTokenizerBase) -> str:
    span = spans[row.text]
    ids = span["input_ids"][span["attention_mask"] > 0].tolist()
    if row.what == "passage":
        text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return text if len(text) <= EXCERPT else text[:EXCERPT] + "…"
    text = tokenizer.decode(ids[: row.position], clean_up_tokenization_spaces=False)
    return text if len(text) <= EXCERPT else "…" + text[-EXCERPT:]
