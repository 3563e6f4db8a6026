"""Rows of data sets as questions, as task files say: the project's own files, what can be wrong, numbers in a text."""

import shutil
from dataclasses import asdict
from decimal import Decimal
from functools import partial
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.tasks import ask
from pipeline.data.tasks.ask import questions, write_tasks
from pipeline.data.tasks.questions import Question, number_in, read_tasks
from pipeline.data.tasks.spec import ChainOfThought, Data, Task, read_task
from pipeline.errors import UserError
from pipeline.params import HubSplit, Tasks
from tests.local_hub import commonsense_qa_rows, configured, gsm8k_rows, jsonl

ROOT = Path(__file__).parents[3]
SHARED = ROOT.parent / "shared/hub"
ROW = {"question": "Which?", "texts": ["red", "blue", "grey"], "names": ["x", "y", "z"], "answer": 1}
CHOICE = {"kind": "choice", "prompt": "Q: {{ question }}\n{{ choice_lines }}\nA:", "choices": "texts"}
NAMED = CHOICE | {"labels": "names"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with the project's tasks."""
    shutil.copytree(ROOT / "tasks", tmp_path / "tasks")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def task(**changes: object) -> Task:
    """A task of numbers on the data set ./own, with ``changes``."""
    values = {"title": "Own", "source": "nobody", "version": 1, "data": Data("./own", split="test"), "kind": "number"}
    return Task(**values | {"prompt": "Q: {{ question }}\nA:", "answer": "answer"} | changes)


def reasoning(prompt: str) -> ChainOfThought:
    return ChainOfThought(prompt, answer_prompt="So")


def asked(rows: list[dict], **changes: object) -> list[Question]:
    """These rows as questions, without a data set."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ask, "rows", lambda source: iter(rows))
        return list(questions(task(**changes), None))


def refused(rows: list[dict], **changes: object) -> str:
    """What is wrong with these rows or this task, in one line with the task's title."""
    with pytest.raises(UserError) as error:
        asked(rows, **changes)
    assert "\n" not in str(error.value) and "task Own" in str(error.value)
    return str(error.value)


def lettered(question: str, *choices: str, labels: str = "ABCDE") -> str:
    lines = [f"({label}) {choice}" for label, choice in zip(labels, choices, strict=False)]
    return "\n".join([f"Q: {question}", *lines, "A:"])


def arc(labels: str, answer: str, *choices: str) -> tuple[dict, tuple[str, str, str]]:
    row = {"question": "Which?", "choices": {"text": list(choices), "label": list(labels)}, "answerKey": answer}
    return row, (lettered("Which?", *choices, labels=labels), answer, labels)


SVAMP = {"Body": "There are 290 bananas, in 2 groups.", "Question": "How big is a group?", "Answer": "145.0"}
PLACES = ["trees", "water", "ponds", "cliffs", "wood"]
AQUA = {"question": "What is x?", "options": ["A)(x + 1)", "B)21", "C)A)21", "D) 20.5", "E)20"], "correct": "E"}
PIQA = {"goal": "To dry", "sol1": "Hang them.", "sol2": "Wet them."}
SIQA = {"context": "Ann fell.", "question": "How is Ann?", "answerA": "sad", "answerB": "proud", "answerC": "full"}
SIQA_PROMPT = lettered("Ann fell. How is Ann?", "sad", "proud", "full")
# for each of the project's tasks: rows as the hub has them, and the prompt, answer and labels of each
EXPECTED = {
    "gsm8k": [(gsm8k_rows(2)[1], ("Q: What is 1 and 91?\nA:", "92", ""))],
    "svamp": [(SVAMP, (f"Q: {SVAMP['Body']} {SVAMP['Question']}\nA:", "145", ""))],
    "commonsense_qa": [(commonsense_qa_rows(2)[1], (lettered("Where is number 1?", *PLACES), "B", "ABCDE"))],
    "aqua": [(AQUA, (lettered("What is x?", "(x + 1)", "21", "A)21", "20.5", "20"), "E", "ABCDE"))],
    "arc_challenge": [arc("ABCD", "C", "a", "b", "c", "d"), arc("1234", "2", *"abcd"), arc("ABC", "C", *"abc")],
    "piqa": [(PIQA | {"label": i}, (lettered("To dry", "Hang them.", "Wet them."), "AB"[i], "AB")) for i in (0, 1)],
    "siqa": [(SIQA | {"label": "123"[i]}, (SIQA_PROMPT, "ABC"[i], "ABC")) for i in range(3)],
}


def unlettered(question: str, answer: str, *choices: str, start: str = "Question: ", end: str = "Answer:") -> Question:
    return Question(f"{start}{question}\n{end}", answer, list(choices), group="0")


SIQA_TEXTS = partial(unlettered, "Ann fell. How is Ann?", start="Q: ", end="A:")
# of the tasks whose choices' texts are scored: a row as the hub has it, and its question
TEXTS = {
    "commonsense_qa_text": (commonsense_qa_rows(2)[1], unlettered("Where is number 1?", "water", *PLACES)),
    "arc_easy_text": (arc("1234", "2", *"abcd")[0], unlettered("Which?", "b", *"abcd")),
    "arc_challenge_text": (arc("ABC", "C", *"abc")[0], unlettered("Which?", "c", *"abc")),
    "piqa_text": (PIQA | {"label": 1}, unlettered("To dry", "Wet them.", "Hang them.", "Wet them.")),
    "siqa_text": (SIQA | {"label": "3"}, SIQA_TEXTS("full", "sad", "proud", "full")),
}


def test_every_task_of_texts(project: Path):
    assert set(TEXTS) == {path.stem for path in Path("tasks/text").glob("*.yaml")}
    for name, (row, question) in TEXTS.items():
        task = read_task(Path(f"tasks/text/{name}.yaml"))
        configured(Path(name) / task.data.path, task.data.name, task.data.split, [row])
        assert task.kind == "text" and list(questions(task, str(Path(name).resolve()))) == [question]
    assert "the text of a choice is empty" in refused([ROW | {"texts": ["a", " "]}], **CHOICE | {"kind": "text"})


def test_every_task_of_the_project(project: Path):
    assert set(EXPECTED) == {path.stem for path in Path("tasks").glob("*.yaml")}
    for name, pairs in EXPECTED.items():
        data = read_task(Path(f"tasks/{name}.yaml")).data
        configured(Path("hub") / data.path, data.name, data.split, [row for row, _ in pairs])
    write_tasks(Tasks([f"tasks/{name}.yaml" for name in EXPECTED], root=str(Path("hub").resolve())), Path("out"))
    tasks = read_tasks(Path("out"))
    assert set(tasks) == set(EXPECTED)
    for name, pairs in EXPECTED.items():
        own, found = tasks[name]
        assert own == read_task(Path(f"tasks/{name}.yaml"))
        assert list(found) == [
            Question(prompt, answer, list(labels), f"{prompt} Let's think step by step.", str(index))
            for index, (_, (prompt, answer, labels)) in enumerate(pairs)
        ]


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real data at {SHARED}")
def test_every_real_question_is_read(project: Path):
    write_tasks(Tasks(["tasks/gsm8k.yaml", "tasks/commonsense_qa.yaml"], root=str(SHARED)), Path("out"))
    read = {name: list(found) for name, (_, found) in read_tasks(Path("out")).items()}
    assert len(read["gsm8k"]) == 1319 and len(read["commonsense_qa"]) == 1221
    assert all(float(q.answer) is not None and set(q.answer) <= set("-.0123456789") for q in read["gsm8k"])
    assert all(q.labels == list("ABCDE") and q.answer in "ABCDE" for q in read["commonsense_qa"])
    assert read["gsm8k"][0].prompt.startswith("Q: Janet’s ducks lay 16 eggs per day.")
    assert read["gsm8k"][0].answer == "18"


def test_the_number_of_the_answer_is_as_numbers_are_compared():
    answers = {"1,234": "1234", "$5": "5", " -7 ": "-7", "20.0": "20", "0.50": "0.5", "-.5": "-0.5", 12: "12", 2.0: "2"}
    assert [q.answer for q in asked([ROW | {"answer": a} for a in answers])] == list(answers.values())
    assert "question 2: " in refused([ROW, ROW, ROW | {"answer": "seven"}, ROW])


def test_a_choice_is_a_label_or_an_index():
    for answer, label in [("y", "y"), (0, "x"), (2, "z"), (True, "y")]:
        (question,) = asked([ROW | {"answer": answer}], **NAMED)
        assert question == Question("Q: Which?\n(x) red\n(y) blue\n(z) grey\nA:", label, ["x", "y", "z"], group="0")
    (question,) = asked([ROW | {"answer": "C"}], **CHOICE)
    assert question.labels == list("ABC") and "(C) grey" in question.prompt  # letters, as it names no labels
    numbers = ROW | {"names": ["1", "2", "3"], "answer": "1"}
    assert asked([numbers], **NAMED)[0].answer == "1"  # a label, not an index: the first of three
    numbers = ROW | {"names": ["1", "2", "3"], "answer": 1, "self": "any name of a column"}
    assert asked([numbers], **NAMED)[0].answer == "1"
    numbers = ROW | {"names": [1, 2, 3]}
    told = [(1, "1", "red"), (3, "3", "grey"), (2.0, "2", "blue"), ("3", "3", "grey"), (0, "1", "red")]
    for answer, label, text in told:  # 0 is no label, so it is an index
        for kind, expected in (("choice", label), ("text", text)):
            (question,) = asked([numbers | {"answer": answer}], **NAMED | {"kind": kind})
            assert question.answer == expected


COLUMNS = "undefined; its columns are question, texts, names, answer"
AFTER_MARK = {"answer": 'answer.rsplit("####", 1)[1]'}


@pytest.mark.parametrize(
    "row, changes, message",
    [
        *(({"answer": a}, {}, "which is not a number") for a in ("seven", "", "7 apples", "1/2", "1e5", "5.", None)),
        *(({"answer": a}, AFTER_MARK, "") for a in ("No mark 12", "#### twelve", "####", "", None)),
        *(({"answer": a}, NAMED, "which is not among x, y, z") for a in ("w", "", "Y", 3, -1, None, 1.0)),
        *(({"names": names}, NAMED, "its own") for names in (["x", "y"], ["x", "y", "z", "w"], [], ["x", "y", "x"])),
        *(({"texts": texts}, CHOICE, "its own") for texts in ([], ["red"], ["red"] * 27)),
        ({"texts": 3}, CHOICE, "not iterable"),
        ({"texts": ["red", None, "grey"]}, CHOICE, "a column that is used has no value"),
        ({"names": ["x", "y", None]}, NAMED, "a column that is used has no value"),
        ({}, {"prompt": "Q: {{ body }}"}, f"'body' is {COLUMNS}"),
        ({}, {"answer": "reply"}, f"'reply' is {COLUMNS}"),
        ({}, {"answer": "answer.number"}, "has no attribute 'number'"),
        ({}, {"chain_of_thought": reasoning("{{ body }}")}, f"'body' is {COLUMNS}"),
        ({}, {"prompt": "{{ choice_lines }}"}, f"'choice_lines' is {COLUMNS}"),  # which only a choice has
        ({}, CHOICE | {"choices": "options"}, f"'options' is {COLUMNS}"),
        ({}, CHOICE | {"labels": "letters"}, f"'letters' is {COLUMNS}"),
        ({}, {"group": "fact"}, f"'fact' is {COLUMNS}"),
        ({}, {"part": "hops"}, f"'hops' is {COLUMNS}"),
        ({"hops": None}, {"part": "hops"}, "a column that is used has no value"),
        ({"question": ""}, {"prompt": "{{ question }}"}, "the prompt is empty"),
        ({"question": None}, {}, "a column that is used has no value"),
        ({}, {"prompt": "{{ '\\ud800' }}"}, "surrogates not allowed"),  # which no file can hold
    ],
)
def test_a_row_that_is_refused(row: dict, changes: dict, message: str):
    told = refused([ROW | row], **changes)
    assert "question 0: " in told and message in told


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": "Q: {{ question"},
        {"answer": "answer +"},
        {"answer": "[" * 400 + "]" * 400},
        CHOICE | {"choices": "[texts"},
        CHOICE | {"labels": "|"},
        {"chain_of_thought": reasoning("{% nothing %}")},
    ],
)
def test_an_expression_that_is_no_jinja(changes: dict):
    assert "question 0" not in refused([ROW], **changes)  # refused before the first row


INTERNALS = [
    "question.__class__",
    "cycler.__init__.__globals__.os.popen('touch broken').read()",
    "lipsum.__globals__['os'].system('touch broken')",
    "'{0.__class__}'.format(question)",
    "question | attr('__class__')",
    "range(10**9) | list",
]


@pytest.mark.parametrize("expression", INTERNALS)
def test_a_template_that_reaches_for_pythons_internals(expression: str, project: Path):
    template = f"{{{{ {expression} }}}}"
    places = dict.fromkeys(("answer", "choices", "labels", "group", "part"), expression)
    for place, value in (places | {"prompt": template, "chain_of_thought": reasoning(template)}).items():
        message = refused([ROW], **NAMED | {place: value})
        assert "is unsafe" in message or "sandbox blocks" in message
    assert not Path("broken").exists()


def task_file(name: str = "own.yaml", **changes: object) -> str:
    path = Path("tasks") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(asdict(task(**changes))))
    return str(path)


