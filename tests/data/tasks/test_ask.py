"""Rows of data sets as questions, as task files say: the project's own task files, and what can be wrong with others."""

import shutil
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
import yaml

from pipeline.data.corpus import microworld
from pipeline.data.tasks import ask
from pipeline.data.tasks.ask import questions, write_tasks
from pipeline.data.tasks.questions import Question, read_tasks
from pipeline.data.tasks.spec import ChainOfThought, Data, Task, read_task
from pipeline.errors import UserError
from pipeline.params import HubSplit, Tasks
from tests.local_hub import commonsense_qa_rows, configured, gsm8k_rows, jsonl, parquet

ROOT = Path(__file__).parents[3]
SHARED = ROOT.parent / "shared/hub"
NUMBER_ROW = {"question": "Why?", "answer": 7}
CHOICE_ROW = {"question": "Which?", "texts": ["red", "blue", "grey"], "names": ["x", "y", "z"], "answer": "y"}
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


SVAMP = {"Body": "There are 290 bananas, in 2 groups.", "Question": "How big is a group?", "Answer": "145.0"}
AQUA_OPTIONS = ["A)(x + 1)", "B)21", "C)A)21", "D) 20.5", "E)20"]
SOCKS = ["Hang them up.", "Put them in a pond."]
SIQA = {"context": "Ann lost her hat.", "question": "How does Ann feel?"}
SIQA |= {"answerA": "sad", "answerB": "proud", "answerC": "full"}


def arc(*choices: str, labels: str, answer: str) -> dict:
    return {"question": "Which?", "choices": {"text": list(choices), "label": list(labels)}, "answerKey": answer}


# for each of the project's tasks: rows as the hub has them, and the prompt, answer and labels of each
EXPECTED = {
    "gsm8k": (gsm8k_rows(2), [("Q: What is 0 and 90?\nA:", "90", ""), ("Q: What is 1 and 91?\nA:", "92", "")]),
    "svamp": ([SVAMP], [(f"Q: {SVAMP['Body']} {SVAMP['Question']}\nA:", "145", "")]),
    "commonsense_qa": (
        commonsense_qa_rows(2)[1:],
        [(lettered("Where is number 1?", "trees", "water", "ponds", "cliffs", "wood"), "B", "ABCDE")],
    ),
    "aqua": (
        [{"question": "What is x?", "options": AQUA_OPTIONS, "rationale": "It is E", "correct": "E"}],
        [(lettered("What is x?", "(x + 1)", "21", "A)21", "20.5", "20"), "E", "ABCDE")],
    ),
    "arc_challenge": (
        [
            arc("ice", "water", "steam", "snow", labels="ABCD", answer="C"),
            arc("ice", "fire", "snow", "rain", labels="1234", answer="2"),
            arc("stone", "wood", "sun", labels="ABC", answer="C"),
        ],
        [
            (lettered("Which?", "ice", "water", "steam", "snow"), "C", "ABCD"),
            (lettered("Which?", "ice", "fire", "snow", "rain", labels="1234"), "2", "1234"),
            (lettered("Which?", "stone", "wood", "sun"), "C", "ABC"),
        ],
    ),
    "piqa": (
        [{"goal": "To dry socks", "sol1": SOCKS[0], "sol2": SOCKS[1], "label": label} for label in (0, 1)],
        [(lettered("To dry socks", *SOCKS), answer, "AB") for answer in "AB"],
    ),
    "siqa": (
        [SIQA | {"label": label} for label in "123"],
        [(lettered("Ann lost her hat. How does Ann feel?", "sad", "proud", "full"), a, "ABC") for a in "ABC"],
    ),
}


def test_every_task_of_the_project(project: Path):
    """Written from data sets in the hub's layout, and read again."""
    assert set(EXPECTED) == {path.stem for path in Path("tasks").glob("*.yaml")}
    for name, (rows, _) in EXPECTED.items():
        data = read_task(Path(f"tasks/{name}.yaml")).data
        configured(Path("hub") / data.path, data.name, data.split, rows)
    write_tasks(Tasks([f"tasks/{name}.yaml" for name in EXPECTED], root=str(Path("hub").resolve())), Path("out"))
    tasks = read_tasks(Path("out"))
    assert set(tasks) == set(EXPECTED)
    for name, (_, expected) in EXPECTED.items():
        own, found = tasks[name]
        assert own == read_task(Path(f"tasks/{name}.yaml"))
        step_by_step = [prompt.removesuffix("A:") + "A: Let's think step by step." for prompt, _, _ in expected]
        rows = [Question(*some[:2], list(some[2]), how) for some, how in zip(expected, step_by_step, strict=True)]
        assert list(found) == rows, name


