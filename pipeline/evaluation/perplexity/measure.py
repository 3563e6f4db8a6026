"""Where does thinking help? Measure the loss of every token of held-out text, with thoughts and without."""

from pathlib import Path

from pipeline.data.spans import Spans
from pipeline.evaluation.names import AFTER
from pipeline.evaluation.perplexity.choices import after_marker, choices_table
from pipeline.evaluation.perplexity.extremes import extremes_table
from pipeline.evaluation.perplexity.groups import losses_of, summarize, tables_of, with_improvement
from pipeline.evaluation.perplexity.tokens import Passes, loss_before, token_table
from pipeline.evaluation.shared import shared_scratch
from pipeline.files import replacing, write_json, write_table
from pipeline.models.base import read_tokenizer
from pipeline.models.device import autocast, pick_device
from pipeline.models.trained import check_trained, load_plain, load_trained, put
from pipeline.params import Perplexity
from pipeline.training.processes import is_main


def write_perplexity(params: Perplexity, trained: Path, base: Path, heldout: Path, results: Path, marker: str) -> None:
    """Write a row for each token (tokens.parquet) to ``results``, and tables and figures made from them to its tables/.

    A row is that of `token_table`, and whether the token follows the text ``marker`` (after_marker).

    metrics.json: means and intervals. If the method has thoughts, also deciles, kinds, positions and weights.csv (the
    improvement by loss before training, kind of token, position and mixing weight), density.csv (loss before training
    against improvement), extremes.csv (where thoughts changed most) and choices.csv (what is kept of the gain where few
    tokens are thought about). ``base``: the model before training.
    Several processes, which all call this, share the batches, and the main one writes. After a kill the same call
    computes only the missing batches and writes the same bytes (`pipeline.resume`).
    """
    device, inputs = pick_device(params.device), [trained, base, heldout]
    with shared_scratch(f"perplexity/{trained.name}", params, device, inputs, Path(__file__)) as scratch:
        tokenizer = read_tokenizer(trained)
        check_trained(trained)  # before the base model reads, which may take long
        model = put(load_plain(base), device, params.precision)
        spans = Spans(heldout, model.vocabulary, params.texts)
        passes = Passes(params, spans, scratch)
        with autocast(device, params.precision):
            before = loss_before(model, passes)
        del model  # so that one model is in memory at a time
        model = put(load_trained(trained), device, params.precision)
        with autocast(device, params.precision):
            tokens = token_table(params, model, tokenizer, before, passes)
        if not is_main():
            return
        tokens[AFTER] = after_marker(spans, tokenizer, marker)
        write_table(results / "tokens.parquet", tokens)
        with replacing(results / "tables") as folder:
            folder.mkdir()
            metrics = losses_of(tokens)
            if "nll_thought" in tokens:
                tokens = with_improvement(tokens)
                tables = tables_of(tokens) | {"extremes": extremes_table(tokens, spans, tokenizer)}
                tables["choices"] = choices_table(tokens, params.seed)
                metrics |= summarize(tokens, tables["deciles"])
                for name, table in tables.items():
                    write_table(folder / f"{name}.csv", table)
            write_json(folder / "metrics.json", metrics)
