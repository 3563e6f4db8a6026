"""What a task file may say, checked when it is read."""

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from pipeline import typed_yaml
from pipeline.errors import UserError

NUMBER, CHOICE = KINDS = ("number", "choice")


@dataclass
class Data:
    """A data set: a hub name or a local folder in the hub's layout, and which part of it holds the questions."""

    path: str = MISSING
    name: str | None = None
    split: str = MISSING
    revision: str | None = None


@dataclass
class ChainOfThought:
    """Asking for visible reasoning: its prompt, what ends the reasoning, and what then asks for the answer."""

    prompt: str = MISSING
    stop: list[str] = field(default_factory=list)
    answer_prompt: str = MISSING


@dataclass
class Task:
    """A task: ``title``, ``source`` (paper) and ``version`` are for readers.

    ``prompt`` is a Jinja template of a row's columns and, for kind choice, of ``choice_lines``: "(A) text" each.
    ``answer``, ``choices`` and ``labels`` are Jinja expressions of the columns. ``answer`` gives a number, or one of
    the labels, or as a whole number the place of a choice. ``choices`` gives the list of their texts, ``labels`` what
    they are called (A, B, ... unless given).
    ``legal``: the characters of which the tokens of a number are made; of a choice the legal tokens are its labels.
    ``stop``: what ends a number that is written out.
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
    legal: str = "0123456789"
    stop: list[str] = field(default_factory=lambda: ["\n"])
    chain_of_thought: ChainOfThought | None = None


def read_task(path: Path) -> Task:
    """The task in a YAML file. Raises UserError, in one line, where it is missing or says what no task can."""
    try:
        task = typed_yaml.load(path, Task)
    except FileNotFoundError as error:
        raise UserError(f"the task file {path} is missing") from error
    for problem in _problems(task):
        raise UserError(f"{path}: {problem}")
    return task


def _problems(task: Task) -> list[str]:
    problems = [f"{name} is empty" for name in ("prompt", "answer") if not getattr(task, name)]
    if not task.data.path:
        problems.append("data.path is empty: name a hub data set or a local folder")
    if task.chain_of_thought and not task.chain_of_thought.prompt:
        problems.append("chain_of_thought.prompt is empty")
    if task.kind not in KINDS:
        problems.append(f"kind is {task.kind}, but must be {' or '.join(KINDS)}")
    if (task.kind == CHOICE) != bool(task.choices):
        problems.append("choices belong to kind choice, and kind choice needs them")
    if task.labels and not task.choices:
        problems.append("labels are what choices are called, but there are no choices")
    if not task.legal:
        problems.append("legal is empty: name the characters of a number's tokens")
    stops = [*task.stop, *(task.chain_of_thought.stop if task.chain_of_thought else ())]
    if "" in stops:
        problems.append("a stop string is empty")
    return problems