def test_the_micro_worlds_tasks_ask_as_the_data_sets_do_whose_shape_they_have(project: Path):
    rows = {
        ("rings", "gsm8k"): microworld.gsm8k_questions(3, 1, 4),
        ("animals", "commonsense_qa"): microworld.commonsense_qa_questions(3, 1),
    }
    for (name, shape), some in rows.items():
        parquet(Path("data/corpus/tasks") / name, "test", some)
        own, other = (read_task(Path(f"tasks/{file}.yaml")) for file in (f"microworld/micro_{name}", shape))
        other.data = own.data
        pairs = zip(questions(own, None), questions(other, None), strict=True)
        assert all((a.prompt, a.answer, a.labels) == (b.prompt, b.answer, b.labels) for a, b in pairs)
        assert all(q.reasoning_prompt == q.prompt + " —" for q in questions(own, None))


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
    assert [q.answer for q in asked([NUMBER_ROW | {"answer": a} for a in answers])] == list(answers.values())


@pytest.mark.parametrize("answer", ["seven", "", "7 apples", "1/2", "1e5", "5.", None])
def test_an_answer_that_is_not_a_number(answer: object):
    """The message says which question it is."""
    message = refused([NUMBER_ROW, NUMBER_ROW | {"answer": answer}, NUMBER_ROW])
    assert "question 1" in message and "not a number" in message


@pytest.mark.parametrize("answer", ["No mark 12", "#### twelve", "####", ""])
def test_gsm8k_without_a_number_after_the_mark(answer: str):
    refused([{"question": "q", "answer": answer}], answer='answer.rsplit("####", 1)[1]')


@pytest.mark.parametrize("answer, label", [("y", "y"), (0, "x"), (2, "z"), (True, "y")])
def test_a_choice_is_a_label_or_an_index(answer: object, label: str):
    (question,) = asked([CHOICE_ROW | {"answer": answer}], **NAMED)
    assert question == Question("Q: Which?\n(x) red\n(y) blue\n(z) grey\nA:", label, ["x", "y", "z"])


def test_labels_are_letters_unless_the_task_names_them():
    (question,) = asked([CHOICE_ROW | {"answer": "C"}], **CHOICE)
    assert question.labels == list("ABC") and "(C) grey" in question.prompt
    numbers = CHOICE_ROW | {"names": ["1", "2", "3"], "answer": "1"}
    assert asked([numbers], **NAMED)[0].answer == "1"  # a label, not an index: the first of three


@pytest.mark.parametrize("answer", ["w", "", "Y", 3, -1, None, 1.0])
def test_an_answer_that_is_not_among_the_labels(answer: object):
    assert "not among x, y, z" in refused([CHOICE_ROW | {"answer": answer}], **NAMED)


@pytest.mark.parametrize("names", [["x", "y"], ["x", "y", "z", "w"], []])
def test_labels_and_choices_of_different_length(names: list[str]):
    refused([CHOICE_ROW | {"names": names}], **NAMED)


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"prompt": "Q: {{ body }}"}, "'body'"),
        ({"answer": "reply"}, "'reply'"),
        ({"answer": "answer.number"}, "'number'"),
        ({"chain_of_thought": reasoning("{{ body }}")}, "'body'"),
        ({"prompt": "{{ choice_lines }}"}, "'choice_lines'"),  # which only a choice has
        (CHOICE | {"choices": "options"}, "'options'"),
        (CHOICE | {"labels": "letters"}, "'letters'"),
    ],
)
def test_a_column_that_there_is_not(changes: dict, name: str):
    message = refused([CHOICE_ROW], **changes)
    assert name in message and "its columns are question, texts, names, answer" in message


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": "Q: {{ question"},
        {"prompt": "{% if question %}"},
        {"answer": "answer +"},
        {"answer": "import os"},
        {"answer": "[" * 400 + "]" * 400},
        CHOICE | {"choices": "[texts"},
        CHOICE | {"labels": "|"},
        {"chain_of_thought": reasoning("{% nothing %}")},
    ],
)
def test_an_expression_that_is_no_jinja(changes: dict):
    assert "question 0" not in refused([NUMBER_ROW], **changes)  # refused before the first row


