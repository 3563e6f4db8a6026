"""Rows of data sets as questions, as task files say: those of the project, and what can be wrong with others."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from pipeline.data.corpus import microworld
from pipeline.data.tasks import ask
from pipeline.data.tasks.ask import questions, write_tasks
from pipeline.data.tasks.questions import Question, read_tasks
from pipeline.data.tasks.spec import read_task
from pipeline.errors import UserError
from pipeline.params import HubSplit, Tasks
from tests.local_hub import commonsense_qa_rows, configured, gsm8k_rows, jsonl, parquet

ROOT = Path(__file__).parents[3]
SHARED = ROOT.parent / "shared/hub"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with the project's tasks."""
    shutil.copytree(ROOT / "tasks", tmp_path / "tasks")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def task_file(name: str = "own.yaml", **changes: object) -> str:
    """A task of numbers on the data set ./own, with ``changes``."""
    values = {
        "title": "Own",
        "source": "nobody",
        "version": 1,
        "data": {"path": "./own", "split": "test"},
        "kind": "number",
        "prompt": "Q: {{ question }}\nA:",
        "answer": "answer",
    }
    path = Path("tasks") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values | changes))
    return str(path)


def asked(rows: list[dict], **changes: object) -> list[Question]:
    jsonl(Path("own"), "test", rows)
    return list(questions(read_task(Path(task_file(**changes))), None))


def refused(rows: list[dict], **changes: object) -> str:
    """What is wrong with these rows, or this file, in one line that has the task's title."""
    with pytest.raises(UserError) as error:
        asked(rows, **changes)
    assert "\n" not in str(error.value) and "task Own" in str(error.value)
    return str(error.value)


NUMBER_ROW = {"question": "Why?", "answer": 7}
CHOICE_ROW = {"question": "Which?", "texts": ["red", "blue", "grey"], "names": ["x", "y", "z"], "answer": "y"}
CHOICE = {"kind": "choice", "prompt": "Q: {{ question }}\n{{ choice_lines }}\nA:", "choices": "texts"}
NAMED = CHOICE | {"labels": "names"}

