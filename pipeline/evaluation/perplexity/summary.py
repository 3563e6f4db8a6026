"""What metrics.json says of all held-out tokens together."""

import numpy as np
import pandas as pd

from pipeline.evaluation.perplexity.groups import THRESHOLD, interval_over_texts
from pipeline.params import Perplexity


def summarize(tokens: pd.DataFrame, deciles: pd.DataFrame, params: Perplexity) -> dict:
    """Means over all tokens (losses in nats); the improvement and the shares have intervals over texts.

    ``tokens`` has improvement, helped and hurt (`with_improvement`); ``deciles`` is the table of deciles.csv.
    """

    def estimate(name: str, column: str) -> dict[str, float]:
        low, high = interval_over_texts(tokens[column], tokens["text"], params)
        return {name: float(tokens[column].mean()), "ci_low": low, "ci_high": high}

    loss = {"no_thought": tokens["nll_no_thought"].mean(), "thought": tokens["nll_thought"].mean()}
    changed = tokens[tokens["helped"] | tokens["hurt"]]  # the ranks of the other tokens are rounding and noise
    columns = ["decile", "base_loss", "improvement", "ci_low", "ci_high", "n"]
    return {
        "n_texts": int(tokens["text"].nunique()),
        "n_tokens": len(tokens),
        "loss": {way: float(value) for way, value in loss.items()},
        "perplexity": {way: float(np.exp(value)) for way, value in loss.items()},
        "improvement": estimate("mean", "improvement"),
        "helped": estimate("share", "helped"),
        "hurt": estimate("share", "hurt"),
        "threshold": THRESHOLD,
        "mixing_weight": float(tokens["weight"].mean()),
        "agreement": {**agreement(changed, params), "n_tokens": len(changed)},
        "deciles": deciles.rename(columns={"group": "decile"})[columns].to_dict("records"),
    }


def agreement(tokens: pd.DataFrame, params: Perplexity) -> dict[str, float | None]:
    """Does the mixing head trust the thoughts that help? Spearman's correlation of its weight and the improvement.

    All three values are None if one of the two is constant (as with method no_thought): then there is no correlation.

    The interval draws whole texts, but tokens are ranked only once. With z and v the standardized ranks and rho the
    mean of their products, a draw changes the correlation, to first order, by the mean over its tokens of
    z v - rho (z^2 + v^2) / 2. So sums over texts are enough.
    """
    if min(tokens["weight"].nunique(), tokens["improvement"].nunique()) < 2:
        return {"spearman": None, "ci_low": None, "ci_high": None}
    ranks = (tokens[name].rank() for name in ("weight", "improvement"))
    z, v = ((rank - rank.mean()) / rank.std(ddof=0) for rank in ranks)
    rho = float((z * v).mean())
    ends = interval_over_texts(rho + z * v - rho * (z**2 + v**2) / 2, tokens["text"], params)
    low, high = (min(max(end, -1.0), 1.0) for end in ends)
    return {"spearman": rho, "ci_low": low, "ci_high": high}
