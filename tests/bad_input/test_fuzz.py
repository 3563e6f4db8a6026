"""Broken parameter and task files, grids and presets, each read or refused in one line; so is any value in them.

400 broken files in the fast tier, 10,000 more in the slow one.
"""

import copy
import random
import shutil
from collections.abc import Callable
from functools import reduce
from itertools import accumulate, islice
from operator import getitem
from pathlib import Path
from types import NoneType

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline import params
from pipeline.ablations.grid import read_grid
from pipeline.data.tasks import ask
from pipeline.data.tasks.questions import Question, number_in
from pipeline.data.tasks.spec import read_task
from pipeline.errors import UserError
from pipeline.preset import options as preset
from tests.local_hub import commonsense_qa_rows, gsm8k_rows
from tests.test_params import parameters

ROOT = Path(__file__).parents[2]
TASKS = sorted((ROOT / "tasks").rglob("*.yaml"))
ROWS = [
    *gsm8k_rows(2),
    *commonsense_qa_rows(2),
    {"question": None, "answer": float("nan"), "choices": [1, None], "answerKey": 10**30},
]
SHARES = [range(200), *(pytest.param(range(i, i + 1000), marks=pytest.mark.slow) for i in range(200, 5200, 1000))]
VALUES = (
    *("", "null", "~", "???", "true", "no", "-1", "0", "1.5", "1e400", ".inf", "-.inf", ".nan", "9" * 5000, "0x1F"),
    *("ten", "'", '"', '"\\ud800"', '"\\x00\\x1b[31m"', "1:30", "2024-02-30", "2024-01-01", "|", ">-", "<<: 1"),
    *("[]", "[1, [2, [3]]]", "{}", "{a: 1}", "{1: 2}", "{null: 1}", "[{}, null]", "? [a]"),
    *("[" * 3000, "{a: " * 30 + "1" + "}" * 30, "x" * 20000),
    *("${train.steps}", "${oc.env:HOME}", "\\${a}", "${", "${a:${b}}", "$"),
    *("{{ question }}", "{% for a in b %}", "{{ 1 / 0 }}", "{{ choices.text[9] }}"),
    *("&a 1", "*a", "&a [*a]", "!!python/object:os.system x", "!!bool perhaps", '!!int ""', "!!binary x", "!mine 1"),
    *("!!timestamp soon", "\u202e\u0000", "\N{PILE OF POO}" * 50, "e\u0301" * 9, "\x85\u2028", "\ufeff"),
)
SIGNS = "\t\x00\x07\x1b:#-[]{}&*!|>'\"%@`,?\\\u00a0\u2028\N{PILE OF POO}"
CHANGES = ("value",) * 3 + ("key", "drop", "repeat", "indent", "flip", "sign", "cut")


def mutated(text: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 2, 3))):
        text = one_change(text.splitlines(keepends=True) or [b"\n"], rng)
    return text


def one_change(lines: list[bytes], rng: random.Random) -> bytes:
    at, some = rng.randrange(len(lines)), rng.randint(1, 5)
    line, place = lines[at], rng.randrange(len(lines[at]))
    first, second = (rng.choice(VALUES).encode() for _ in range(2))
    match rng.choice(CHANGES):
        case "value":  # where a line has one
            at = rng.choice([i for i, line in enumerate(lines) if b":" in line] or [0])
            lines[at] = lines[at].partition(b":")[0] + b": " + first + b"\n"
        case "key":
            indent = len(line) - len(line.lstrip())
            lines.insert(at, line[:indent] + first + b": " + second + b"\n")
        case "drop":
            del lines[at : at + some]
        case "repeat":
            lines[at:at] = lines[at : at + some]
        case "indent":
            lines[at] = line.lstrip() if rng.random() < 0.5 else b" " * some + line
        case "flip":
            lines[at] = line[:place] + rng.randbytes(some) + line[place + some :]
        case "sign":
            lines[at] = line[:place] + rng.choice(SIGNS).encode() + line[place:]
        case "cut":
            lines[at:] = [line[:place]]
    return b"".join(lines)


def refusals(read: Callable[[], object], cases: range, write: Callable[[random.Random], bytes]) -> int:
    """Count the ``cases`` that are refused, each in one line. A case that ends in another way fails the test."""
    refused = 0
    for case in cases:
        content = write(random.Random(case))
        try:
            read()
        except UserError as error:
            refused += 1
            assert str(error).isprintable() and str(error), f"case {case}: {str(error)!r}"
        except BaseException as error:
            raise AssertionError(f"case {case} ends with {error!r}: {content[:3000]!r}") from error
    return refused


