"""A question with one right answer, and how numbers are read and compared."""

import re
from dataclasses import dataclass

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
