"""Fetch each task's questions and write them as its task file asks them."""

from pathlib import Path

from pipeline import errors, params
from pipeline.data.tasks.ask import write_tasks


def main() -> None:
    write_tasks(params.load().tasks, out=Path("data/tasks"))


if __name__ == "__main__":
    errors.run_stage(main)
