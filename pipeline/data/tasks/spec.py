"""What a task file may say, checked when it is read."""

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from pipeline import typed_yaml
from pipeline.errors import UserError

NUMBER, CHOICE, TEXT = KINDS = ("number", "choice", "text")


@dataclass
class Data:
    """A data set (a hub name, or a local folder in the hub's layout) and the part of it that holds the questions."""

    path: str = MISSING
    name: str | None = None
    split: str = MISSING
    revision: str | None = None


@dataclass
class ChainOfThought:
    """How to ask for visible reasoning: the prompt, what ends the reasoning, and what then asks for the answer."""

    prompt: str = MISSING
    stop: list[str] = field(default_factory=list)
    answer_prompt: str = MISSING


@dataclass
class Task:
    """A task file. ``title``, ``source`` (paper) and ``version`` are for readers.

    ``kind``: the answer is a number, a choice's label, or a choice's own text.
    ``prompt`` is a Jinja template of a row's columns and, with choices, of ``choice_lines``: one "(A) text" each.
    ``answer``, ``choices`` and ``labels`` are Jinja expressions of the columns. ``answer`` gives a number, one of the
    labels, or a choice's index. ``choices`` gives the list of the choices' texts, ``labels`` their names (default: A,
    B, ...). ``group`` is an expression too: questions with the same value are alike (they are about one fact), and
    intervals count them so; default: each question is a group of its own. ``part`` is one more: accuracy is also shown
    of the questions with each of its values (how many steps they take, say).
    ``legal``: the characters that a number's tokens may consist of; a choice's legal tokens are its labels.
    ``stop``: strings that end a number when it is written out.
    """

    title: str = MISSING
    source: str = MISSING
    version: int = MISSING
    data: Data = field(default_factory=Data)
    kind: str = MISSING
    prompt: str = MISSING
    answer: str = MISSING
    choices: str | None = None
    labels: str | None = None
    group: str | None = None
    part: str | None = None
    legal: str = "0123456789"
    stop: list[str] = field(default_factory=lambda: ["\n"])
    chain_of_thought: ChainOfThought | None = None


def read_task(path: Path) -> Task:
    """Read a task from a YAML file. Raises UserError where the file is missing or does not describe a task."""
    task = typed_yaml.load(path, Task)
    reasoning = task.chain_of_thought
    problems = {
        "prompt is empty": not task.prompt,
        "answer is empty": not task.answer,
        "data.path is empty: name a hub data set or a local folder": not task.data.path,
        f"data.path is {task.data.path}, but nobody here has that home folder": typed_yaml.no_home(task.data.path),
        "chain_of_thought.prompt is empty": reasoning and not reasoning.prompt,
        f"kind is {task.kind}, but must be {' or '.join(KINDS)}": task.kind not in KINDS,
        "choices belong to kinds choice and text, which need them": (task.kind != NUMBER) != bool(task.choices),
        "chain_of_thought asks for a number or a label, so kind text has none": reasoning and task.kind == TEXT,
        "labels are what choices are called, but there are no choices": task.labels and not task.choices,
        "legal is empty: name the characters of a number's tokens": not task.legal,
        "a stop string is empty": "" in task.stop + (reasoning.stop if reasoning else []),
    }
    for problem in (text for text, found in problems.items() if found):
        raise UserError(f"{path}: {problem}")
    return task
