"""Train a baseline, which the run is compared with: `python -m stages.baseline METHOD SEED`."""

from functools import partial
from pathlib import Path

from pipeline import errors, params
from pipeline.training.launch import launch
from pipeline.training.quiet_star.train import write_trained


def main(method: str, seed: str) -> None:
    train = params.load(changes={"train.method": method, "train.seed": int(seed) if seed.isdecimal() else seed}).train
    run = partial(
        write_trained,
        train,
        base=Path("models/base"),
        tokens=Path("data/tokens"),
        probe=Path("data/corpus/texts/probe.parquet"),
        out=Path(f"models/baseline/{method}-{seed}"),
        results=Path(f"results/train/{method}-{seed}"),
    )
    launch(train.launcher, __spec__.name, run)


if __name__ == "__main__":
    errors.run_stage(main, "METHOD", "SEED")
