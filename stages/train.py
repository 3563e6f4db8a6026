"""Teach the base model to think, or train it as another arm says: `python -m stages.train METHOD SEED`."""

from functools import partial
from pathlib import Path

from pipeline import errors, params
from pipeline.training.launch import launch
from pipeline.training.quiet_star.train import settings_of, write_trained


def main(method: str, seed: str) -> None:
    every = params.load(changes={"arms.methods": [method], "arms.seeds": [int(seed) if seed.isdecimal() else seed]})
    run = partial(
        write_trained,
        every.train,
        method,
        every.arms.seeds[0],
        base=Path("models/base"),
        tokens=Path("data/tokens"),
        probe=Path("data/corpus/texts/probe.parquet"),
        out=Path(f"models/trained/{method}-{seed}"),
        results=Path(f"results/train/{method}-{seed}"),
    )
    launch(settings_of(every.train, method).launcher, __spec__.name, run)


if __name__ == "__main__":
    errors.run_stage(main, "METHOD", "SEED")
