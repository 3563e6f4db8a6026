"""Measure an arm's loss of held-out tokens, with thoughts and without: `python -m stages.perplexity METHOD SEED`."""

from pathlib import Path

from pipeline import errors, params
from pipeline.evaluation.perplexity.measure import write_perplexity


def main(method: str, seed: str) -> None:
    write_perplexity(
        params.load().perplexity,
        trained=Path(f"models/trained/{method}-{seed}"),
        base=Path("models/base"),
        heldout=Path("data/tokens/heldout.arrow"),
        results=Path(f"results/perplexity/{method}-{seed}"),
    )


if __name__ == "__main__":
    errors.run_stage(main, "METHOD", "SEED")