def test_task_files_that_are_refused(project: Path):
    """Outside the folder that DVC watches, missing, or two of one name."""
    jsonl(Path("own"), "test", [ROW])
    with pytest.raises(UserError, match="two files have the name own"):
        write_tasks(Tasks([task_file(), task_file("more/own.yaml")]), Path("out"))
    for name in ("heldout", "cost", "content_own"):  # metrics.json and summary.json have other figures of these names
        with pytest.raises(UserError, match="a name that other figures have"):
            write_tasks(Tasks([task_file(f"{name}.yaml")]), Path("out"))
    assert not Path("out").exists()
    shutil.move("tasks/own.yaml", "elsewhere.yaml")
    for path in ("elsewhere.yaml", "tasks/../elsewhere.yaml", str(Path("elsewhere.yaml").resolve())):
        with pytest.raises(UserError, match="not in the folder tasks"):
            write_tasks(Tasks([path]), Path("out"))
    with pytest.raises(UserError, match="tasks/own.yaml is missing"):
        write_tasks(Tasks(["tasks/own.yaml"]), Path("out"))
    with pytest.raises(UserError, match="dvc repro tasks"):
        read_tasks(Path("out"))


def test_what_is_written_is_what_is_read_and_replaces_what_was_there(project: Path):
    jsonl(Path("own"), "test", [ROW])
    file = task_file(
        **NAMED, group="names[answer]", part="answer + 2", chain_of_thought=reasoning("{{ choice_lines }} Think:")
    )
    write_tasks(Tasks([task_file("deep/other.yaml"), file]), Path("out"))
    tasks = read_tasks(Path("out"))
    assert list(tasks) == ["other", "own"]
    lines = "(x) red\n(y) blue\n(z) grey"
    expected = Question(f"Q: Which?\n{lines}\nA:", "y", ["x", "y", "z"], f"{lines} Think:", "y", "3")
    assert tasks["own"][0] == read_task(Path(file)) and list(tasks["own"][1]) == [expected]
    assert list(tasks["other"][1]) == [Question("Q: Which?\nA:", "1", [], "", "0")]
    write_tasks(Tasks([file]), Path("out"))
    assert list(read_tasks(Path("out"))) == ["own"]


