"""Make the folder to hand on: the trained model and its card."""

from pathlib import Path

from pipeline import errors, params
from pipeline.report.release import write_release


def main() -> None:
    trained = Path("models/trained", params.load().arms.run)
    write_release(trained, params.PARAMS_FILE, Path("results"), Path("models/release"))


if __name__ == "__main__":
    errors.run_stage(main)
