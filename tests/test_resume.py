"""Finished rows outlive a kill, and nothing else does."""

import fcntl
import multiprocessing
import os
import shutil
import time
from importlib.metadata import version
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from pipeline import resume
from pipeline.errors import UserError
from pipeline.resume import Scratch, fingerprint, resumable

CODE = Path(resume.__file__)
FORK = multiprocessing.get_context("fork")
ROWS = [{"index": 0, "text": "é\n\u2028\x00", "loss": 0.1}, {"index": 1, "text": "", "loss": 1e-300}]


class KilledError(Exception):
    pass


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def hold(ready: Event) -> None:
    with resumable("s", {"seed": 1}, [], CODE) as scratch:
        scratch.add([{"index": 0}])
        ready.set()
        time.sleep(600)


@pytest.fixture
def held(root: Path):
    """Another process that has the scratch of seed 1."""
    ready = FORK.Event()
    process = FORK.Process(target=hold, args=(ready,), daemon=True)
    process.start()
    assert ready.wait(60)
    yield process
    kill(process)


def kill(process: BaseProcess) -> None:
    process.kill()
    process.join()


def leave(rows: list[dict], seed: int = 1) -> None:
    """Run until these rows are kept, and fail."""
    with pytest.raises(KilledError), resumable("s", {"seed": seed}, [], CODE) as scratch:
        scratch.add(rows)
        raise KilledError


def folders(root: Path) -> int:
    return len(list((root / ".resume/s").iterdir()))


def test_rows_are_there_for_the_next_run_and_gone_after_it(root: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    leave(ROWS[:1])
    assert not caplog.messages
    leave(ROWS[1:])
    with resumable("s", {"seed": 1}, [], CODE) as scratch:
        assert list(scratch.rows) == ROWS
    assert [line.partition(" in ")[0] for line in caplog.messages] == [f"going on from {n} rows" for n in (1, 2)]
    assert folders(root) == 0
    with resumable("s", {"seed": 1}, [], CODE) as scratch:
        assert list(scratch.rows) == []


def test_a_row_cut_short_is_dropped_and_written_over(tmp_path: Path):
    path = tmp_path / "rows"
    Scratch(path).add(ROWS)
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        scratch = Scratch(path)
        assert list(scratch.rows) == ROWS[: whole[:cut].count(b"\n")]
        scratch.add(ROWS[len(scratch.rows) :])
        scratch.close()
        assert path.read_bytes() == whole


ZEROS = bytes(5000)  # as a power cut leaves where nothing was on the disk yet


@pytest.mark.parametrize(
    "rest", [b"[]\n", b"5\n", b"null\n", ZEROS, ZEROS + b"\n", ZEROS + b'dex": 1}\n{"index": 2}\n']
)
def test_what_is_no_row_is_dropped_with_all_behind_it(rest: bytes, tmp_path: Path):
    path = tmp_path / "rows"
    Scratch(path).add(ROWS[:1])
    path.write_bytes(path.read_bytes() + rest)
    scratch = Scratch(path)
    assert list(scratch.rows) == ROWS[:1]
    scratch.add(ROWS[1:])
    assert list(scratch.rows) == ROWS == list(Scratch(path).rows)


def test_added_rows_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size) or fsync(file))
    scratch = Scratch(tmp_path / "rows")
    scratch.add(ROWS)
    assert synced == [(tmp_path / "rows").stat().st_size] and synced[0] > 60


