"""The effect of thinking in minutes: `python -m pipeline.ablations.quick` (`make quick`).

A DVC experiment with the preset scale=quick, a smaller world than the default run's: the workspace stays as it is.
Writes results/quick/report.html, summary.json and compare/.
"""

from pathlib import Path

import pandas as pd

from pipeline import errors
from pipeline.ablations import experiments
from pipeline.ablations.single import run_single
from pipeline.preset import options as preset

OUT = Path("results/quick")


def main() -> None:
    experiments.parser("python -m pipeline.ablations.quick", __doc__).parse_args()
    run_single("quick", preset.options(["scale=quick"]), OUT)
    figures = pd.read_csv(OUT / "compare/figures.csv")
    print(figures.loc[figures["measure"].isin(["accuracy", "loss"])].to_string(index=False))


if __name__ == "__main__":
    errors.run(main)