def mutations(path: Path, *shipped: bytes) -> Callable[[random.Random], bytes]:
    def write(rng: random.Random) -> bytes:
        path.write_bytes(mutated(rng.choice(shipped), rng))
        return path.read_bytes()

    return write


@pytest.mark.parametrize("cases", SHARES)
def test_parameters(cases: range, tmp_path: Path):
    path = tmp_path / "params.yaml"
    refused = refusals(lambda: params.load(path), cases, mutations(path, (ROOT / "params.yaml").read_bytes()))
    assert len(cases) / 2 < refused < len(cases)  # a comment may hold anything


@pytest.mark.parametrize("cases", SHARES)
def test_task_files(cases: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "task.yaml"
    write = mutations(path, *(task.read_bytes() for task in TASKS))

    def read() -> None:
        list(islice(ask.questions(read_task(path), None), len(ROWS)))

    order = random.Random(cases.start)
    monkeypatch.setattr(ask, "rows", lambda source: iter(order.sample(ROWS, len(ROWS))))
    assert refusals(read, cases, write) > len(cases) / 2
    assert refusals(lambda: read_task(path), cases[:50], write) < 50


@pytest.mark.slow
def test_grids_presets_and_their_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "grid.yaml"
    write = mutations(path, (ROOT / "ablations.yaml").read_bytes())
    assert 100 < refusals(lambda: read_grid(path), range(300), write) < 300

    presets = shutil.copytree(preset.PRESETS, tmp_path / "presets")
    monkeypatch.setattr(preset, "PRESETS", presets)
    monkeypatch.chdir(ROOT)
    write = mutations(presets / "scale/real.yaml", (presets / "scale/real.yaml").read_bytes())
    assert 100 < refusals(lambda: preset.options(["scale=real"]), range(200), write) < 200

    names = ("train.steps", "tasks.files", "base_model.path", "train", "", ".", "scale", "corpus.hub.train.rows")
    word: list[str] = []

    def write_word(rng: random.Random) -> bytes:
        word[:] = [f"{rng.choice(names)}{rng.choice(('=', '', '==', '=='))}{rng.choice(VALUES)}"]
        return word[0].encode()

    assert 50 < refusals(lambda: preset.options(["scale=smoke", *word]), range(200), write_word) < 200


SHIPPED = yaml.safe_load((ROOT / "params.yaml").read_text())
# of parameters and of their sections
NAMES = sorted({part for name, _ in parameters() for part in accumulate(name.split("."), "{}.{}".format)})
ANY_NUMBER = st.integers() | st.floats()
SCALARS = st.none() | st.booleans() | ANY_NUMBER | st.text()
ANY_VALUE = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=5), SCALARS, max_size=3)
MORE = st.recursive(ANY_VALUE, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner))


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
@given(name=st.sampled_from(NAMES), value=MORE)
def test_any_value_of_a_parameter_is_taken_or_refused_by_name(name: str, value: object, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "params.yaml"
    message = told(path, changed(name, value))
    assert message.isprintable()
    assert not message or any(part in message for part in (name.rpartition(".")[2], "not readable YAML"))


@pytest.mark.parametrize("name", NAMES)
def test_a_parameter_is_needed_unless_it_may_be_nothing(name: str, tmp_path: Path):
    message = told(tmp_path / "params.yaml", changed(name))
    nullable = [some for some, kinds in parameters() if NoneType in kinds]
    assert message == "" if name in nullable else name.rpartition(".")[2] in message


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


ROW = {"question": SCALARS, "answer": SCALARS, "choices": ANY_VALUE, "answerKey": SCALARS}
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
@given(row=st.fixed_dictionaries({}, optional=ROW | {"choices": CHOICES}), number=st.none() | ANY_NUMBER | st.text())
def test_a_row_is_a_question_with_a_number_or_label_or_is_refused(row: dict, number: object):
    for some in (row, row | {"question": "Why?", "answer": f"#### {number}"}):
        found = asked("tasks/gsm8k.yaml", some)
        assert found is None or number_in(found.answer) == found.answer
    found = asked("tasks/commonsense_qa.yaml", row)
    assert found is None or found.answer in found.labels
