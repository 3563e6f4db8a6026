"""Measure the loss of every held-out token, with thoughts and without."""

from pathlib import Path

from pipeline import errors, params
from pipeline.evaluation.perplexity.measure import write_perplexity


def main() -> None:
    write_perplexity(
        params.load().perplexity,
        trained=Path("models/quiet_star"),
        heldout=Path("data/tokens/heldout.arrow"),
        results=Path("results/perplexity"),
    )


if __name__ == "__main__":
    errors.run_stage(main)
