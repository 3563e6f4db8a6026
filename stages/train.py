"""Teach the base model to think: Quiet-STaR training."""

from functools import partial
from pathlib import Path

from pipeline import errors, params
from pipeline.training.launch import launch
from pipeline.training.quiet_star.train import write_trained


def main() -> None:
    train = params.load().train
    run = partial(
        write_trained,
        train,
        base=Path("models/base"),
        tokens=Path("data/tokens"),
        probe=Path("data/corpus/texts/probe.parquet"),
        out=Path("models/quiet_star"),
        results=Path("results/train"),
    )
    launch(train.launcher, __spec__.name, run)


if __name__ == "__main__":
    errors.run_stage(main)
