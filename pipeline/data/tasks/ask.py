"""A data set's rows as questions, as the task file says."""

import shutil
import string
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from pipeline.data.corpus.hub import rows
from pipeline.data.tasks.questions import NUMBER_TEXT, Question, number_in
from pipeline.data.tasks.spec import NUMBER, Task, read_task
from pipeline.errors import UserError, reason
from pipeline.files import looks_local, new_path, write_rows
from pipeline.params import HubSplit, Tasks

FOLDER = Path("tasks")
QUESTIONS = pa.schema(
    {"prompt": pa.string(), "answer": pa.string(), "labels": pa.list_(pa.string()), "reasoning_prompt": pa.string()}
)


def _present(value: object) -> object:
    if value is None:
        raise ValueError("a column that is used has no value")
    return value


# a sandbox, as task files are data
ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, finalize=_present)


def write_tasks(params: Tasks, out: Path) -> None:
    """Write each task's questions, NAME.parquet, and its file beside them, NAME.yaml.

    Raises UserError for a file that is not in the folder `tasks`, which is what DVC watches, and for two of one name.
    """
    with new_path(out) as folder:
        folder.mkdir()
        for path in map(Path, params.files):
            if "\0" in str(path):
                raise UserError(f"tasks.files: {path} is no path: a path has no zero bytes")
            if FOLDER.resolve() not in path.resolve().parents:
                raise UserError(f"tasks.files: {path} is not in the folder {FOLDER}, which DVC watches: move it there")
            if (folder / f"{path.stem}.yaml").exists():
                raise UserError(f"tasks.files: two files have the name {path.stem}: a task is known by its file's name")
            task = read_task(path)
            rows = (vars(question) for question in questions(task, params.root))
            write_rows(folder / f"{path.stem}.parquet", rows, QUESTIONS)
            shutil.copy(path, folder / f"{path.stem}.yaml")


def questions(task: Task, root: str | None) -> Iterator[Question]:
    """The task's questions, in the data set's order; ``root``: a folder to look for data sets in instead of the hub.

    Raises UserError where the data set cannot be read or a row does not have what the task file names.
    """
    ask = _asker(task)
    path = task.data.path
    if root is not None and not looks_local(path):
        path = str(Path(root).absolute() / path)
    source = HubSplit(path, task.data.name, task.data.split, task.data.revision)
    for index, row in enumerate(rows(source)):
        try:
            question = ask(row)
            if not question.prompt:
                raise UserError("the prompt is empty")
            _check_text(question)
            yield question
        except UserError as error:
            raise UserError(f"task {task.title}, question {index}: {error}") from error
        except Exception as error:  # whatever an expression of a task file may do to a row
            columns = ", ".join(row)
            raise UserError(
                f"task {task.title}, question {index}: {reason(error)}; its columns are {columns}"
            ) from error


def _check_text(question: Question) -> None:
    """Raise UnicodeEncodeError where a text has half of a pair of surrogates, which a file cannot hold."""
    for text in (question.prompt, question.answer, question.reasoning_prompt, *question.labels):
        text.encode()


def _asker(task: Task) -> Callable[[dict], Question]:
    """What makes a question of a row."""
    try:
        prompt = ENVIRONMENT.from_string(task.prompt)
        reasoning = ENVIRONMENT.from_string(task.chain_of_thought.prompt if task.chain_of_thought else "")
        answer, choices, labels = (
            ENVIRONMENT.compile_expression(e, undefined_to_none=False) if e else None
            for e in (task.answer, task.choices, task.labels)
        )
    except (TemplateError, RecursionError) as error:  # RecursionError: of hundreds of brackets
        raise UserError(f"task {task.title}: {reason(error)}") from error

    def ask(row: dict) -> Question:
        right = answer(**row)
        if task.kind == NUMBER:
            return Question(prompt.render(row), _number(right), [], reasoning.render(row))
        texts = [str(text) for text in choices(**row)]
        names = [str(name) for name in labels(**row)] if labels else list(string.ascii_uppercase[: len(texts)])
        lines = "\n".join(f"({name}) {text}" for name, text in zip(names, texts, strict=True))
        seen = {**row, "choice_lines": lines}
        return Question(prompt.render(seen), _label(right, names), names, reasoning.render(seen))

    return ask


def _number(value: object) -> str:
    text = str(value).strip().lstrip("$")
    found = NUMBER_TEXT.fullmatch(text)
    if found is None:
        raise UserError(f"the answer is {text[:60]!r}, which is not a number")
    return number_in(text)


def _label(value: object, labels: list[str]) -> str:
    if isinstance(value, int) and 0 <= value < len(labels):
        return labels[value]
    if str(value) not in labels:
        raise UserError(f"the answer is {str(value)[:60]!r}, which is not among {', '.join(labels)}")
    return str(value)
