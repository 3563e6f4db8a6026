"""Make the folder to hand on: the trained model and its card."""

from pathlib import Path

from pipeline import errors, params
from pipeline.report.card import CardInputs
from pipeline.report.release import write_release

RESULTS = Path("results")


def main() -> None:
    about = CardInputs(
        params=params.PARAMS_FILE,
        train_metrics=RESULTS / "train/metrics.json",
        evaluate_metrics=RESULTS / "evaluate/metrics.json",
        comparisons=RESULTS / "compare/comparisons.csv",
        cot_metrics=RESULTS / "chain_of_thought/metrics.json",
        perplexity_metrics=RESULTS / "perplexity/metrics.json",
    )
    write_release(Path("models/quiet_star"), about, Path("models/release"))


if __name__ == "__main__":
    errors.run_stage(main)
