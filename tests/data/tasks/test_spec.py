"""What a task file may say, and how it is refused: in one line, with the file's name and the culprit's."""

from pathlib import Path

import pytest
import yaml

from pipeline.data.tasks.spec import ChainOfThought, Data, Task, read_task
from pipeline.errors import UserError

ROOT = Path(__file__).parents[3]
SHIPPED = sorted(path.relative_to(ROOT) for path in (ROOT / "tasks").rglob("*.yaml"))
LEAST = {
    "title": "A task",
    "source": "nobody",
    "version": 1,
    "data": {"path": "a/b", "split": "test"},
    "kind": "number",
    "prompt": "Q: {{ question }}",
    "answer": "answer",
}
CHOICE = {"kind": "choice", "choices": "options"}
REASONING = {"prompt": "Think:", "stop": ["Q:"], "answer_prompt": "So"}


def written(path: Path, changes: dict[str, object], without: str | None = None) -> Path:
    values = {name: value for name, value in (LEAST | changes).items() if name != without}
    path.write_text(yaml.safe_dump(values))
    return path


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_task(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


def test_what_may_be_left_out_has_these_values(tmp_path: Path):
    assert read_task(written(tmp_path / "a.yaml", {})) == Task(
        title="A task",
        source="nobody",
        version=1,
        data=Data(path="a/b", name=None, split="test", revision=None),
        kind="number",
        prompt="Q: {{ question }}",
        answer="answer",
        choices=None,
        labels=None,
        legal="0123456789",
        stop=["\n"],
        chain_of_thought=None,
    )


def test_every_field_is_read(tmp_path: Path):
    everything = {
        **LEAST,
        "version": 3,
        "data": {"path": "c/d", "name": "main", "split": "dev", "revision": "refs/convert/parquet"},
        "kind": "choice",
        "choices": "choices.text",
        "labels": "choices.label",
        "legal": "01",
        "stop": [".", "\n\n"],
        "chain_of_thought": REASONING,
    }
    expected = everything | {
        "data": Data(**everything["data"]),
        "chain_of_thought": ChainOfThought(**everything["chain_of_thought"]),
    }
    assert read_task(written(tmp_path / "a.yaml", everything)) == Task(**expected)


def test_reasoning_may_have_no_stop(tmp_path: Path):
    reasoning = {name: value for name, value in REASONING.items() if name != "stop"}
    task = read_task(written(tmp_path / "a.yaml", {"chain_of_thought": reasoning}))
    assert task.chain_of_thought == ChainOfThought(prompt="Think:", stop=[], answer_prompt="So")


@pytest.mark.parametrize("path", SHIPPED, ids=str)
def test_the_shipped_files_are_tasks_with_a_source(path: Path):
    task = read_task(ROOT / path)
    assert task.title and task.version >= 1 and task.chain_of_thought.prompt
    assert "arXiv" in task.source or Path(ROOT / task.source).is_file()


def test_there_are_shipped_files():
    names = {"gsm8k", "commonsense_qa", "svamp", "aqua", "arc_challenge", "piqa", "siqa"}
    assert names <= {path.stem for path in SHIPPED}


def test_no_file(tmp_path: Path):
    assert "is missing" in refused(tmp_path / "a.yaml")
    assert "not readable" in refused(tmp_path)


@pytest.mark.parametrize("text", [b"title: [", b"\xff\xfe", b"title: a\ntitle: b\n", b"a:\n\t- b", b"3", b"- 1", b"x"])
def test_a_file_that_is_no_task(text: bytes, tmp_path: Path):
    path = tmp_path / "a.yaml"
    path.write_bytes(text)
    refused(path)


@pytest.mark.parametrize("name", LEAST)
def test_a_key_that_is_missing(name: str, tmp_path: Path):
    assert f": {name}" in refused(written(tmp_path / "a.yaml", {}, without=name))


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"data": {"path": "a/b"}}, "data.split"),
        ({"data": {"split": "test"}}, "data.path"),
        ({"chain_of_thought": {"prompt": "Think:"}}, "chain_of_thought.answer_prompt"),
        ({"chain_of_thought": {"answer_prompt": "So"}}, "chain_of_thought.prompt"),
    ],
)
def test_a_key_that_is_missing_in_a_part(changes: dict, named: str, tmp_path: Path):
    assert named in refused(written(tmp_path / "a.yaml", changes))


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"few_shot": 5}, "few_shot"),
        ({"data": {"path": "a/b", "split": "test", "rows": 3}}, "data.rows"),
        ({"chain_of_thought": REASONING | {"samples": 8}}, "chain_of_thought.samples"),
    ],
)
def test_a_key_that_there_is_not(changes: dict, named: str, tmp_path: Path):
    assert named in refused(written(tmp_path / "a.yaml", changes))


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"version": "one"}, "version"),
        ({"title": None}, "title"),
        ({"prompt": ["Q"]}, "prompt"),
        ({"data": "a/b"}, "data is a/b, but must be a section"),
        ({"data": None}, "data"),
        ({"stop": "."}, "stop"),
        ({"stop": None}, "stop"),
        ({"chain_of_thought": "Think:"}, "chain_of_thought"),
        (CHOICE | {"choices": ["a", "b"]}, "choices"),  # a list of columns must be an expression: "[a, b]"
    ],
)
def test_a_value_of_another_kind(changes: dict, named: str, tmp_path: Path):
    assert named in refused(written(tmp_path / "a.yaml", changes))


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"kind": "essay"}, "kind is essay"),
        ({"kind": "choice"}, "kind choice needs them"),
        ({"kind": "choice", "choices": ""}, "kind choice needs them"),
        ({"choices": "options"}, "choices belong to kind choice"),
        ({"labels": "letters"}, "there are no choices"),
        ({"legal": ""}, "legal is empty"),
        ({"prompt": ""}, "prompt is empty"),
        ({"answer": ""}, "answer is empty"),
        ({"stop": ["\n", ""]}, "a stop string is empty"),
        ({"chain_of_thought": REASONING | {"stop": [""]}}, "a stop string is empty"),
        ({"chain_of_thought": REASONING | {"prompt": ""}}, "chain_of_thought.prompt is empty"),
    ],
)
def test_what_no_task_can_have(changes: dict, named: str, tmp_path: Path):
    assert named in refused(written(tmp_path / "a.yaml", changes))


def test_a_task_of_choices_is_fine_without_labels(tmp_path: Path):
    assert read_task(written(tmp_path / "a.yaml", CHOICE)).labels is None


def test_a_dollar_and_braces_are_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """OmegaConf would put a value of the environment, or of another key, in their place."""
    monkeypatch.setenv("SECRET", "told")
    task = read_task(written(tmp_path / "task.yaml", {"prompt": "${oc.env:SECRET} for ${{ price }} of ${title}"}))
    assert task.prompt == "${oc.env:SECRET} for ${{ price }} of ${title}"
