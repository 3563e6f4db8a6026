"""Where to think, if not everywhere: what is kept of the thoughts' gain where a rule chooses few of the tokens."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from pipeline.data.marker import follow_marker
from pipeline.data.spans import Spans
from pipeline.evaluation.names import AFTER
from pipeline.evaluation.perplexity.groups import interval_over_texts

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
GATE, ENTROPY, RANDOM, MARKER = "gate", "entropy", "random", "marker"
COLUMNS = ["chooser", "share", "loss", "gain", "gain_low", "gain_high", "content", "content_low", "content_high"]
COLUMNS += ["kept_gain", "kept_content"]


def choices_table(tokens: pd.DataFrame, seed: int) -> pd.DataFrame:
    """A row for each chooser and share of the tokens, chosen from all texts together; elsewhere nothing is thought.

    chooser: gate, where the model has one (the largest gains that it expects); entropy (the least certain predictions
    without a thought); random, drawn from ``seed``; marker, the tokens after the marker (column after_marker), at
    their own share, which the others have a row for, too. None of them sees the token that is predicted. loss (nats a
    token), gain (over no thoughts) and content (the loss after another text's thought less that after the own, where
    own thoughts are sampled) are means over all tokens, with intervals over texts; kept_gain and kept_content are
    shares of what thoughts everywhere give, where that is above 0 for certain.
    """
    rows, gains = [], tokens["nll_no_thought"] - tokens["nll_thought"]
    measures = {"gain": gains}
    if "nll_swapped" in tokens:
        measures["content"] = tokens["nll_swapped"] - tokens["nll_thought"]
    gives = [name for name, values in measures.items() if interval_over_texts(values, tokens["text"])[0] > 0]
    for chooser, chosen in _choices(tokens, seed):
        row = {"chooser": chooser, "share": chosen.mean(), "loss": (tokens["nll_no_thought"] - gains * chosen).mean()}
        for name, values in measures.items():
            here = values.where(chosen, 0.0)
            low, high = interval_over_texts(here, tokens["text"])
            row |= {name: here.mean(), f"{name}_low": low, f"{name}_high": high}
            if name in gives:
                row[f"kept_{name}"] = here.sum() / values.sum()
        rows.append(row)
    return pd.DataFrame(rows).reindex(columns=COLUMNS)


def _choices(tokens: pd.DataFrame, seed: int) -> Iterator[tuple[str, pd.Series]]:
    """The choosers, each with which of the tokens (n,) it chooses, for each share."""
    after = tokens[AFTER]
    shares = sorted({*SHARES, *([after.mean()] if after.any() else [])})
    scores = {GATE: tokens["gate"]} if "gate" in tokens else {}
    scores |= {ENTROPY: tokens["entropy"], RANDOM: pd.Series(np.random.default_rng(seed).random(len(tokens)))}
    for chooser, values in scores.items():
        ranks = values.rank(method="first", ascending=False)
        for share in shares:
            yield chooser, ranks <= round(share * len(tokens))
    if after.any():
        yield MARKER, after


def after_marker(spans: Spans, tokenizer: PreTrainedTokenizerBase, marker: str) -> np.ndarray:
    """Whether the text before each predicted token (n,) of all ``spans`` ends with ``marker`` or with that and spaces.

    Whole texts are decoded, as tokens one by one would lose characters whose bytes they share.
    """
    known: dict[int, bool] = {}
    texts = (span["input_ids"][None, span["attention_mask"] > 0] for span in map(spans.__getitem__, range(len(spans))))
    return torch.cat([follow_marker(ids, marker, tokenizer, known)[0, :-1] for ids in texts]).numpy()
