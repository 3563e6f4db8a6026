"""Where does thinking help? Measure the loss of every token of held-out text, with thoughts and without."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.data.spans import Spans
from pipeline.evaluation.perplexity.extremes import extremes_table
from pipeline.evaluation.perplexity.groups import (
    GROUPINGS,
    THRESHOLD,
    density_table,
    group_table,
    interval_over_texts,
    with_improvement,
)
from pipeline.evaluation.perplexity.tokens import LOSSES, Passes, loss_before, token_table
from pipeline.evaluation.statistics import SHARE, SHARE_DIFFERENCE
from pipeline.files import replacing, write_json, write_table
from pipeline.models.base import read_tokenizer
from pipeline.models.device import pick_device
from pipeline.models.trained import check_trained, load_plain, load_trained
from pipeline.params import Perplexity
from pipeline.resume import resumable


def write_perplexity(params: Perplexity, trained: Path, base: Path, heldout: Path, results: Path) -> None:
    """Write a row for each token (tokens.parquet) to ``results``, and tables and figures made from them to its tables/.

    metrics.json: means and intervals. If the method has thoughts, also deciles, kinds, positions and weights.csv (the
    improvement by loss before training, kind of token, position and mixing weight), density.csv (loss before training
    against improvement) and extremes.csv (where thoughts changed most). ``base``: the model before training.
    After a kill the same call computes only the missing batches and writes the same bytes (`pipeline.resume`).
    """
    about, inputs = asdict(params) | {"device": pick_device(params.device)}, [trained, base, heldout]
    with resumable(f"perplexity/{trained.name}", about, inputs, Path(__file__)) as scratch:
        tokenizer = read_tokenizer(trained)
        check_trained(trained)  # before the base model reads, which may take long
        model = load_plain(base).to(about["device"])
        spans = Spans(heldout, model.vocabulary, params.texts)
        passes = Passes(params, spans, scratch)
        before = loss_before(model, passes)
        del model  # so that one model is in memory at a time
        tokens = token_table(params, load_trained(trained).to(about["device"]), tokenizer, before, passes)
        write_table(results / "tokens.parquet", tokens)
        with replacing(results / "tables") as folder:
            folder.mkdir()
            metrics = losses_of(tokens)
            if "nll_thought" in tokens:
                tokens = with_improvement(tokens)
                tables = {name: group_table(tokens, grouped(tokens)) for name, grouped in GROUPINGS.items()}
                metrics |= summarize(tokens, tables["deciles"])
                tables |= {"density": density_table(tokens), "extremes": extremes_table(tokens, spans, tokenizer)}
                for name, table in tables.items():
                    write_table(folder / f"{name}.csv", table)
            write_json(folder / "metrics.json", metrics)


def losses_of(tokens: pd.DataFrame) -> dict:
    """The mean loss (nats) and the perplexity of each way that there is, over all tokens."""
    loss = {name.removeprefix("nll_"): float(tokens[name].mean()) for name in LOSSES if name in tokens}
    perplexity = {way: float(np.exp(value)) for way, value in loss.items()}
    return {"n_texts": int(tokens["text"].nunique()), "n_tokens": len(tokens), "loss": loss, "perplexity": perplexity}


def summarize(tokens: pd.DataFrame, deciles: pd.DataFrame) -> dict:
    """What metrics.json says of thoughts: means over all tokens (nats), some with intervals over texts.

    ``tokens`` has improvement, helped and hurt (`with_improvement`); ``deciles`` is the table of deciles.csv.
    """
    found = {}
    for name, kind, bounds in (("improvement", "mean", None), ("helped", "share", SHARE), ("hurt", "share", SHARE)):
        low, high = interval_over_texts(tokens[name], tokens["text"], bounds)
        found[name] = {kind: float(tokens[name].mean()), "ci_low": low, "ci_high": high}
    changed = tokens[tokens["helped"] | tokens["hurt"]]  # the ranks of the other tokens are rounding and noise
    columns = ["decile", "base_loss", "improvement", "ci_low", "ci_high", "n"]
    return found | {
        "threshold": THRESHOLD,
        "mixing_weight": float(tokens["weight"].mean()),
        "agreement": {**agreement(changed), "n_tokens": len(changed)},
        "deciles": deciles.rename(columns={"group": "decile"})[columns].to_dict("records"),
    }


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
