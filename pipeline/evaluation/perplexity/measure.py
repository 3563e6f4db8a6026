"""Where does thinking help? Measure the loss of every token of held-out text, with thoughts and without."""

from dataclasses import asdict
from pathlib import Path

from pipeline.data.spans import Spans
from pipeline.evaluation.perplexity.extremes import extremes_table
from pipeline.evaluation.perplexity.groups import GROUPINGS, density_table, group_table, with_improvement
from pipeline.evaluation.perplexity.summary import summarize
from pipeline.evaluation.perplexity.tokens import token_table
from pipeline.files import write_json, write_table
from pipeline.models.base import read_tokenizer
from pipeline.models.device import pick_device
from pipeline.models.trained import base_of, load_trained
from pipeline.params import Perplexity
from pipeline.resume import resumable


def write_perplexity(params: Perplexity, trained: Path, heldout: Path, results: Path) -> None:
    """Write a row for each token (tokens.parquet), and tables and figures made from them, to the folder ``results``.

    deciles, kinds, positions and weights.csv: the improvement by base loss, kind of token, position and mixing weight;
    density.csv: base loss against improvement; extremes.csv: where thoughts changed most; metrics.json: the rest.
    After a kill the same call computes only the missing batches and writes the same bytes (`pipeline.resume`).
    """
    device = pick_device(params.device)
    inputs = [path for path in (trained, base_of(trained), heldout) if path is not None]
    with resumable("perplexity", asdict(params) | {"device": device}, inputs, Path(__file__)) as scratch:
        model, tokenizer = load_trained(trained).to(device), read_tokenizer(trained)
        spans = Spans(heldout, model.vocabulary, params.texts)
        tokens = token_table(params, model, tokenizer, spans, scratch)
        write_table(results / "tokens.parquet", tokens)
        tokens = with_improvement(tokens)
        tables = {name: group_table(tokens, grouped(tokens), params) for name, grouped in GROUPINGS.items()}
        tables |= {"density": density_table(tokens), "extremes": extremes_table(tokens, spans, tokenizer)}
        for name, table in tables.items():
            write_table(results / f"{name}.csv", table)
        write_json(results / "metrics.json", summarize(tokens, tables["deciles"], params))