def test_without_dvc_it_is_in_the_current_folder(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DVC_ROOT")
    (root / "here").mkdir()
    monkeypatch.chdir(root / "here")
    leave(ROWS)
    assert folders(root / "here") == 1 and not (root / ".resume").exists()


def test_other_parameters_and_stages_have_rows_of_their_own(root: Path):
    leave(ROWS)
    leave([], seed=2)
    with pytest.raises(KilledError), resumable("other", {"seed": 1}, [], CODE) as scratch:
        assert list(scratch.rows) == []
        raise KilledError
    with resumable("s", {"seed": 2}, [], CODE) as scratch:
        assert list(scratch.rows) == []


@pytest.fixture
def code(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in which a.py imports b/c.py and, relatively, e.py, but not d.py."""
    files = {"a": "from pipeline.b.c import f\nfrom .e import g", "b/__init__": "", "b/c": "def f(): pass"}
    files |= {"d": "import pipeline.a", "e": "def g(): pass"}
    for name, text in files.items():
        path = root / f"pipeline/{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(resume, "ROOT", root)
    return root / "pipeline"


def test_the_fingerprint_has_everything_that_can_change_a_row(root: Path, code: Path, monkeypatch: pytest.MonkeyPatch):
    data = root / "data"
    for path in (data / "x", data / "y/z", root / "file"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("1")

    def name(seed: int = 1) -> str:
        about = {"seed": seed, "temperature": 0.9}
        return fingerprint(about, [data, root / "file"], code / "a.py", resume.LIBRARIES)

    names = [name(), name(seed=2)]
    for path in (*(code / f"{one}.py" for one in ("a", "b/__init__", "b/c", "e")), *data.rglob("[xz]"), root / "file"):
        path.write_text(f"{path.read_text()}#")
        names.append(name())
    (data / "x").rename(data / "w")
    names.append(name())
    for what, value in {
        "torch.get_num_threads": 1234,
        "torch.backends.cpu.get_cpu_capability": "NONE",
        "torch.cuda.is_available": True,
        "torch.cuda.get_device_name": "another GPU",
    }.items():
        monkeypatch.setattr(what, lambda value=value: value)
        if what != "torch.cuda.is_available":
            names.append(name())
    for library in ("torch", "transformers", "tokenizers", "accelerate", "peft"):
        monkeypatch.setattr(resume, "version", lambda one, changed=library: "0" if one == changed else version(one))
        names.append(name())
    assert len(set(names)) == len(names)
    (code / "d.py").write_text("# no part of the work")
    (code / "d.pyc").write_text("compiled")
    assert name() == names[-1]


def test_the_order_of_parameters_is_not_in_the_name(root: Path):
    one, two = ({"seed": 1, "temperature": 0.9}, {"temperature": 0.9, "seed": 1})
    assert fingerprint(one, [], CODE, ()) == fingerprint(two, [], CODE, ())


def test_a_copy_of_inputs_and_code_elsewhere_has_the_same_name(code: Path, root: Path, monkeypatch: pytest.MonkeyPatch):
    """An experiment runs in a temporary workspace."""
    (root / "x").write_text("1")
    name = fingerprint({}, [root / "x"], code / "a.py", ())
    copy = root / "copy"
    shutil.copytree(code, copy / "pipeline")
    shutil.copy(root / "x", copy)
    monkeypatch.setattr(resume, "ROOT", copy)
    assert fingerprint({}, [copy / "x"], copy / "pipeline/a.py", ()) == name


def test_a_second_process_is_refused_until_the_first_is_dead(held: BaseProcess, root: Path):
    with pytest.raises(UserError, match=f"^process {held.pid} is at the same work, in ") as told:
        leave(ROWS)
    assert "\n" not in str(told.value)
    kill(held)
    with resumable("s", {"seed": 1}, [], CODE) as scratch:
        assert list(scratch.rows) == [{"index": 0}]
        with pytest.raises(UserError, match=f"^process {os.getpid()} is at"):
            leave(ROWS)


def age(folder: Path, seconds: float) -> None:
    """Make the folder look unused for that long."""
    for path in (*folder.iterdir(), folder):
        os.utime(path, (time.time() - seconds,) * 2)


def test_a_run_that_succeeds_removes_what_was_unused_for_a_week(
    held: BaseProcess, root: Path, caplog: pytest.LogCaptureFixture
):
    """Other runs of the stage, killed together with it, still find their own rows when they resume."""
    caplog.set_level("INFO")
    (one,) = (root / ".resume/s").iterdir()
    age(one, resume.KEPT + 60)
    for seed in (2, 3, 4):
        leave(ROWS, seed)
        (newest,) = (folder for folder in (root / ".resume/s").iterdir() if folder.stat().st_mtime > time.time() - 60)
        age(newest, resume.KEPT + 60 if seed == 3 else resume.KEPT - 60)
    (root / ".resume/s/.nfs1").touch()
    (root / ".resume/s/half.gone").mkdir()
    with resumable("s", {"seed": 2}, [], CODE):
        assert folders(root) == 6  # nothing has succeeded yet
    assert folders(root) == 3  # of seed 1, which is at work, seed 4, and the file that is no folder
    assert caplog.messages[-1].startswith("2 other runs in ") and caplog.messages[-1].endswith("kept for a week")
    kill(held)
    for seed, rows in {1: [{"index": 0}], 4: ROWS, 3: []}.items():
        with resumable("s", {"seed": seed}, [], CODE) as scratch:
            assert list(scratch.rows) == rows


def test_a_folder_that_vanishes_while_it_is_being_locked_is_made_again(root: Path, monkeypatch: pytest.MonkeyPatch):
    """Another run removes the folder after this one has opened the lock file, and before it has the lock."""
    lock, calls = fcntl.flock, []

    def flock(file, how):
        calls.append(1)
        if len(calls) == 1:
            resume._remove(Path(file.name).parent)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    leave(ROWS)
    assert len(calls) == 2
    with resumable("s", {"seed": 1}, [], CODE) as scratch:
        assert list(scratch.rows) == ROWS


@pytest.mark.parametrize("rows", [[], [{"index": 1}]], ids=["nothing done", "something done"])
def test_a_run_that_fails_leaves_only_what_another_can_go_on_from(rows: list[dict], root: Path):
    with pytest.raises(ValueError, match="bad"), resumable("stage", {}, [], CODE) as scratch:
        if rows:
            scratch.add(rows)
        raise ValueError("bad")
    assert bool([path for path in (root / ".resume").rglob("*") if path.is_file()]) == bool(rows)
    with resumable("stage", {}, [], CODE) as scratch:
        assert list(scratch.rows) == rows