def test_a_prompt_that_no_file_can_hold():
    assert "surrogates not allowed" in refused([NUMBER_ROW], prompt="{{ '\\ud800' }}")
    assert "question 1: the prompt is empty" in refused(
        [NUMBER_ROW, NUMBER_ROW | {"question": ""}], prompt="{{ question }}"
    )
    assert "a column that is used has no value" in refused([NUMBER_ROW | {"question": None}])
    assert "question 0" in refused([CHOICE_ROW | {"texts": 3}], **CHOICE)


INTERNALS = [
    "question.__class__",
    "question.__class__.__mro__[1].__subclasses__()",
    "''.__class__.__base__.__subclasses__()",
    "cycler.__init__.__globals__.os.popen('touch broken').read()",
    "joiner.__init__.__globals__",
    "lipsum.__globals__['os'].system('touch broken')",
    "'{0.__class__}'.format(question)",
    "question | attr('__class__')",
    "range(10**9) | list",
]


@pytest.mark.parametrize("expression", INTERNALS)
def test_a_template_that_reaches_for_pythons_internals(
    expression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    template = f"{{{{ {expression} }}}}"
    places = {"prompt": template, "answer": expression, "choices": expression, "labels": expression}
    for place, value in (places | {"chain_of_thought": reasoning(template)}).items():
        message = refused([CHOICE_ROW], **NAMED | {place: value})
        assert "is unsafe" in message or "sandbox blocks" in message
    assert not Path("broken").exists()


def task_file(name: str = "own.yaml", **changes: object) -> str:
    path = Path("tasks") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(asdict(task(**changes))))
    return str(path)


@pytest.mark.parametrize(
    "data, message",
    [
        (Data("./nowhere", split="test"), "./nowhere does not exist"),
        (Data("./own", split="extra"), "extra"),
        (Data("./own", "socratic", "test"), "socratic"),
        (Data("./hollow", split="test"), "hollow"),
        (Data("./blank", split="test"), "blank"),
    ],
)
def test_a_data_set_that_cannot_be_read(data: Data, message: str, project: Path):
    for folder in ("hollow", "blank"):
        Path(folder).mkdir()
    pd.DataFrame({"question": pd.Series([], dtype=str)}).to_parquet("blank/test.parquet")
    jsonl(Path("own"), "test", [NUMBER_ROW])
    with pytest.raises(UserError, match=message) as error:
        write_tasks(Tasks([task_file(data=data)]), Path("out"))
    assert "\n" not in str(error.value)
    assert not Path("out").exists() and not list(Path().glob("*.part"))


def test_task_files_that_are_refused(project: Path):
    """Outside the folder that DVC watches, missing, or two of one name."""
    jsonl(Path("own"), "test", [NUMBER_ROW])
    with pytest.raises(UserError, match="two files have the name own"):
        write_tasks(Tasks([task_file(), task_file("more/own.yaml")]), Path("out"))
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
    jsonl(Path("own"), "test", [CHOICE_ROW])
    file = task_file(**NAMED, chain_of_thought=reasoning("{{ choice_lines }} Think:"))
    write_tasks(Tasks([task_file("deep/other.yaml", answer="answer|length"), file]), Path("out"))
    tasks = read_tasks(Path("out"))
    assert list(tasks) == ["other", "own"]
    lines = "(x) red\n(y) blue\n(z) grey"
    expected = Question(f"Q: Which?\n{lines}\nA:", "y", ["x", "y", "z"], f"{lines} Think:")
    assert tasks["own"][0] == read_task(Path(file)) and list(tasks["own"][1]) == [expected]
    assert list(tasks["other"][1]) == [Question("Q: Which?\nA:", "1", [], "")]
    write_tasks(Tasks([file]), Path("out"))
    assert list(read_tasks(Path("out"))) == ["own"]


def test_where_the_data_set_is_looked_for(monkeypatch: pytest.MonkeyPatch):
    """``root`` takes the place of the hub; a path that can only be a folder stays where it is."""
    sources = []
    monkeypatch.setattr(ask, "rows", lambda source: sources.append(source) or iter([NUMBER_ROW]))
    for path in ("ybisk/piqa", "./own"):
        for root in (None, "/hub"):
            data = Data(path, None, "validation", "refs/convert/parquet")
            assert len(list(questions(task(data=data), root))) == 1
    assert [source.path for source in sources] == ["ybisk/piqa", "/hub/ybisk/piqa", "./own", "./own"]
    assert sources[0] == HubSplit("ybisk/piqa", None, "validation", "refs/convert/parquet")
