"""Pretrain a small decoder, or take a snapshot of one that exists."""

from pathlib import Path

from pipeline import errors, params
from pipeline.training.pretrain import write_base_model


def main() -> None:
    every = params.load()
    write_base_model(
        every.base_model,
        isolate=not every.tokenize.packed,
        tokens=Path("data/tokens"),
        out=Path("models/base"),
        log=Path("results/base_model/steps.csv"),
    )


if __name__ == "__main__":
    errors.run_stage(main)
