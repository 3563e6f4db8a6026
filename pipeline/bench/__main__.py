"""How fast a model of a given shape thinks: ``python -m pipeline.bench train`` or ``generate``, one JSON line each.

The model has random weights, so nothing is read or downloaded; torch and transformers are all it needs.
``gemm_fraction`` is useful work (`work`) over what the device's matrix products do on the step's own shapes.
``peak_memory_bytes`` is above what the process had with its libraries loaded and no model; ``peak_process_bytes`` is
all of the process.
"""

import argparse
import json

import torch

from pipeline.bench.machine import DTYPES, machine, memory_now, peak_memory
from pipeline.bench.measure import SEED, build, measure_generation, measure_training
from pipeline.bench.work import gemm_rates
from pipeline.errors import UserError, run
from pipeline.models.device import keep_memory
from pipeline.thought.attention import PATHS, pick

SMALLEST, LARGEST = 3, 10**6  # vocabulary; any size
SIZES = {
    "hidden": (256, "hidden size D"),
    "layers": (4, "decoder layers"),
    "heads": (8, "query heads H"),
    "kv-heads": (4, "key-value heads G"),
    "ffn": (896, "size of the feed-forward layer"),
    "vocab": (4096, "vocabulary V"),
    "tokens": (256, "tokens N of a text, or of a prompt"),
    "batch": (1, "texts B"),
    "rationales": (2, "thoughts R at a position"),
    "thought-tokens": (9, "sampled tokens K of a thought"),
    "lookahead": (4, "true tokens A that a thought is judged by"),
    "repeats": (5, "steps measured, after one that is not; their median is reported"),
    "new-tokens": (32, "tokens written by generate"),
}


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, measure, print one line of JSON."""
    options = parse(arguments)
    keep_memory()
    torch.manual_seed(SEED)
    before = memory_now(options.device)
    model = build(options)
    measured = {"train": measure_training, "generate": measure_generation}[options.what](model, options)
    peak = peak_memory(options.device)
    record = {
        "what": options.what,
        **measured,
        "peak_memory_bytes": peak - before,
        "peak_process_bytes": peak_memory("cpu"),
        **gemm_rates(model, options, measured),
        "parameters": sum(p.numel() for p in model.parameters()),
        **settings(options),
        **machine(options.device),
    }
    print(json.dumps(record))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options. Raises UserError where they ask for a GPU that is not there, or do not fit each other."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.bench", description=__doc__.splitlines()[0].replace("``", "")
    )
    parser.add_argument("what", choices=["train", "generate"])
    for name, (default, text) in SIZES.items():
        parser.add_argument(f"--{name}", type=positive, default=default, help=f"{text} ({default})")
    parser.add_argument("--positions", type=positive, default=None, help="positions that think at a time (all)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=[*DTYPES], default="float32")
    parser.add_argument("--attention", choices=["auto", *PATHS], default="auto")
    parser.add_argument("--checkpointing", action="store_true", help="compute activations again in the backward pass")
    parser.add_argument("--freeze-base", action="store_true", help="train the mixing head and the meta-tokens only")
    parser.add_argument("--compile", action="store_true", help="compile the decoder's layers (torch.compile)")
    options = parser.parse_args(arguments)
    if options.hidden % options.heads or options.heads % options.kv_heads:
        raise UserError("--heads must divide --hidden, and --kv-heads must divide --heads")
    if options.hidden // options.heads % 2:
        raise UserError("--hidden over --heads must be even, for rotary position embeddings")
    if options.vocab < SMALLEST:
        raise UserError(f"--vocab must be at least {SMALLEST}: two tokens are the meta-tokens, which are never sampled")
    if options.tokens < options.lookahead + 2:
        raise UserError("--tokens must be at least --lookahead + 2, or no thought has a reward")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but no CUDA GPU is usable here")
    return options


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    if value > LARGEST:
        raise argparse.ArgumentTypeError(f"{value} is not at most {LARGEST}")
    return value


def settings(options: argparse.Namespace) -> dict:
    left_out = ("what", "attention")
    kept = {name: value for name, value in vars(options).items() if name not in left_out}
    return {**kept, "attention": pick(options.attention, torch.device(options.device)), "seed": SEED}


if __name__ == "__main__":
    run(main)
