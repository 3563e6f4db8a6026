"""Measure an arm's loss of held-out tokens, with thoughts and without: `python -m stages.perplexity METHOD SEED`."""

from functools import partial
from pathlib import Path

from pipeline import errors, params
from pipeline.evaluation.perplexity.measure import write_perplexity
from pipeline.training.launch import launch


def main(method: str, seed: str) -> None:
    every = params.load()
    perplexity = every.perplexity
    run = partial(
        write_perplexity,
        perplexity,
        trained=Path(f"models/trained/{method}-{seed}"),
        base=Path("models/base"),
        heldout=Path("data/tokens/heldout.arrow"),
        results=Path(f"results/perplexity/{method}-{seed}"),
        marker=every.train.thinking.marker,
    )
    launch(perplexity.launcher, __spec__.name, run)


if __name__ == "__main__":
    errors.run_stage(main, "METHOD", "SEED")
