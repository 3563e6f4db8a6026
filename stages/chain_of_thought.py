"""Ask the trained model to reason before it answers, several times, with thoughts and without: cot-maj@k."""

from pathlib import Path

from pipeline import errors, params
from pipeline.evaluation.chain_of_thought.vote import write_chain_of_thought


def main() -> None:
    every = params.load()
    write_chain_of_thought(
        every.chain_of_thought,
        trained=Path("models/trained", every.arms.run),
        tasks=Path("data/tasks"),
        results=Path("results/chain_of_thought"),
    )


if __name__ == "__main__":
    errors.run_stage(main)
