"""Questions with one right answer: how a task's file of them is read, and how numbers are read and compared."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.tasks.spec import Task, read_task
from pipeline.errors import UserError
from pipeline.files import read_rows

NUMBER_TEXT = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+", re.ASCII)


@dataclass(frozen=True)
class Question:
    """A prompt and its answer: one of ``labels`` or, where there are none, a number (`number_in`).

    ``reasoning_prompt`` asks for visible reasoning; "" where the task has no such prompt.
    """

    prompt: str
    answer: str
    labels: list[str]
    reasoning_prompt: str = ""


def number_in(text: str) -> str | None:
    """The first number in ``text`` as it is compared: without commas, ".0" or a leading zero; None where none is."""
    found = NUMBER_TEXT.search(text)
    if found is None:
        return None
    sign, digits = re.fullmatch(r"(-?)(.*)", found[0].replace(",", "")).groups()
    whole, _, fraction = digits.partition(".")
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    number = whole + (f".{fraction}" if fraction else "")
    return number if number == "0" else sign + number


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
