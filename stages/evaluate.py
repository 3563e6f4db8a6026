"""Ask the trained model every task's questions, with thoughts and without, and the base model too."""

from pathlib import Path

from pipeline import errors, params
from pipeline.evaluation.direct.evaluate import write_evaluation


def main() -> None:
    write_evaluation(
        params.load().evaluate,
        trained=Path("models/quiet_star"),
        base=Path("models/base"),
        tasks=Path("data/tasks"),
        results=Path("results/evaluate"),
    )


if __name__ == "__main__":
    errors.run_stage(main)
