"""Compare the run with the baselines and the base model, question by question."""

from pathlib import Path

from pipeline import errors, params
from pipeline.evaluation.compare import write_compare


def main() -> None:
    every = params.load()
    write_compare(
        every.compare,
        every.baseline,
        every.train.method,
        every.train.seed,
        evaluations=Path("results/evaluate"),
        results=Path("results/compare"),
    )


if __name__ == "__main__":
    errors.run_stage(main)
