"""What a task file may say, and that any other is refused in one line with the file's name and what is wrong."""

from pathlib import Path

import pytest
import yaml

from pipeline.data.tasks.spec import ChainOfThought, Data, Task, read_task
from pipeline.errors import UserError

ROOT = Path(__file__).parents[3]
SHIPPED = sorted((ROOT / "tasks").rglob("*.yaml"))
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


def written(folder: Path, changes: dict[str, object], without: str | None = None) -> Path:
    path = folder / "a.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in (LEAST | changes).items() if name != without}))
    return path


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_task(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


def test_every_field_is_read_and_some_may_be_left_out(tmp_path: Path):
    own = {"version": 3, "legal": "01", "stop": [".", "\n\n"]}
    own |= {"choices": "choices.text", "labels": "choices.label", "group": "fact", "part": "hops"}
    data = {"path": "c/d", "name": "main", "split": "dev", "revision": "refs/convert/parquet"}
    everything = LEAST | own | {"kind": "choice", "data": data, "chain_of_thought": REASONING}
    parts = {"data": Data(**data), "chain_of_thought": ChainOfThought(**REASONING)}
    assert read_task(written(tmp_path, everything)) == Task(**everything | parts)
    defaults = dict.fromkeys(("choices", "labels", "group", "part", "chain_of_thought"))
    defaults |= {"legal": "0123456789", "stop": ["\n"]}
    data = Data(path="a/b", name=None, split="test", revision=None)
    assert read_task(written(tmp_path, {})) == Task(**LEAST | {"data": data} | defaults)
    task = read_task(written(tmp_path, CHOICE | {"chain_of_thought": {"prompt": "Think:", "answer_prompt": "So"}}))
    assert task.labels is None and task.chain_of_thought.stop == []


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_shipped_files_are_tasks_with_a_source(path: Path):
    task = read_task(path)
    assert task.title and task.version >= 1
    assert task.kind == "text" or task.chain_of_thought.prompt
    assert "arXiv" in task.source or (ROOT / task.source).is_file()


def test_a_file_that_is_no_task(tmp_path: Path):
    path = tmp_path / "a.yaml"
    assert "is missing" in refused(path)
    assert "not readable" in refused(tmp_path)
    path.write_bytes(b"title: a\ntitle: b\n")
    assert "the key title is there twice" in refused(path)


def test_a_key_that_is_missing(tmp_path: Path):
    for name in LEAST:
        assert f": {name}" in refused(written(tmp_path, {}, without=name))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"chain_of_thought": {"prompt": "Think:"}}, "chain_of_thought.answer_prompt is missing"),
        ({"data": {"path": "a/b", "split": "test", "rows": 3}}, "no key data.rows"),
        (CHOICE | {"choices": ["a", "b"]}, "choices"),  # a list of columns must be an expression: "[a, b]"
        ({"kind": "essay"}, "kind is essay, but must be number or choice or text"),
        ({"kind": "choice"}, "kinds choice and text, which need them"),
        ({"kind": "text"}, "kinds choice and text, which need them"),
        ({"choices": "options"}, "choices belong to kinds choice and text"),
        (CHOICE | {"kind": "text", "choices": "c", "chain_of_thought": REASONING}, "so kind text has none"),
        ({"labels": "letters"}, "there are no choices"),
        ({"legal": ""}, "legal is empty"),
        ({"prompt": ""}, "prompt is empty"),
        ({"answer": ""}, "answer is empty"),
        ({"data": {"path": "", "split": "test"}}, "data.path is empty"),
        ({"stop": ["\n", ""]}, "a stop string is empty"),
        ({"chain_of_thought": REASONING | {"stop": [""]}}, "a stop string is empty"),
        ({"chain_of_thought": REASONING | {"prompt": ""}}, "chain_of_thought.prompt is empty"),
    ],
)
def test_a_file_that_is_refused(changes: dict, message: str, tmp_path: Path):
    assert message in refused(written(tmp_path, changes))
