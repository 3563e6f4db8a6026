"""The improvement by group of tokens: by difficulty, kind, position in the text and mixing weight."""

from collections.abc import Callable
from itertools import count

import numpy as np
import pandas as pd

from pipeline.evaluation.perplexity.kinds import KINDS
from pipeline.evaluation.statistics import interval
from pipeline.params import Perplexity

# nats: a thought helped or hurt a token if it changed its probability by more than 1 %. Rounding in float32 changes a
# loss by less than a thousandth of that, and without a threshold every token would count as either.
THRESHOLD = 0.01


def with_improvement(tokens: pd.DataFrame) -> pd.DataFrame:
    """`token_table` with improvement (nats), and whether the thought helped and hurt."""
    improvement = tokens["nll_no_thought"] - tokens["nll_thought"]
    return tokens.assign(improvement=improvement, helped=improvement > THRESHOLD, hurt=improvement < -THRESHOLD)


def interval_over_texts(values: pd.Series, texts: pd.Series, params: Perplexity) -> tuple[float, float]:
    """The interval of the mean of ``values``, a token each; whole texts are drawn, as tokens of one go together."""
    by_text = values.groupby(texts).agg(["sum", "count"])
    return interval(by_text["sum"].to_numpy(), by_text["count"].to_numpy(), params.bootstrap_samples, params.seed)


def group_table(tokens: pd.DataFrame, group: pd.Series, params: Perplexity) -> pd.DataFrame:
    """One row a group that has tokens, in the order of ``group`` (n,).

    share: of all tokens; base_loss, improvement and its interval: nats, means over the group's tokens, the texts drawn
    that have any; helped, hurt: shares of the group's tokens.
    """
    numbers = tokens[["text", "nll_no_thought", "improvement", "helped", "hurt"]]
    rows = []
    for name, part in numbers.groupby(group, observed=True):
        low, high = interval_over_texts(part["improvement"], part["text"], params)
        rows.append(
            {
                "group": name,
                "n": len(part),
                "share": len(part) / len(tokens),
                "base_loss": part["nll_no_thought"].mean(),
                "improvement": part["improvement"].mean(),
                "ci_low": low,
                "ci_high": high,
                "helped": part["helped"].mean(),
                "hurt": part["hurt"].mean(),
            }
        )
    return pd.DataFrame(rows)


def by_decile(tokens: pd.DataFrame) -> pd.Series:
    """Tenths of the tokens, 1 the easiest without thoughts and 10 the hardest."""
    return _tenths(tokens["nll_no_thought"], ties="first")


def by_kind(tokens: pd.DataFrame) -> pd.Series:
    return tokens["kind"].astype(pd.CategoricalDtype(KINDS, ordered=True))


def by_position(tokens: pd.DataFrame) -> pd.Series:
    """Positions 1, 2-3, 4-7, 8-15 and so on, each group twice as wide as the one before."""
    doublings = np.frexp(tokens["position"])[1] - 1  # the whole part of the base-2 logarithm
    labels = {k: "1" if k == 0 else f"{2**k}-{2 ** (k + 1) - 1}" for k in range(doublings.max() + 1)}
    return _labelled(doublings, labels)


def by_weight(tokens: pd.DataFrame) -> pd.Series:
    """Tenths of the tokens from the lowest mixing weight; equal weights stay together, so there may be fewer."""
    weight = tokens["weight"] + 0.0  # no -0
    tenths = _tenths(weight, ties="max")
    return _labelled(tenths, _range_labels(weight.groupby(tenths).agg(["min", "max"])))


GROUPINGS: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "deciles": by_decile,
    "kinds": by_kind,
    "positions": by_position,
    "weights": by_weight,
}


def _tenths(values: pd.Series, ties: str) -> pd.Series:
    return np.ceil(values.rank(method=ties) * 10 / len(values)).astype(int)


def _labelled(codes: pd.Series, labels: dict[int, str]) -> pd.Series:
    return codes.map(labels).astype(pd.CategoricalDtype(list(labels.values()), ordered=True))


def _range_labels(ranges: pd.DataFrame) -> dict[int, str]:
    """A label a row of min and max, with as few digits, two at least, as tell the rows apart."""
    labels = ([_range_label(low, high, digits) for low, high in ranges.itertuples(index=False)] for digits in count(2))
    return dict(zip(ranges.index, next(some for some in labels if len(set(some)) == len(some)), strict=True))


def _range_label(low: float, high: float, digits: int) -> str:
    low_text, high_text = f"{low:.{digits}g}", f"{high:.{digits}g}"
    return low_text if low == high else f"{low_text} to {high_text}"
