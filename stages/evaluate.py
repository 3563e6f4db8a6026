"""Ask an arm every task's questions, with thoughts and without: `python -m stages.evaluate METHOD SEED`."""

from pathlib import Path

from pipeline import errors, params
from pipeline.evaluation.direct.evaluate import write_evaluation


def main(method: str, seed: str) -> None:
    write_evaluation(
        params.load().evaluate,
        trained=Path(f"models/trained/{method}-{seed}"),
        tasks=Path("data/tasks"),
        results=Path(f"results/evaluate/{method}-{seed}"),
    )


if __name__ == "__main__":
    errors.run_stage(main, "METHOD", "SEED")
