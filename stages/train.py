"""Teach the base model to think: Quiet-STaR training."""

from pathlib import Path

from pipeline import errors, params
from pipeline.training import write_trained


def main() -> None:
    write_trained(
        params.load().train,
        base=Path("models/base"),
        tokens=Path("data/tokens"),
        probe=Path("data/corpus/texts/probe.parquet"),
        out=Path("models/quiet_star"),
        results=Path("results/train"),
    )


if __name__ == "__main__":
    errors.run(main)
