"""Where thoughts changed most: the passages and the single tokens with the largest gains and losses."""

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from pipeline.data.spans import Spans

EACH = 10  # rows: for each kind (passages, thoughts) and side (gain, loss, content)
EXCERPT = 400  # characters
COLUMNS = ["what", "side", "rank", "text", "position", "token", "thought", "base_loss"]
COLUMNS += ["improvement", "content", "excerpt"]


def extremes_table(tokens: pd.DataFrame, spans: Spans, tokenizer: PreTrainedTokenizerBase) -> pd.DataFrame:
    """Up to `EACH` passages and thoughts for each side, the largest change first.

    what: passage (a text, with means over its tokens) or thought (a token and the thought before it). side: gain and
    loss by the improvement; content, where thoughts are sampled, by the loss after another text's thought less that
    after its own. excerpt: the text before the token, or the passage's beginning. Line ends become "\\n": a lone
    carriage return would end a CSV row.
    """
    tokens = tokens.assign(content=tokens["nll_swapped"] - tokens["nll_thought"] if "nll_swapped" in tokens else np.nan)
    means = tokens.groupby("text")[["nll_before", "improvement", "content"]].mean().reset_index()
    sides = []
    for what, table in (("passage", means), ("thought", tokens)):
        sizes = {"gain": table["improvement"], "loss": -table["improvement"], "content": table["content"]}
        for side, gain in sizes.items():
            order = gain[gain > 0].sort_values(ascending=False, kind="stable").index[:EACH]
            sides.append(table.loc[order].assign(what=what, side=side, rank=range(1, len(order) + 1)))
    found = pd.concat(sides, ignore_index=True)
    found = found.rename(columns={"nll_before": "base_loss"}).astype({"position": "Int64"})
    excerpts = []
    for row in found.itertuples():
        span = spans[row.text]
        ids = span["input_ids"][span["attention_mask"] > 0].tolist()
        before = ids if row.what == "passage" else ids[: row.position]
        text = tokenizer.decode(before, clean_up_tokenization_spaces=False)
        if len(text) > EXCERPT:
            text = text[:EXCERPT] + "…" if row.what == "passage" else "…" + text[-EXCERPT:]
        excerpts.append(text)
    texts = found.assign(excerpt=excerpts)[["token", "thought", "excerpt"]].fillna("")
    return found.assign(**texts.replace("\r\n?", "\n", regex=True))[COLUMNS]
