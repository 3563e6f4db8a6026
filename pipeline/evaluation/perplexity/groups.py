"""The improvement by group of tokens: by difficulty, kind, position and mixing weight, and its density."""

import numpy as np
import pandas as pd

from pipeline.evaluation.perplexity.kinds import KINDS
from pipeline.evaluation.statistics import Totals, mean_interval

# nats: a thought helped or hurt a token if it changed its probability by more than 1 %. Rounding in float32 changes a
# loss by less than a thousandth of that, and without a threshold every token would count as one or the other.
THRESHOLD = 0.01
LOSS_CELL, GAIN_CELL = 0.25, 0.1  # nats: the sizes of a cell of the density


def with_improvement(tokens: pd.DataFrame) -> pd.DataFrame:
    """Add to a `token_table` the improvement (nats), and whether the thought helped and whether it hurt."""
    improvement = tokens["nll_no_thought"] - tokens["nll_thought"]
    return tokens.assign(improvement=improvement, helped=improvement > THRESHOLD, hurt=improvement < -THRESHOLD)


def interval_over_texts(
    values: pd.Series, texts: pd.Series, bounds: tuple[float, float] | None = None
) -> tuple[float, float]:
    """The 95 % interval of the mean over tokens of ``values``, which ``bounds`` enclose; a text's tokens are alike."""
    by_text = values.groupby(texts).agg(["sum", "count"]).to_numpy(float)
    low, high = mean_interval(Totals(by_text[None, :, 0], by_text[None, :, 1]), bounds)
    return float(low), float(high)


def group_table(tokens: pd.DataFrame, group: pd.Series) -> pd.DataFrame:
    """A row for each group that has tokens; ``group`` (n,) names each token's and orders the rows.

    share: of all tokens; base_loss (before training), improvement and its interval: nats, means over the group's
    tokens, for which only texts with such tokens count; helped, hurt: shares of the group's tokens.
    """
    numbers = tokens[["text", "nll_before", "improvement", "helped", "hurt"]]
    rows = []
    for name, part in numbers.groupby(group, observed=True):
        low, high = interval_over_texts(part["improvement"], part["text"])
        row = {"group": name, "n": len(part), "share": len(part) / len(tokens)}
        row |= {"base_loss": part["nll_before"].mean(), "improvement": part["improvement"].mean()}
        row |= {"ci_low": low, "ci_high": high, "helped": part["helped"].mean(), "hurt": part["hurt"].mean()}
        rows.append(row)
    return pd.DataFrame(rows)


def by_decile(tokens: pd.DataFrame) -> pd.Series:
    """Tenths of the tokens: before training, 1 is the easiest and 10 the hardest.

    Sorted by a loss that the improvement is made from, a tenth would have an improvement by selection alone.
    """
    return _tenths(tokens["nll_before"], ties="first")


def by_kind(tokens: pd.DataFrame) -> pd.Series:
    return tokens["kind"].astype(pd.CategoricalDtype(KINDS, ordered=True))


def by_position(tokens: pd.DataFrame) -> pd.Series:
    """Positions 1, 2-3, 4-7, 8-15 and so on: each group is twice as wide as the one before."""
    doublings = np.frexp(tokens["position"])[1] - 1  # the base-2 logarithm, rounded down
    labels = {k: "1" if k == 0 else f"{2**k}-{2 ** (k + 1) - 1}" for k in range(doublings.max() + 1)}
    return _labelled(doublings, labels)


def by_weight(tokens: pd.DataFrame) -> pd.Series:
    """Tenths of the tokens by mixing weight, the lowest first; equal weights stay together, so there may be fewer.

    A group's label is its range, in the fewest digits (two at least) that tell the groups apart.
    """
    weight = tokens["weight"] + 0.0  # turns -0 into 0
    tenths = _tenths(weight, ties="max")
    ranges = weight.groupby(tenths).agg(["min", "max"])
    digits, labels = 2, []
    while len(set(labels)) < len(ranges):
        ends = ((f"{low:.{digits}g}", "" if low == high else f" to {high:.{digits}g}") for low, high in ranges.values)
        labels, digits = [low + to for low, to in ends], digits + 1
    return _labelled(tenths, dict(zip(ranges.index, labels, strict=True)))


GROUPINGS = {"deciles": by_decile, "kinds": by_kind, "positions": by_position, "weights": by_weight}


def density_table(tokens: pd.DataFrame) -> pd.DataFrame:
    """Count tokens by base loss and improvement (paper, appendix: distribution of changes): a row for each cell.

    base_loss (before training) and improvement are the cell's centre (nats). Cells start at 0 in base loss and are
    centred on 0 in improvement, so that runs have the same cells.
    """
    row = np.floor(tokens["nll_before"] / LOSS_CELL).astype(int)
    column = np.floor(tokens["improvement"] / GAIN_CELL + 0.5).astype(int)
    cells = tokens.groupby([row.rename("base_loss"), column.rename("improvement")]).size().reset_index(name="tokens")
    return cells.assign(base_loss=(cells["base_loss"] + 0.5) * LOSS_CELL, improvement=cells["improvement"] * GAIN_CELL)


def _tenths(values: pd.Series, ties: str) -> pd.Series:
    return np.ceil(values.rank(method=ties) * 10 / len(values)).astype(int)


def _labelled(codes: pd.Series, labels: dict[int, str]) -> pd.Series:
    return codes.map(labels).astype(pd.CategoricalDtype(list(labels.values()), ordered=True))