SVAMP_ROW = {
    "ID": "chal-777",
    "Body": "There are 87 oranges and 290 bananas. If the bananas are in 2 groups and the oranges in 93 groups",
    "Question": "How big is each group of bananas?",
    "Equation": "( 290.0 / 2.0 )",
    "Answer": "145.0",
    "Type": "Common-Division",
}
AQUA_ROW = {
    "question": "The sum of (x + 1) and 20 is 41. What is x?",
    "options": ["A)(x + 1)", "B)21", "C)A)21", "D) 20.5", "E)20"],
    "rationale": "41 - 20 - 1 = 20.\nThe answer is E",
    "correct": "E",
}
ARC_ROWS = [
    {
        "id": "a",
        "question": "Which is a gas?",
        "choices": {"text": ["ice", "water", "steam", "snow"], "label": list("ABCD")},
        "answerKey": "C",
    },
    {
        "id": "b",
        "question": "Which is hot?",
        "choices": {"text": ["ice", "fire", "snow", "rain"], "label": list("1234")},
        "answerKey": "2",
    },
    {
        "id": "c",
        "question": "What shines?",
        "choices": {"text": ["stone", "wood", "sun"], "label": list("ABC")},
        "answerKey": "C",
    },
    {
        "id": "d",
        "question": "What swims?",
        "choices": {"text": ["cow", "dog", "cat", "fish", "hen"], "label": list("ABCDE")},
        "answerKey": "D",
    },
]
PIQA_ROWS = [
    {"goal": "To dry socks", "sol1": "Hang them up.", "sol2": "Put them in a pond.", "label": 0},
    {"goal": "To boil an egg", "sol1": "Use ice.", "sol2": "Use hot water.", "label": 1},
]
SIQA_ROWS = [
    {
        "context": "Ann lost her hat.",
        "question": "How does Ann feel?",
        "answerA": "sad",
        "answerB": "proud",
        "answerC": "full",
        "label": label,
    }
    for label in "123"
]
ABC = list("ABCDE")
SIQA_PROMPT = "Q: Ann lost her hat. How does Ann feel?\n(A) sad\n(B) proud\n(C) full\nA:"
# of each of the project's tasks: rows as the hub has them, and the questions that they are
EXPECTED = {
    "gsm8k": (
        gsm8k_rows(2),
        [Question(f"Q: What is {i} and {i + 90}?\nA:", str(2 * i + 90), []) for i in range(2)],
    ),
    "commonsense_qa": (
        commonsense_qa_rows(2)[1:],
        [Question("Q: Where is number 1?\n(A) trees\n(B) water\n(C) ponds\n(D) cliffs\n(E) wood\nA:", "B", ABC)],
    ),
    "svamp": ([SVAMP_ROW], [Question(f"Q: {SVAMP_ROW['Body']} {SVAMP_ROW['Question']}\nA:", "145", [])]),
    "aqua": (
        [AQUA_ROW],
        [
            Question(
                f"Q: {AQUA_ROW['question']}\n(A) (x + 1)\n(B) 21\n(C) A)21\n(D) 20.5\n(E) 20\nA:",
                "E",
                ABC,
            )
        ],
    ),
    "arc_challenge": (
        ARC_ROWS,
        [
            Question("Q: Which is a gas?\n(A) ice\n(B) water\n(C) steam\n(D) snow\nA:", "C", list("ABCD")),
            Question("Q: Which is hot?\n(1) ice\n(2) fire\n(3) snow\n(4) rain\nA:", "2", list("1234")),
            Question("Q: What shines?\n(A) stone\n(B) wood\n(C) sun\nA:", "C", list("ABC")),
            Question("Q: What swims?\n(A) cow\n(B) dog\n(C) cat\n(D) fish\n(E) hen\nA:", "D", ABC),
        ],
    ),
    "piqa": (
        PIQA_ROWS,
        [
            Question("Q: To dry socks\n(A) Hang them up.\n(B) Put them in a pond.\nA:", "A", list("AB")),
            Question("Q: To boil an egg\n(A) Use ice.\n(B) Use hot water.\nA:", "B", list("AB")),
        ],
    ),
    "siqa": (SIQA_ROWS, [Question(SIQA_PROMPT, answer, list("ABC")) for answer in "ABC"]),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_task_of_the_project(name: str):
    rows, expected = EXPECTED[name]
    data = read_task(Path(f"tasks/{name}.yaml")).data
    configured(Path("hub") / data.path, data.name, data.split, rows)
    write_tasks(Tasks([f"tasks/{name}.yaml"], root=str(Path("hub").resolve())), Path("out"))
    ((task, read),) = read_tasks(Path("out")).values()
    found = list(read)
    assert task.data == data
    assert [Question(q.prompt, q.answer, q.labels) for q in found] == expected
    step_by_step = [q.prompt.removesuffix("A:") + "A: Let's think step by step." for q in expected]
    assert [q.reasoning_prompt for q in found] == step_by_step


def test_every_task_of_the_project_is_tested():
    assert set(EXPECTED) == {path.stem for path in Path("tasks").glob("*.yaml")}


def test_the_micro_worlds_tasks_are_asked_as_the_data_sets_whose_shape_they_have():
    rows = {
        ("rings", "gsm8k"): list(microworld.gsm8k_questions(3, 1, 4)),
        ("animals", "commonsense_qa"): list(microworld.commonsense_qa_questions(3, 1)),
    }
    for (name, shape), some in rows.items():
        parquet(Path("data/corpus/tasks") / name, "test", some)
        own = read_task(Path(f"tasks/microworld/micro_{name}.yaml"))
        other = read_task(Path(f"tasks/{shape}.yaml"))
        other.data = own.data
        pairs = zip(questions(own, None), questions(other, None), strict=True)
        assert all((a.prompt, a.answer, a.labels) == (b.prompt, b.answer, b.labels) for a, b in pairs)
        assert all(q.reasoning_prompt == q.prompt + " —" for q in questions(own, None))


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real data at {SHARED}")
def test_every_real_question_is_read():
    write_tasks(Tasks(["tasks/gsm8k.yaml", "tasks/commonsense_qa.yaml"], root=str(SHARED)), Path("out"))
    read = {name: list(found) for name, (_, found) in read_tasks(Path("out")).items()}
    assert len(read["gsm8k"]) == 1319 and len(read["commonsense_qa"]) == 1221
    assert all(float(q.answer) is not None and set(q.answer) <= set("-.0123456789") for q in read["gsm8k"])
    assert all(q.labels == ABC and q.answer in ABC for q in read["commonsense_qa"])
    assert read["gsm8k"][0].prompt.startswith("Q: Janet’s ducks lay 16 eggs per day.")
    assert read["gsm8k"][0].answer == "18"


def test_the_number_of_the_answer_is_as_numbers_are_compared():
    rows = [NUMBER_ROW | {"answer": a} for a in ("1,234", "$5", " -7 ", "20.0", "0.50", "-.5")]
    assert [q.answer for q in asked(rows)] == ["1234", "5", "-7", "20", "0.5", "-0.5"]
    assert [q.answer for q in asked([NUMBER_ROW, NUMBER_ROW | {"answer": 12}])] == ["7", "12"]
    assert asked([NUMBER_ROW | {"answer": 2.0}])[0].answer == "2"


@pytest.mark.parametrize("answer", ["seven", "", "7 apples", "1/2", "1e5", "5.", None])
def test_an_answer_that_is_not_a_number(answer: object):
    message = refused([NUMBER_ROW | {"answer": "7"}, NUMBER_ROW | {"answer": answer}])
    assert "question 1" in message and "not a number" in message


@pytest.mark.parametrize("answer", ["No mark 12", "#### twelve", "####", ""])
def test_gsm8k_without_a_number_after_the_mark(answer: str):
    refused([{"question": "q", "answer": answer}], answer='answer.rsplit("####", 1)[1]')


@pytest.mark.parametrize(
    "answer, label", [("y", "y"), (0, "x"), (2, "z"), (True, "y")], ids=["label", "first", "last", "yes"]
)
def test_a_choice_is_a_label_or_a_place(answer: object, label: str):
    (question,) = asked([CHOICE_ROW | {"answer": answer}], **NAMED)
    assert question == Question("Q: Which?\n(x) red\n(y) blue\n(z) grey\nA:", label, ["x", "y", "z"])


def test_choices_are_called_by_letters_unless_they_have_labels():
    (question,) = asked([CHOICE_ROW | {"answer": "C"}], **CHOICE)
    assert question.labels == list("ABC") and "(C) grey" in question.prompt


def test_labels_that_look_like_numbers_are_labels():
    """Not places: "1" is the first of four."""
    row = CHOICE_ROW | {"names": ["1", "2", "3"], "answer": "1"}
    assert asked([row], **NAMED)[0].answer == "1"


@pytest.mark.parametrize("answer", ["w", "", "Y", 3, -1, None, 1.0])
def test_an_answer_that_is_not_among_the_labels(answer: object):
    assert "not among x, y, z" in refused([CHOICE_ROW | {"answer": answer}], **NAMED)


@pytest.mark.parametrize("names", [["x", "y"], ["x", "y", "z", "w"], []])
def test_labels_and_choices_of_different_length(names: list[str]):
    refused([CHOICE_ROW | {"names": names}], **NAMED)


def test_choices_that_are_no_list():
    refused([CHOICE_ROW | {"texts": 3}], **CHOICE)


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": "Q: {{ body }}"},
        {"answer": "reply"},
        {"answer": "answer.number"},
        {"chain_of_thought": {"prompt": "{{ body }}", "answer_prompt": "So"}},
        {"prompt": "{{ choice_lines }}"},  # which only a choice has
    ],
)
def test_a_column_that_there_is_not(changes: dict):
    message = refused([NUMBER_ROW], **changes)
    assert "question, answer" in message  # the columns that there are
    assert any(name in message for name in ("'body'", "'reply'", "'number'", "'choice_lines'"))


