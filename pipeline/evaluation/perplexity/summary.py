"""What metrics.json says of all held-out tokens together."""

import numpy as np
import pandas as pd

from pipeline.evaluation.perplexity.groups import THRESHOLD, interval_over_texts
from pipeline.params import Perplexity


def summarize(tokens: pd.DataFrame, deciles: pd.DataFrame, params: Perplexity) -> dict:
    """Means over all tokens, those of improvement and shares with their intervals over texts; losses in nats.

    ``tokens`` has improvement, helped and hurt (`with_improvement`); ``deciles`` is the table of deciles.csv.
    """
    loss = {"no_thought": tokens["nll_no_thought"].mean(), "thought": tokens["nll_thought"].mean()}
    columns = ["decile", "base_loss", "improvement", "ci_low", "ci_high", "n"]
    changed = tokens[tokens["helped"] | tokens["hurt"]]  # among the rest it would rank rounding and noise
    return {
        "n_texts": int(tokens["text"].nunique()),
        "n_tokens": len(tokens),
        "loss": {way: float(value) for way, value in loss.items()},
        "perplexity": {way: float(np.exp(value)) for way, value in loss.items()},
        "improvement": _estimate("mean", tokens["improvement"], tokens["text"], params),
        "helped": _estimate("share", tokens["helped"], tokens["text"], params),
        "hurt": _estimate("share", tokens["hurt"], tokens["text"], params),
        "threshold": THRESHOLD,
        "mixing_weight": float(tokens["weight"].mean()),
        "agreement": {**agreement(changed, params), "n_tokens": len(changed)},
        "deciles": deciles.rename(columns={"group": "decile"})[columns].to_dict("records"),
    }


def _estimate(name: str, values: pd.Series, texts: pd.Series, params: Perplexity) -> dict[str, float]:
    low, high = interval_over_texts(values, texts, params)
    return {name: float(values.mean()), "ci_low": low, "ci_high": high}


def agreement(tokens: pd.DataFrame, params: Perplexity) -> dict[str, float | None]:
    """Does the mixing head trust the thoughts that help? Spearman's correlation of its weight and the improvement.

    All three values are None where there is no such correlation, as one of the two is constant (method no_thought).

    The interval draws whole texts. Tokens are ranked once: with z and v the standardized ranks and rho the mean of
    their products, a draw changes the correlation, to first order, by the mean over its tokens of
    z v - rho (z^2 + v^2) / 2, so that sums over texts are enough.
    """
    if min(tokens["weight"].nunique(), tokens["improvement"].nunique()) < 2:
        return {"spearman": None, "ci_low": None, "ci_high": None}
    z, v = (_standardized(tokens[name].rank()) for name in ("weight", "improvement"))
    rho = float((z * v).mean())
    ends = interval_over_texts(rho + z * v - rho * (z**2 + v**2) / 2, tokens["text"], params)
    low, high = (min(max(end, -1.0), 1.0) for end in ends)
    return {"spearman": rho, "ci_low": low, "ci_high": high}


def _standardized(values: pd.Series) -> pd.Series:
    return (values - values.mean()) / values.std(ddof=0)
