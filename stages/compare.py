"""Compare the arms: their answers question by question, their losses text by text."""

from pathlib import Path

from pipeline import errors, params
from pipeline.evaluation.compare import write_compare


def main() -> None:
    write_compare(
        params.load().arms,
        evaluations=Path("results/evaluate"),
        perplexities=Path("results/perplexity"),
        results=Path("results/compare"),
        summary=Path("results/summary.json"),
    )


if __name__ == "__main__":
    errors.run_stage(main)
