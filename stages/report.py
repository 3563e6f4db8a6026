"""Put the run's results on one page."""

from pathlib import Path

from pipeline import errors, params
from pipeline.report.page import write_report


def main() -> None:
    write_report(params.PARAMS_FILE, Path("results"), Path("results/report/index.html"))


if __name__ == "__main__":
    errors.run_stage(main)
