"""Ask an arm every task's questions, with thoughts and without: `python -m stages.evaluate METHOD SEED`."""

from functools import partial
from pathlib import Path

from pipeline import errors, params
from pipeline.evaluation.direct.evaluate import write_evaluation
from pipeline.training.launch import launch


def main(method: str, seed: str) -> None:
    evaluate = params.load().evaluate
    run = partial(
        write_evaluation,
        evaluate,
        trained=Path(f"models/trained/{method}-{seed}"),
        tasks=Path("data/tasks"),
        results=Path(f"results/evaluate/{method}-{seed}"),
    )
    launch(evaluate.launcher, __spec__.name, run)


if __name__ == "__main__":
    errors.run_stage(main, "METHOD", "SEED")
