"""Ask the trained model to reason before it answers, several times, with thoughts and without: cot-maj@k."""

from functools import partial
from pathlib import Path

from pipeline import errors, params
from pipeline.evaluation.chain_of_thought.vote import write_chain_of_thought
from pipeline.training.launch import launch


def main() -> None:
    every = params.load()
    run = partial(
        write_chain_of_thought,
        every.chain_of_thought,
        trained=Path("models/trained", every.arms.run),
        tasks=Path("data/tasks"),
        results=Path("results/chain_of_thought"),
    )
    launch(every.chain_of_thought.launcher, __spec__.name, run)


if __name__ == "__main__":
    errors.run_stage(main)
