"""Ask the trained model GSM8K's and CommonsenseQA's questions, with thoughts and without."""

from pathlib import Path

from pipeline import errors, params
from pipeline.evaluation import write_evaluation


def main() -> None:
    write_evaluation(
        params.load().evaluate,
        trained=Path("models/quiet_star"),
        questions=Path("data/corpus/tasks"),
        results=Path("results/evaluate"),
    )


if __name__ == "__main__":
    errors.run(main)
