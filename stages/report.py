"""Put the run's results on one page."""

from pathlib import Path

from pipeline import errors, params
from pipeline.report import ReportInputs, write_report

RESULTS = Path("results")


def main() -> None:
    inputs = ReportInputs(
        params=params.PARAMS_FILE,
        base_model_steps=RESULTS / "base_model/steps.csv",
        train_metrics=RESULTS / "train/metrics.json",
        train_steps=RESULTS / "train/steps.csv",
        train_heldout=RESULTS / "train/heldout.csv",
        evaluate_metrics=RESULTS / "evaluate/metrics.json",
        predictions=RESULTS / "evaluate/predictions.parquet",
        compare_figures=RESULTS / "compare/figures.csv",
        compare_comparisons=RESULTS / "compare/comparisons.csv",
        cot_metrics=RESULTS / "chain_of_thought/metrics.json",
        cot_votes=RESULTS / "chain_of_thought/votes.csv",
        perplexity_metrics=RESULTS / "perplexity/metrics.json",
        tokens=RESULTS / "perplexity/tokens.parquet",
        deciles=RESULTS / "perplexity/deciles.csv",
        kinds=RESULTS / "perplexity/kinds.csv",
        positions=RESULTS / "perplexity/positions.csv",
        weights=RESULTS / "perplexity/weights.csv",
        density=RESULTS / "perplexity/density.csv",
        extremes=RESULTS / "perplexity/extremes.csv",
        passages=params.load().report.passages,
    )
    write_report(inputs, RESULTS / "report")


if __name__ == "__main__":
    errors.run_stage(main)
