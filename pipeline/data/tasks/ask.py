"""The tasks stage: rows of a data set become questions, as a task file says."""

import shutil
import string
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from pipeline.data.corpus.hub import rows
from pipeline.data.tasks.questions import NUMBER_TEXT, Question, number_in
from pipeline.data.tasks.spec import NUMBER, TEXT, Task, read_task
from pipeline.errors import UserError, reason
from pipeline.files import looks_local, replacing, write_rows
from pipeline.params import HubSplit, Tasks

FOLDER = Path("tasks")
# what summary.json and evaluate's metrics.json have beside tasks
NOT_TASKS = ("heldout", "heldout_gain", "heldout_gain_after_marker", "base_harm", "base_harm_high")
NOT_TASKS += ("thought_length", "cost")
CONTENT = "content_"  # before a task's name: the effect there of what is thought
TEXTS = ("reasoning_prompt", "group", "part")
QUESTIONS = {"prompt": pa.string(), "answer": pa.string(), "labels": pa.list_(pa.string())}
QUESTIONS = pa.schema(QUESTIONS | dict.fromkeys(TEXTS, pa.string()))


def _present(value: object) -> object:
    if value is None:
        raise ValueError("a column that is used has no value")
    return value


# sandboxed, as a task file is data, not code
ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, finalize=_present)


def write_tasks(params: Tasks, out: Path) -> None:
    """Write each task's questions to NAME.parquet in ``out``, and copy its file to NAME.yaml beside them.

    Raises UserError for a file outside the folder `tasks`, which is all that DVC watches, for two of one name, and for
    a name that other figures have.
    """
    with replacing(out) as folder:
        for path in map(Path, params.files):
            if "\0" in str(path):
                raise UserError(f"tasks.files: {path} is no path: a path has no zero bytes")
            if FOLDER.resolve() not in path.resolve().parents:
                raise UserError(f"tasks.files: {path} is not in the folder {FOLDER}, which DVC watches: move it there")
            if path.stem in NOT_TASKS or path.stem.startswith(CONTENT):
                raise UserError(f"tasks.files: {path} has a name that other figures have: rename it")
            if (folder / f"{path.stem}.yaml").exists():
                raise UserError(f"tasks.files: two files have the name {path.stem}: a task is known by its file's name")
            rows = (vars(question) for question in questions(read_task(path), params.root))
            write_rows(folder / f"{path.stem}.parquet", rows, QUESTIONS)
            shutil.copy(path, folder / f"{path.stem}.yaml")


def questions(task: Task, root: str | None) -> Iterator[Question]:
    """Make a question of every row of the task's data set, in order.

    ``root`` is a folder in which to look for data sets instead of the hub. Raises UserError where the data set cannot
    be read or a row does not have what the task file names.
    """
    ask = _asker(task)
    source = HubSplit(**vars(task.data))
    if root is not None and not looks_local(source.path):
        source.path = str(Path(root).expanduser().absolute() / source.path)
    for index, row in enumerate(rows(source)):
        try:
            question = ask(index, row)
            # UnicodeEncodeError for half of a surrogate pair, which no file can hold
            texts = (question.prompt, question.answer, question.reasoning_prompt, question.group, question.part)
            "".join((*texts, *question.labels)).encode()
            if not question.prompt:
                raise UserError("the prompt is empty")
        except Exception as error:  # an expression of a task file may raise anything
            told = str(error) if isinstance(error, UserError) else f"{reason(error)}; its columns are {', '.join(row)}"
            raise UserError(f"task {task.title}, question {index}: {told}") from error
        yield question


def _asker(task: Task) -> Callable[[int, dict], Question]:
    """Compile the task's templates into a function from a row and its index to its question."""
    try:
        prompt = ENVIRONMENT.from_string(task.prompt)
        reasoning = ENVIRONMENT.from_string(task.chain_of_thought.prompt if task.chain_of_thought else "")
        answer, choices, labels, group, part = (
            ENVIRONMENT.compile_expression(e, undefined_to_none=False) if e else None
            for e in (task.answer, task.choices, task.labels, task.group, task.part)
        )
    except (TemplateError, RecursionError) as error:  # RecursionError: hundreds of brackets
        raise UserError(f"task {task.title}: {reason(error)}") from error

    def ask(index: int, row: dict) -> Question:
        right = answer(row)
        about = {
            "group": str(ENVIRONMENT.finalize(group(row)) if group else index),
            "part": str(ENVIRONMENT.finalize(part(row))) if part else "",
        }
        if task.kind == NUMBER:
            text = str(right).strip().lstrip("$")
            if not NUMBER_TEXT.fullmatch(text):
                raise UserError(f"the answer is {text[:60]!r}, which is not a number")
            return Question(prompt.render(row), number_in(text), [], reasoning.render(row), **about)
        texts = [str(_present(text)) for text in choices(row)]
        given = list(labels(row)) if labels else list(string.ascii_uppercase[: len(texts)])
        names = [str(_present(name)) for name in given]
        if len(texts) < 2 or len(names) != len(texts) or len(set(names)) < len(names):
            raise UserError(
                f"{len(texts)} choices have the labels {', '.join(names)}: each of two or more needs its own"
            )
        lines = "\n".join(f"({name}) {text}" for name, text in zip(names, texts, strict=True))
        row = {**row, "choice_lines": lines}
        if right in given:  # before an index is looked for, as labels may be numbers
            right = names[given.index(right)]
        elif str(right) not in names and isinstance(right, int) and 0 <= right < len(names):
            right = names[right]
        if str(right) not in names:
            raise UserError(f"the answer is {str(right)[:60]!r}, which is not among {', '.join(names)}")
        if task.kind == TEXT:
            if not all(map(str.strip, texts)):
                raise UserError("the text of a choice is empty")
            return Question(prompt.render(row), texts[names.index(str(right))], texts, **about)
        return Question(prompt.render(row), str(right), names, reasoning.render(row), **about)

    return ask
