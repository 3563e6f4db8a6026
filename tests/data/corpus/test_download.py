"""Text splits from data sets: written as Arrow, and a run that is killed goes on where it was."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.data.corpus import download, hub
from pipeline.errors import UserError
from pipeline.files import arrow_table
from pipeline.params import HubSplit
from pipeline.resume import Scratch
from tests import local_hub

COUNT = 23


class KilledError(BaseException):
    """What ends a test's process in its thoughts."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr(hub, "BLOCK", 4)


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, HubSplit]:
    rows = [{"text": text} for text in local_hub.texts(COUNT)]
    folder = local_hub.jsonl(tmp_path / "set", "train", rows)
    split = {"path": str(folder), "split": "train"}
    return {"train": HubSplit(**split), "heldout": HubSplit(**split, rows=10)}


def written(sources: dict[str, HubSplit], out: Path) -> dict[str, bytes]:
    out.mkdir()
    with download.kept_splits(sources, 1) as kept:
        download.write_texts(sources, 1, kept, out)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_the_documents_of_each_split(sources: dict[str, HubSplit], tmp_path: Path):
    assert set(written(sources, tmp_path / "out")) == {"train.arrow", "heldout.arrow"}
    assert arrow_table(tmp_path / "out/train.arrow")["text"].to_pylist() == local_hub.texts(COUNT)
    assert len(set(arrow_table(tmp_path / "out/heldout.arrow")["text"].to_pylist())) == 10
    assert not list((tmp_path / ".resume").rglob("*.arrow"))


@pytest.mark.parametrize("after", range(1, 9))
def test_a_killed_run_goes_on_where_it_was(
    after: int, sources: dict[str, HubSplit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Killed after any block, of nine in all: what is read again is never more than one block."""
    whole = written(sources, tmp_path / "whole")
    made, read = [], hub.blocks

    def counted(*args: object):
        for block in read(*args):
            made.append(block)
            yield block
            if len(made) == after:
                raise KilledError

    monkeypatch.setattr(hub, "blocks", counted)
    with pytest.raises(KilledError):
        written(sources, tmp_path / "killed")
    assert written(sources, tmp_path / "again") == whole
    assert len(made) == 9


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("after", [1, 5])
def test_killed_between_a_file_and_its_note_or_behind_it(
    noted: bool, after: int, sources: dict[str, HubSplit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = written(sources, tmp_path / "whole")
    added, add = [], Scratch.add

    def killed(scratch: Scratch, rows: list[dict]) -> None:
        added.append(rows)
        if noted or len(added) < after:
            add(scratch, rows)
        if len(added) == after:
            raise KilledError

    monkeypatch.setattr(Scratch, "add", killed)
    with pytest.raises(KilledError):
        written(sources, tmp_path / "killed")
    assert written(sources, tmp_path / "again") == whole


def test_what_is_read_stays_until_the_outputs_are_in_place(sources: dict[str, HubSplit], tmp_path: Path):
    (tmp_path / "out").mkdir()
    with pytest.raises(KilledError), download.kept_splits(sources, 1) as kept:
        download.write_texts(sources, 1, kept, tmp_path / "out")
        raise KilledError
    assert len(list((tmp_path / ".resume").rglob("*.arrow"))) == 9


def test_a_mistake_in_one_split_is_told_before_another_is_read(sources: dict[str, HubSplit], tmp_path: Path):
    wrong = {**sources, "heldout": replace(sources["heldout"], columns="body")}
    with pytest.raises(UserError, match="no column 'body'"):
        written(wrong, tmp_path / "out")
    assert not list((tmp_path / ".resume").rglob("*.arrow"))


def test_two_splits_of_one_data_set_are_not_the_same_choice(sources: dict[str, HubSplit], tmp_path: Path):
    some = sources["heldout"]
    written({"pretrain": some, "train": some}, tmp_path / "out")
    one, other = (arrow_table(tmp_path / f"out/{name}.arrow")["text"].to_pylist() for name in ("pretrain", "train"))
    assert set(one) != set(other)


def test_a_changed_folder_is_read_anew(sources: dict[str, HubSplit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    read = hub.blocks

    def killed(*args: object):
        yield next(read(*args))
        raise KilledError

    monkeypatch.setattr(hub, "blocks", killed)
    with pytest.raises(KilledError):
        written(sources, tmp_path / "killed")
    monkeypatch.setattr(hub, "blocks", read)
    local_hub.jsonl(tmp_path / "set", "train", [{"text": "other"}] * 5)
    written({"train": sources["train"], "heldout": sources["heldout"]}, tmp_path / "again")
    assert arrow_table(tmp_path / "again/train.arrow")["text"].to_pylist() == ["other"] * 5


def test_a_split_without_text_is_refused(tmp_path: Path):
    folder = local_hub.jsonl(tmp_path / "blank", "train", [{"text": " "}] * 3)
    with pytest.raises(UserError, match="has no text"):
        written({"train": HubSplit(path=str(folder), split="train")}, tmp_path / "out")
