"""How fast a model of a given shape thinks, and how exactly: ``python -m pipeline.bench WHAT``, one JSON line each.

The model has random weights, so nothing is read or downloaded; only torch and transformers are needed.
``gemm_fraction`` is the useful work (`pipeline.models.work`) per second over the rate of plain matrix products of the
step's own shapes. ``peak_memory_bytes`` is above what the process had with its libraries loaded and no model;
``peak_process_bytes`` is all of the process.
"""

import argparse
import json
from pathlib import Path

import torch
import yaml

from pipeline.bench import measure
from pipeline.errors import UserError, run
from pipeline.models.device import keep_memory
from pipeline.thought.attention import PATHS, pick

LARGEST = 10**6  # of any size
WHAT = {
    "train": measure.measure_training,
    "generate": measure.measure_generation,
    "precision": measure.measure_precision,
}
SIZES = yaml.safe_load(Path(__file__).with_name("sizes.yaml").read_text(encoding="utf-8"))


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, measure, and print one line of JSON."""
    options = parse(arguments)
    options.attention = pick(options.attention, torch.device(options.device))
    keep_memory()
    torch.manual_seed(measure.SEED)
    before = measure.peak_memory(options.device)
    if options.model:
        model, ids = measure.read(options)
    else:
        model = measure.build(options)
        # all but the two meta-tokens
        ids = torch.randint(0, options.vocab - 2, (options.batch, options.tokens), device=options.device)
    measured = WHAT[options.what](model, ids, options)
    record = {
        "what": options.what,
        **measured,
        "peak_memory_bytes": measure.peak_memory(options.device) - before,
        "peak_process_bytes": measure.peak_memory("cpu"),
        **({} if options.what == "precision" else measure.gemm_rates(model, options, measured)),
        "parameters": sum(p.numel() for p in model.parameters()),
        **vars(options),
        "seed": measure.SEED,
        **measure.machine(options.device),
    }
    print(json.dumps(record))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the options. Raises UserError if they contradict each other, or ask for a GPU and there is none."""
    parser = argparse.ArgumentParser("python -m pipeline.bench", description=__doc__.splitlines()[0].replace("``", ""))
    parser.add_argument("what", choices=list(WHAT))
    for name, (default, text) in SIZES.items():
        parser.add_argument(f"--{name}", type=whole_number, default=default, help=f"{text} ({default})")
    parser.add_argument("--positions", type=whole_number, default=None, help="positions that think at a time (all)")
    parser.add_argument("--share", type=float, default=1.0, help="of the positions that think (1)")
    parser.add_argument("--choose", choices=["random", "entropy", "gate"], default="random", help="which (random)")
    parser.add_argument("--model", help="precision of a model's folder, in place of random weights")
    parser.add_argument("--text", help="a file with the text that it reads")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--attention", choices=["auto", *PATHS], default="auto")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations in the backward pass")
    parser.add_argument("--freeze-base", action="store_true", help="train only the mixing head and the meta-tokens")
    parser.add_argument("--compile", action="store_true", help="compile the decoder's layers (torch.compile)")
    options = parser.parse_args(arguments)
    if options.hidden % options.heads or options.heads % options.kv_heads:
        raise UserError("--heads must divide --hidden, and --kv-heads must divide --heads")
    if options.hidden // options.heads % 2:
        raise UserError("--hidden over --heads must be even, for rotary position embeddings")
    if options.vocab < 3:
        raise UserError("--vocab must be at least 3: two tokens are the meta-tokens, which are never sampled")
    if options.tokens < options.lookahead + 2:
        raise UserError("--tokens must be at least --lookahead + 2, or no thought has a reward")
    if bool(options.model) != bool(options.text) or options.model and options.what != "precision":
        raise UserError("--model and --text go together, with precision")
    if options.what == "precision" and options.rationales < 2:
        raise UserError("--rationales must be at least 2: an advantage compares thoughts at one position")
    if not 0 < options.share <= 1:
        raise UserError("--share must be above 0 and at most 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but no CUDA GPU is usable here")
    return options


def whole_number(text: str) -> int:
    value = int(text)
    if not 1 <= value <= LARGEST:
        raise argparse.ArgumentTypeError(f"{value} is not between 1 and {LARGEST}")
    return value


if __name__ == "__main__":
    run(main)