@pytest.mark.parametrize("changes", [{"choices": "options"}, {"choices": "texts", "labels": "letters"}])
def test_a_column_of_choices_that_there_is_not(changes: dict):
    assert "undefined" in refused([CHOICE_ROW], **CHOICE | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": "Q: {{ question"},
        {"prompt": "{% if question %}"},
        {"answer": "answer +"},
        {"answer": "import os"},
        CHOICE | {"choices": "[texts"},
        CHOICE | {"labels": "|"},
        {"chain_of_thought": {"prompt": "{% nothing %}", "answer_prompt": "So"}},
    ],
)
def test_an_expression_that_is_no_jinja(changes: dict):
    refused([NUMBER_ROW], **changes)


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
@pytest.mark.parametrize("place", ["prompt", "answer", "choices", "labels", "chain_of_thought"])
def test_a_template_that_reaches_for_pythons_internals(expression: str, place: str):
    template = f"{{{{ {expression} }}}}"
    values = {
        "prompt": template,
        "answer": expression,
        "choices": expression,
        "labels": expression,
        "chain_of_thought": {"prompt": template, "answer_prompt": "So"},
    }
    message = refused([CHOICE_ROW], **NAMED | {place: values[place]})
    assert "is unsafe" in message or "sandbox blocks" in message
    assert not Path("broken").exists()


def test_a_prompt_that_is_empty():
    assert "question 1: the prompt is empty" in refused(
        [NUMBER_ROW, NUMBER_ROW | {"question": ""}], prompt="{{ question }}"
    )


def test_what_is_refused_says_which_question():
    assert "question 2" in refused([NUMBER_ROW, NUMBER_ROW, NUMBER_ROW | {"answer": None}, NUMBER_ROW])


@pytest.mark.parametrize(
    "data, named",
    [
        ({"path": "./nowhere", "split": "test"}, "./nowhere does not exist"),
        ({"path": "./own", "split": "extra"}, "extra"),
        ({"path": "./own", "split": "test", "name": "socratic"}, "socratic"),
        ({"path": "./hollow", "split": "test"}, "hollow"),
        ({"path": "./blank", "split": "test"}, "blank"),
    ],
)
def test_a_data_set_that_cannot_be_read(data: dict, named: str):
    Path("hollow").mkdir()
    Path("blank").mkdir()
    pd.DataFrame({"question": pd.Series([], dtype=str)}).to_parquet("blank/test.parquet")
    jsonl(Path("own"), "test", [NUMBER_ROW])
    with pytest.raises(UserError, match=named) as error:
        write_tasks(Tasks([task_file(data=data)]), Path("out"))
    assert "\n" not in str(error.value)
    assert not Path("out").exists() and not list(Path().glob("*.part"))


def test_a_file_outside_the_folder_that_dvc_watches():
    jsonl(Path("own"), "test", [NUMBER_ROW])
    shutil.move(task_file(), "elsewhere.yaml")
    for path in ("elsewhere.yaml", "tasks/../elsewhere.yaml", str(Path("elsewhere.yaml").resolve())):
        with pytest.raises(UserError, match="not in the folder tasks"):
            write_tasks(Tasks([path]), Path("out"))
    with pytest.raises(UserError, match="tasks/own.yaml is missing"):
        write_tasks(Tasks(["tasks/own.yaml"]), Path("out"))


def test_two_files_of_one_name():
    jsonl(Path("own"), "test", [NUMBER_ROW])
    with pytest.raises(UserError, match="two files have the name own"):
        write_tasks(Tasks([task_file(), task_file("more/own.yaml")]), Path("out"))
    assert not Path("out").exists()


def test_what_is_written_is_what_is_read_and_replaces_what_was_there():
    jsonl(Path("own"), "test", [CHOICE_ROW])
    file = task_file(**NAMED, chain_of_thought={"prompt": "{{ choice_lines }} Think:", "answer_prompt": "So"})
    write_tasks(Tasks([file]), Path("out"))
    write_tasks(Tasks([task_file("deep/other.yaml", answer="answer|length"), file]), Path("out"))
    tasks = read_tasks(Path("out"))
    assert list(tasks) == ["other", "own"]
    lines = "(x) red\n(y) blue\n(z) grey"
    expected = Question(f"Q: Which?\n{lines}\nA:", "y", ["x", "y", "z"], f"{lines} Think:")
    assert tasks["own"][0] == read_task(Path(file)) and list(tasks["own"][1]) == [expected]
    assert list(tasks["other"][1]) == [Question("Q: Which?\nA:", "1", [], "")]
    write_tasks(Tasks([file]), Path("out"))
    assert list(read_tasks(Path("out"))) == ["own"]


def test_no_tasks_are_said_to_be_made_by_the_stage():
    with pytest.raises(UserError, match="dvc repro tasks"):
        read_tasks(Path("out"))


def test_the_data_set_is_asked_for_as_the_file_says(monkeypatch: pytest.MonkeyPatch):
    """On the hub, where a revision counts."""
    sources = []
    monkeypatch.setattr(ask, "rows", lambda source, *_, **__: sources.append(source) or iter([PIQA_ROWS[0]]))
    task = read_task(Path("tasks/piqa.yaml"))
    for root in (None, "/hub"):
        assert len(list(questions(task, root))) == 1
    rest = (None, "validation", "refs/convert/parquet")
    assert sources == [HubSplit("ybisk/piqa", *rest), HubSplit("/hub/ybisk/piqa", *rest)]


def test_root_is_for_hub_names_alone():
    """A path that can only be a folder stays where it is."""
    parquet(Path("hub/a/b"), "test", [NUMBER_ROW])
    jsonl(Path("own"), "test", [NUMBER_ROW | {"answer": 8}])
    rooted = [task_file("hub.yaml", data={"path": "a/b", "split": "test"}), task_file()]
    write_tasks(Tasks(rooted, root=str(Path("hub").resolve())), Path("out"))
    assert {name: next(found).answer for name, (_, found) in read_tasks(Path("out")).items()} == {
        "hub": "7",
        "own": "8",
    }
