"""What the table of tokens says: means, the improvement by group of tokens, and its density."""

import numpy as np
import pandas as pd

from pipeline.evaluation.perplexity.kinds import KINDS
from pipeline.evaluation.statistics import SHARE, SHARE_DIFFERENCE, Totals, mean_interval

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
    """The 95 % interval of the mean over tokens of ``values``, which ``bounds`` enclose; a text's tokens are alike.

    It is NaN of one text if there are no bounds.
    """
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


def tables_of(tokens: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The tables of `GROUPINGS` by name, and the density."""
    tables = {name: group_table(tokens, grouped(tokens)) for name, grouped in GROUPINGS.items()}
    return tables | {"density": density_table(tokens)}


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


def losses_of(tokens: pd.DataFrame) -> dict:
    """The mean loss (nats) and the perplexity of each way that there is, over all tokens."""
    loss = {name.removeprefix("nll_"): float(tokens[name].mean()) for name in tokens if name.startswith("nll_")}
    perplexity = {way: float(np.exp(value)) for way, value in loss.items()}
    return {"n_texts": int(tokens["text"].nunique()), "n_tokens": len(tokens), "loss": loss, "perplexity": perplexity}


def summarize(tokens: pd.DataFrame, deciles: pd.DataFrame) -> dict:
    """What metrics.json says of thoughts: means over all tokens (nats), some with intervals over texts.

    ``tokens`` has improvement, helped and hurt (`with_improvement`); ``deciles`` is the table of deciles.csv.
    """
    found = {}
    for name, kind, bounds in (("improvement", "mean", None), ("helped", "share", SHARE), ("hurt", "share", SHARE)):
        low, high = interval_over_texts(tokens[name], tokens["text"], bounds)
        found[name] = _json({kind: float(tokens[name].mean()), "ci_low": low, "ci_high": high})
    changed = tokens[tokens["helped"] | tokens["hurt"]]  # the ranks of the other tokens are rounding and noise
    holds = {name: float(tokens[name].mean()) for name in tokens if name.startswith("holds_next")}
    columns = ["decile", "base_loss", "improvement", "ci_low", "ci_high", "n"]
    rows = deciles.rename(columns={"group": "decile"})[columns].to_dict("records")
    found |= holds | {"threshold": THRESHOLD, "mixing_weight": float(tokens["weight"].mean())}
    return found | {
        "agreement": {**agreement(changed), "n_tokens": len(changed)},
        "deciles": list(map(_json, rows)),
    }


def _json(row: dict) -> dict:
    """The row with None in the place of NaN, which JSON does not have."""
    return {name: None if pd.isna(value) else value for name, value in row.items()}


def agreement(tokens: pd.DataFrame) -> dict[str, float | None]:
    """Does the mixing head trust the thoughts that help? Spearman's correlation of its weight and the improvement.

    All three values are None if one of the two is constant (as with method no_thought): then there is no correlation.

    With z and v the standardized ranks and rho the mean of their products, other texts would change the correlation, to
    first order, by the mean over their tokens of z v - rho (z^2 + v^2) / 2. So sums over texts are enough.
    """
    if min(tokens["weight"].nunique(), tokens["improvement"].nunique()) < 2:
        return {"spearman": None, "ci_low": None, "ci_high": None}
    ranks = (tokens[name].rank() for name in ("weight", "improvement"))
    z, v = ((rank - rank.mean()) / rank.std(ddof=0) for rank in ranks)
    rho = float((z * v).mean())
    low, high = interval_over_texts(rho + z * v - rho * (z**2 + v**2) / 2, tokens["text"], SHARE_DIFFERENCE)
    return {"spearman": rho, "ci_low": low, "ci_high": high}
