"""Where to think, if not everywhere: what is kept of the thoughts' gain where a rule chooses few of the tokens."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from pipeline.evaluation.perplexity.groups import interval_over_texts

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
GATE, ENTROPY, RANDOM, MARKER = "gate", "entropy", "random", "marker"
COLUMNS = ["chooser", "share", "loss", "gain", "gain_low", "gain_high", "content", "content_low", "content_high"]
COLUMNS += ["kept_gain", "kept_content"]


def choices_table(tokens: pd.DataFrame, marker: str, seed: int) -> pd.DataFrame:
    """A row for each chooser and share of the tokens, chosen from all texts together; elsewhere nothing is thought.

    chooser: gate, where the model has one (the largest gains that it expects); entropy (the least certain predictions
    without a thought); random, drawn from ``seed``; marker, the tokens right after the text ``marker``, at their own
    share, which the others have a row for, too. None of them sees the token that is predicted. loss (nats a token),
    gain (over no thoughts) and content (the loss after another text's thought less that after the own, where own
    thoughts are sampled) are means over all tokens, with intervals over texts; kept_gain and kept_content are shares of
    what thoughts everywhere give.
    """
    rows, gains = [], tokens["nll_no_thought"] - tokens["nll_thought"]
    measures = {"gain": gains}
    if "nll_swapped" in tokens:
        measures["content"] = tokens["nll_swapped"] - tokens["nll_thought"]
    for chooser, chosen in _choices(tokens, marker, seed):
        row = {"chooser": chooser, "share": chosen.mean(), "loss": (tokens["nll_no_thought"] - gains * chosen).mean()}
        for name, values in measures.items():
            here = values.where(chosen, 0.0)
            low, high = interval_over_texts(here, tokens["text"])
            row |= {name: here.mean(), f"{name}_low": low, f"{name}_high": high}
            if whole := values.sum():  # of nothing there is no share
                row[f"kept_{name}"] = here.sum() / whole
        rows.append(row)
    return pd.DataFrame(rows).reindex(columns=COLUMNS)


def _choices(tokens: pd.DataFrame, marker: str, seed: int) -> Iterator[tuple[str, pd.Series]]:
    """The choosers, each with which of the tokens (n,) it chooses, for each share."""
    after = follows(tokens, marker)
    shares = sorted({*SHARES, *([after.mean()] if after.any() else [])})
    scores = {GATE: tokens["gate"]} if "gate" in tokens else {}
    scores |= {ENTROPY: tokens["entropy"], RANDOM: pd.Series(np.random.default_rng(seed).random(len(tokens)))}
    for chooser, values in scores.items():
        ranks = values.rank(method="first", ascending=False)
        for share in shares:
            yield chooser, ranks <= round(share * len(tokens))
    if after.any():
        yield MARKER, after


def follows(tokens: pd.DataFrame, marker: str) -> pd.Series:
    """Whether the text before each token (n,) ends with ``marker`` or with that and spaces.

    A text's first token aside: no row has that.
    """
    found = []
    for _, text in tokens.groupby("text", sort=False)["token"]:
        whole, end = "".join(text), 0
        for token in text:
            before = whole[:end]
            found.append(before.endswith(marker) or before.rstrip(" ").endswith(marker))
            end += len(token)
    return pd.Series(found, index=tokens.index)
