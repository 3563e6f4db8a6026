"""Any value of a parameter and any row of data is taken, or refused by name."""

import copy
from collections.abc import Iterator
from functools import reduce
from operator import getitem
from pathlib import Path
from types import NoneType
from typing import get_args, get_type_hints

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline import params
from pipeline.data.tasks import ask
from pipeline.data.tasks.questions import Question, number_in
from pipeline.data.tasks.spec import read_task
from pipeline.errors import UserError

ROOT = Path(__file__).parents[2]
SHIPPED = yaml.safe_load((ROOT / "params.yaml").read_text())
ANY_NUMBER = st.integers() | st.floats()
SCALARS = st.none() | st.booleans() | ANY_NUMBER | st.text()
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=5), SCALARS, max_size=3)
MORE = st.recursive(VALUES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner))


def names(section: dict, prefix: str = "") -> Iterator[str]:
    for key, value in section.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from names(value, f"{prefix}{key}.")


def changed(name: str, value: object = ...) -> dict:
    """The shipped parameters with another value of the one with this name; with ... it is left out."""
    values = copy.deepcopy(SHIPPED)
    *sections, key = name.split(".")
    section = reduce(getitem, sections, values)
    section[key] = value
    if value is ...:
        del section[key]
    return values


def told(path: Path, content: dict) -> str:
    """The message about a file with this content; "" if it is taken."""
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8", errors="replace")
    try:
        params.load(path)
    except UserError as error:
        return str(error)
    return ""


@settings(max_examples=100)
@given(name=st.sampled_from(sorted(names(SHIPPED))), value=MORE)
def test_any_value_of_a_parameter_is_taken_or_refused_by_name(name: str, value: object, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "params.yaml"
    message = told(path, changed(name, value))
    assert message.isprintable()
    assert not message or any(part in message for part in (name.rpartition(".")[2], "not readable YAML"))


def may_be_left_out(name: str) -> bool:
    """Whether the schema lets a parameter be null."""
    kind = params.Params
    for part in name.split("."):
        kind = get_type_hints(kind)[part]
    return NoneType in get_args(kind)


@pytest.mark.parametrize("name", sorted(names(SHIPPED)))
def test_a_parameter_is_needed_unless_it_may_be_nothing(name: str, tmp_path: Path):
    message = told(tmp_path / "params.yaml", changed(name))
    assert message == "" if may_be_left_out(name) else name.rpartition(".")[2] in message


@settings(max_examples=60)
@given(prompt=st.text(alphabet="\\${}ab.:'\" ") | st.text())
@example(prompt="${oc.env:HOME} for ${{ price }} of ${title}")
def test_a_text_in_a_task_file_is_what_it_says(prompt: str, tmp_path_factory):
    """Also `${...}`, with any number of backslashes before it: OmegaConf would put another value there."""
    path = tmp_path_factory.getbasetemp() / "task.yaml"
    task = yaml.safe_load((ROOT / "tasks/gsm8k.yaml").read_text()) | {"prompt": prompt}
    path.write_text(yaml.safe_dump(task))
    try:
        assert read_task(path).prompt == prompt
    except UserError as error:
        assert "prompt" in str(error) or "YAML" in str(error)


ROW = {"question": SCALARS, "answer": SCALARS, "choices": VALUES, "answerKey": SCALARS}
CHOICES = st.fixed_dictionaries({"label": st.lists(SCALARS), "text": st.lists(SCALARS)})


def asked(task_file: str, row: dict) -> Question | None:
    """The row as a question; None if it is refused, in one line."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ask, "rows", lambda source: iter([row]))
        try:
            (question,) = ask.questions(read_task(ROOT / task_file), None)
        except UserError as error:
            assert str(error).isprintable() and "question 0" in str(error)
            return None
    assert question.prompt
    return question


@settings(max_examples=60)
@given(row=st.fixed_dictionaries({}, optional=ROW), number=st.none() | ANY_NUMBER | st.text())
def test_a_row_is_a_question_with_a_number_or_is_refused(row: dict, number: object):
    for some in (row, row | {"question": "Why?", "answer": f"#### {number}"}):
        found = asked("tasks/gsm8k.yaml", some)
        assert found is None or number_in(found.answer) == found.answer


@settings(max_examples=60)
@given(row=st.fixed_dictionaries({}, optional=ROW | {"choices": CHOICES}))
def test_a_row_is_a_question_with_a_label_or_is_refused(row: dict):
    found = asked("tasks/commonsense_qa.yaml", row)
    assert found is None or found.answer in found.labels