def test_where_the_data_set_is_looked_for(monkeypatch: pytest.MonkeyPatch):
    """``root`` takes the place of the hub; a path that can only be a folder stays where it is."""
    sources = []
    monkeypatch.setattr(ask, "rows", lambda source: sources.append(source) or iter([ROW]))
    for path in ("ybisk/piqa", "./own"):
        for root in (None, "/hub"):
            data = Data(path, None, "validation", "refs/convert/parquet")
            assert len(list(questions(task(data=data), root))) == 1
    assert [source.path for source in sources] == ["ybisk/piqa", "/hub/ybisk/piqa", "./own", "./own"]
    assert sources[0] == HubSplit("ybisk/piqa", None, "validation", "refs/convert/parquet")


def test_a_root_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    jsonl(tmp_path / "hub/some/own", "test", [ROW])
    assert len(list(questions(task(data=Data("some/own", split="test")), "~/hub"))) == 1


def test_the_first_number():
    told = {"5, 6": "5", "12.": "12", ".5": "0.5", "-.50": "-0.5", "000": "0", "-0.0": "0", "10-5": "10", "3/4": "3"}
    told |= {"$1,450,000.": "1450000", "<<3+4=7>>": "3", "1.2.3": "1.2", "x2": "2", "-.,": None, "- 5": "5"}
    assert {text: number_in(text) for text in told} == told


def formatted(number: Decimal, commas: bool, zeros: int, lead: int) -> str:
    sign, text = ("-" if number < 0 else ""), format(abs(number), ",f" if commas else "f")
    if zeros:
        text += ("" if "." in text else ".") + "0" * zeros
    return sign + "0" * lead + text


NUMBERS = st.decimals(-(10**12), 10**12, allow_nan=False, places=None).map(lambda d: round(d, 4))


@given(NUMBERS, st.booleans(), st.integers(0, 3), st.integers(0, 2), st.sampled_from(["", " ", "It is $", "A: ", "= "]))
def test_however_it_is_written_a_number_is_itself(number: Decimal, commas: bool, zeros: int, lead: int, before: str):
    read = number_in(f"{before}{formatted(number, commas, zeros, lead)} and 7 more")
    assert Decimal(read) == number
    assert read == number_in(str(read)) == number_in(format(number, "f"))


@given(st.text() | st.text("0٣५².,- x"))  # digits of other scripts make no number, as numbers are compared as strings
def test_a_text_has_a_number_where_it_has_a_digit(text: str):
    read = number_in(text)
    assert (read is not None) == any(c in "0123456789" for c in text)
    assert read is None or set(read) <= set("-.0123456789")
