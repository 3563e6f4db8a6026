"""The table of bad inputs for readers: docs/errors.md."""

from pathlib import Path

from tests.bad_input.case import Case
from tests.bad_input.cases import CASES, GROUPS

PAGE = Path(__file__).parents[2] / "docs/errors.md"
HEAD = f"""# What a run says of bad input

A mistake of a user ends a stage with exit code 1 and one line on standard error, `error: ` and the message below: no
traceback, no half of an output, no changed cache. Each of the {len(CASES)} rows is a test
(`tests/bad_input/cases.py`); those of full disks and of files that cannot be written to make a small disk and an
immutable file, which takes root, and are skipped without. … stands for what depends on the machine or is a library's
own text, PROJECT for the project's folder. This page is written by `python -m tests.bad_input`.
"""


def page() -> str:
    return "\n".join([HEAD, *(_table(name, cases) for name, cases in GROUPS.items())])


def _table(name: str, cases: list[Case]) -> str:
    rows = [f"| {case.wrong} | {case.stage} | {_cell(case.message)} |" for case in cases]
    return "\n".join([f"## {name}", "", "| what is wrong | stage | message |", "| --- | --- | --- |", *rows, ""])


def _cell(message: str) -> str:
    """As code, in which a table's | needs an escape; a message with a backtick has two around it."""
    text = message.replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"
