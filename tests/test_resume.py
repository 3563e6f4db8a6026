"""Finished rows outlive a kill, and nothing else does."""

import fcntl
import os
import shutil
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from pipeline import resume
from pipeline.errors import UserError
from pipeline.resume import Scratch, fingerprint, resumable

CODE = Path(resume.__file__)
ROWS = [{"index": 0, "text": "é\n\u2028\x00", "loss": 0.1}, {"index": 1, "text": "", "loss": 1e-300}]


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def leave(rows: list[dict], seed: int = 1, stage: str = "s") -> None:
    with pytest.raises(RuntimeError, match="killed"), resumable(stage, {"seed": seed}, [], CODE) as scratch:
        scratch.add(rows)
        raise RuntimeError("killed")


def kept(seed: int = 1, stage: str = "s") -> list[dict]:
    with resumable(stage, {"seed": seed}, [], CODE) as scratch:
        return list(scratch.rows)


def folders(root: Path) -> int:
    return len(list((root / ".resume/s").iterdir()))


def test_rows_are_there_for_the_next_run_and_gone_after_it(root: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    leave([])
    assert folders(root) == 0  # nobody can go on from nothing
    leave(ROWS[:1])
    assert not caplog.messages
    leave(ROWS[1:])
    assert kept() == ROWS
    assert [line.partition(" in ")[0] for line in caplog.messages] == [f"going on from {n} rows" for n in (1, 2)]
    assert folders(root) == 0 and kept() == []


def test_what_is_no_whole_row_is_dropped_with_all_behind_it_and_written_over(tmp_path: Path):
    path = tmp_path / "rows"
    Scratch(path).add(ROWS)
    whole = path.read_bytes()
    first, zeros = whole.splitlines(keepends=True)[0], bytes(5000)  # as a power cut leaves where nothing was synced
    spoilt = [(whole[:cut], whole[:cut].count(b"\n")) for cut in range(len(whole) + 1)]
    spoilt += [(first + rest, 1) for rest in (b"5\n", zeros, zeros + b"\n", zeros + b'dex": 1}\n{"index": 2}\n')]
    for content, count in spoilt:
        path.write_bytes(content)
        scratch = Scratch(path)
        assert list(scratch.rows) == ROWS[:count]
        scratch.add(ROWS[count:])
        assert list(scratch.rows) == ROWS
        scratch.close()
        assert path.read_bytes() == whole


def test_added_rows_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    Scratch(tmp_path / "rows").add(ROWS)
    assert synced == [(tmp_path / "rows").stat().st_size] and synced[0] > 60


def test_other_parameters_stages_and_folders_have_rows_of_their_own(root: Path, monkeypatch: pytest.MonkeyPatch):
    leave(ROWS)
    monkeypatch.delenv("DVC_ROOT")  # without DVC they are in the current folder
    (root / "here").mkdir()
    monkeypatch.chdir(root / "here")
    leave(ROWS[:1])
    assert kept(seed=2) == kept(stage="other") == [] and folders(root / "here") == folders(root) == 1
    assert kept() == ROWS[:1]


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
    for what in ("torch.get_num_threads", "torch.backends.cpu.get_cpu_capability", "torch.cuda.get_device_name"):
        monkeypatch.setattr("torch.cuda.is_available", lambda what=what: "cuda" in what)
        monkeypatch.setattr(what, lambda: "another")
        names.append(name())
    for library in ("torch", "transformers", "tokenizers", "accelerate", "peft"):
        monkeypatch.setattr(resume, "version", lambda one, changed=library: "0" if one == changed else version(one))
        names.append(name())
    assert len(set(names)) == len(names)
    (code / "d.py").write_text("# no part of the work")
    (code / "d.pyc").write_text("compiled")
    assert name() == names[-1]


def test_a_copy_of_inputs_and_code_elsewhere_has_the_same_name(code: Path, root: Path, monkeypatch: pytest.MonkeyPatch):
    """An experiment runs in a temporary workspace. The order of parameters does not matter either."""
    (root / "x").write_text("1")
    name = fingerprint({"seed": 1, "temperature": 0.9}, [root / "x"], code / "a.py", ())
    copy = shutil.copytree(root, root / "copy")
    monkeypatch.setattr(resume, "ROOT", copy)
    assert fingerprint({"temperature": 0.9, "seed": 1}, [copy / "x"], copy / "pipeline/a.py", ()) == name


def test_a_second_run_is_refused_until_the_first_has_ended():
    with resumable("s", {"seed": 1}, [], CODE) as scratch:
        scratch.add(ROWS)
        with pytest.raises(UserError, match=f"^process {os.getpid()} is at the same work, in [^\n]*$"):
            leave(ROWS)
        assert list(scratch.rows) == ROWS
    leave([])


def test_a_run_on_other_parameters_is_refused_where_it_would_write_the_same_outputs(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    """In another folder, as an experiment's, it has outputs of its own; so has another stage."""
    with resumable("s", {"seed": 1}, [], CODE):
        for _ in range(2):
            told = f"^process {os.getpid()} is running s in this folder: wait until it ends, or end it$"
            with pytest.raises(UserError, match=told), resumable("s", {"seed": 2}, [], CODE):
                pytest.fail("two runs write the same outputs")
        assert folders(root) == 2  # the first run's folder and lock
        leave([], stage="t")
        (root / "elsewhere").mkdir()
        monkeypatch.chdir(root / "elsewhere")
        leave(ROWS, seed=2)
    assert kept(seed=2) == ROWS and folders(root) == 0


def test_a_run_that_succeeds_removes_what_was_unused_for_a_week(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """Other runs of the stage, killed together with it, still find their own rows when they resume."""
    caplog.set_level("INFO")
    with resumable("s", {"seed": 1}, [], CODE) as working:
        working.add(ROWS[:1])
        (held,) = (root / ".resume/s").glob("*.lock")
        monkeypatch.chdir(root)
        for seed in (2, 3, 4):
            leave(ROWS, seed)
            newest = max(filter(Path.is_dir, (root / ".resume/s").iterdir()), key=lambda path: path.stat().st_mtime)
            for folder in (newest, working.folder):  # make them look unused for so many seconds
                age = resume.KEPT + (60 if seed == 3 or folder == working.folder else -60)
                for path in (*folder.iterdir(), folder):
                    os.utime(path, (time.time() - age,) * 2)
        (root / ".resume/s/.nfs1").touch()
        (root / ".resume/s/half.gone").mkdir()
        for lock in (held, root / ".resume/s/0.lock"):  # one of seed 1, and one of a killed run in another folder
            lock.touch()
            os.utime(lock, (time.time() - resume.KEPT - 60,) * 2)
        with resumable("s", {"seed": 2}, [], CODE):
            assert folders(root) == 9  # nothing has succeeded yet
        # of seed 1, which is at work, with its lock, seed 4, and the file that is no folder
        assert folders(root) == 4 and held.exists()
        assert caplog.messages[-1].startswith("2 other runs in ") and caplog.messages[-1].endswith("kept for a week")
        assert list(working.rows) == ROWS[:1]
    assert kept(seed=4) == ROWS and kept(seed=3) == []


@pytest.mark.parametrize("busy", [False, True])
def test_a_folder_that_vanishes_while_it_is_being_locked_is_made_again(busy: bool, monkeypatch: pytest.MonkeyPatch):
    """Another run removes the folder after this one has opened the lock file; if it is ``busy``, it has the lock."""
    lock, calls = fcntl.flock, []

    def flock(file, how):
        calls.append(1)
        if len(calls) == 1:
            resume._remove(Path(file.name).parent)
            if busy:
                raise BlockingIOError
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    leave(ROWS)
    assert len(calls) == 3 and kept() == ROWS  # two for the folder, one for the stage
