"""Tasks as data: a YAML file says where questions are and how they are asked; here they become prompts and answers.

`spec` (what a task file may say), `questions` (a question and its answer), `ask` (a data set's rows as questions).
"""

from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import read_rows
from pipeline.tasks.questions import Question
from pipeline.tasks.spec import Task, read_task


def read_tasks(folder: Path) -> dict[str, tuple[Task, Iterator[Question]]]:
    """Every task in ``folder``, as `write_tasks` left it, by name; its questions are read as they are used.

    Raises UserError where there is none, or, when they are used, where questions are missing or broken.
    """
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise UserError(f"{folder} holds no task: run `dvc repro tasks`")
    return {f.stem: (read_task(f), _questions(f.with_suffix(".parquet"))) for f in files}


def _questions(path: Path) -> Iterator[Question]:
    empty = True
    for row in read_rows(path):
        try:
            question = Question(**row)
        except TypeError as error:
            raise UserError(f"{path} does not hold questions: run `dvc repro tasks` to make it again") from error
        yield question
        empty = False
    if empty:
        raise UserError(f"{path} has no questions")
