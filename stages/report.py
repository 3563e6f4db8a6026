"""Put the run's results on one page."""

from pathlib import Path

from pipeline import errors, params
from pipeline.report import ReportInputs, write_report

RESULTS = Path("results")


def main() -> None:
    inputs = ReportInputs(
        evaluate_metrics=RESULTS / "evaluate/metrics.json",
        perplexity_metrics=RESULTS / "perplexity/metrics.json",
        train_metrics=RESULTS / "train/metrics.json",
        train_steps=RESULTS / "train/steps.csv",
        train_heldout=RESULTS / "train/heldout.csv",
        base_model_steps=RESULTS / "base_model/steps.csv",
        tokens=RESULTS / "perplexity/tokens.parquet",
        predictions=RESULTS / "evaluate/predictions.parquet",
        params=params.PARAMS_FILE,
        passages=params.load().report.passages,
    )
    write_report(inputs, RESULTS / "report")


if __name__ == "__main__":
    errors.run(main)
