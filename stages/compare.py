"""Compare the arms, question by question and token by token."""

from pathlib import Path

from pipeline import errors, params
from pipeline.evaluation.compare import write_compare


def main() -> None:
    every = params.load()
    write_compare(
        every.compare,
        every.arms,
        evaluations=Path("results/evaluate"),
        perplexities=Path("results/perplexity"),
        training=Path("results/train"),
        results=Path("results/compare"),
        summary=Path("results/summary.json"),
    )


if __name__ == "__main__":
    errors.run_stage(main)
