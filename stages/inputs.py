"""Hash what lies outside the graph, so that stages notice where it changes: local data sets, a model, a launcher."""

from pathlib import Path

from pipeline import errors, params
from pipeline.data.inputs import write_inputs


def main() -> None:
    write_inputs(params.load(), out=Path("data/inputs"))


if __name__ == "__main__":
    errors.run_stage(main)
