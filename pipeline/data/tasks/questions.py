"""Questions with one right answer, the file in which a task keeps them, and how numbers are compared."""

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
    """A prompt and its answer: one of ``labels`` or, if there are none, a number as `number_in` writes it.

    Where a task is of kind text, ``labels`` are the choices' texts.
    ``reasoning_prompt`` asks for visible reasoning; it is "" if the task has no such prompt. ``group``: questions that
    have it in common are alike. ``part``: the part of the task that it belongs to, "" if the task has none.
    """

    prompt: str
    answer: str
    labels: list[str]
    reasoning_prompt: str = ""
    group: str = ""
    part: str = ""


def number_in(text: str) -> str | None:
    """The first number in ``text`` without commas, ".0" or leading zeros, so that equal numbers are equal; or None."""
    found = NUMBER_TEXT.search(text)
    if found is None:
        return None
    whole, _, fraction = found[0].replace(",", "").lstrip("-").partition(".")
    number = f"{whole.lstrip('0') or '0'}.{fraction}".rstrip("0").rstrip(".")
    return f"-{number}" if found[0].startswith("-") and number != "0" else number


def read_tasks(folder: Path) -> dict[str, tuple[Task, Iterator[Question]]]:
    """Read every task that `write_tasks` left in ``folder``, by name; questions are read as they are used.

    Raises UserError where there is no task or, once they are used, where a file of questions is missing or broken.
    """
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise UserError(f"{folder} holds no task: run `dvc repro tasks`")
    return {f.stem: (read_task(f), (Question(**row) for row in read_rows(f.with_suffix(".parquet")))) for f in files}
