"""A grid as DVC experiments, with one quick stage in place of the graph: it fails, is killed, goes on, and is changed.

What the real graph writes from these parameters is measured in docs/results.md; here the commands are real.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml

from tests.killing import kill_tree

ROOT = Path(__file__).parents[2]
# accuracy is a tenth of the thought length; more answers than that would be telling of the toy
STAGE = """
import sys, time
from pathlib import Path
import yaml

train = yaml.safe_load(Path("params.yaml").read_text())["train"]
length, lookahead = train["thought_tokens"], train["lookahead"]
Path("results/compare").mkdir(parents=True, exist_ok=True)
with open({log!r}, "a") as log:
    log.write(f"start {{length}} {{lookahead}}\\n")
time.sleep({seconds})
if (length, lookahead) == {broken}:
    sys.exit("error: this one breaks")
rows = [("micro", "accuracy", train["method"], 1, 10, length / 10 + {shift}, 0.0, 1.0)]
rows += [("micro", "accuracy", "base", 1, 10, 0.05, 0.0, 0.1), ("micro", "prob", train["method"], 1, 10, 0.5, 0.4, 0.6)]
lines = ["task,measure,arm,seeds,n,mean,ci_low,ci_high", *(",".join(map(str, row)) for row in rows)]
Path("results/compare/figures.csv").write_text("\\n".join(lines) + "\\n")
with open({log!r}, "a") as log:
    log.write(f"end {{length}} {{lookahead}}\\n")
"""
OUTS = [{"results/compare/figures.csv": {"cache": False}}]
GRAPH = {
    "stages": {"compare": {"cmd": "python -m stages.toy", "deps": ["stages/toy.py"], "params": ["train"], "outs": OUTS}}
}
GRID = {"methods": ["quiet_star"], "thought_tokens": [1, 3], "lookaheads": [1], "seeds": [1]}
ALL = ["1 1", "3 1"]
ARMS = len(ALL)
LONG = 600  # seconds: what takes as long hangs


class Project:
    """A clone with the toy graph; ``ran`` are the arms whose stage has ended well, ``started`` all that began."""

    def __init__(self, folder: Path, **environment: str):
        self.folder = folder
        self.environment = ENVIRONMENT | environment
        folder.mkdir()
        for name in ("pipeline", "tasks"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("params.yaml", ".gitignore", ".dvcignore"):
            shutil.copy(ROOT / name, folder)
        (folder / "stages").mkdir()
        (folder / "stages/__init__.py").touch()
        (folder / "dvc.yaml").write_text(yaml.safe_dump(GRAPH))
        (folder / "grid.yaml").write_text(yaml.safe_dump(GRID))
        self.log = folder.parent / f"{folder.name}.log"
        self.stage()
        self.git("init", "-q", "-b", "main")
        self.call("dvc", "init", "-q")
        self.git("add", "-A")
        self.commit()

    def stage(self, seconds: float = 0, broken: tuple[int, int] = (0, 0), shift: float = 0) -> None:
        text = STAGE.format(seconds=seconds, broken=broken, shift=shift, log=str(self.log))
        (self.folder / "stages/toy.py").write_text(text)

    def commit(self) -> None:
        self.git("commit", "-qam", "a change")

    def git(self, *words: str) -> str:
        return self.call("git", "-c", "user.name=a", "-c", "user.email=a@b", *words)

    def call(self, *words: str) -> str:
        done = subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def ablations(self, *options: str) -> subprocess.Popen[str]:
        """`python -m pipeline.ablations grid.yaml`, started."""
        words = [sys.executable, "-m", "pipeline.ablations", "grid.yaml", *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(words, cwd=self.folder, env=self.environment, text=True, **pipes)

    def begin(self, seconds: float) -> subprocess.Popen[str]:
        """The same with a stage that takes its time, as far as the first arm's."""
        self.stage(seconds=seconds)
        self.commit()
        process = self.ablations()
        wait_for(lambda: self.started)
        return process

    def finish(self, *options: str) -> tuple[int, str, str]:
        process = self.ablations(*options)
        out, err = process.communicate(timeout=LONG)
        return process.returncode, out, err

    @property
    def ran(self) -> list[str]:
        return self._logged("end ")

    @property
    def started(self) -> list[str]:
        return self._logged("start ")

    def _logged(self, mark: str) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line.removeprefix(mark) for line in lines if line.startswith(mark)]

    @property
    def table(self) -> pd.DataFrame:
        return pd.read_csv(self.folder / "results/grid.csv")

    def accuracies(self) -> dict[tuple[int, int], float]:
        rows = self.table.query("measure == 'accuracy' and method == 'quiet_star'")
        return {(k, a): mean for k, a, mean in zip(rows.thought_tokens, rows.lookahead, rows["mean"], strict=True)}

    def processes(self) -> list[psutil.Process]:
        """Everything that works in this folder."""
        found = []
        for process in psutil.process_iter(["cwd", "cmdline"]):
            if process.pid != os.getpid() and str(process.info["cwd"] or "").startswith(str(self.folder)):
                found.append(process)
        return found

    def kill_all(self) -> None:
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):  # gone since it was listed
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(self.processes(), timeout=10)


ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "DVC_NO_ANALYTICS": "1",
    **{f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path / "project")
    yield made
    made.kill_all()


def wait_for(what: object, seconds: float = LONG) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.2)


def test_every_arm_is_an_experiment_and_nothing_is_run_twice(project: Project):
    """The whole of a small grid; the tests below are content with two arms."""
    grid = {"methods": ["quiet_star", "no_thought"], "thought_tokens": [1, 3], "lookaheads": [1, 2]}
    (project.folder / "grid.yaml").write_text(yaml.safe_dump(GRID | grid))
    project.commit()
    before = project.git("status", "--porcelain", "--untracked-files=no")
    code, out, err = project.finish()
    assert (code, err) == (0, "") and "all 5 arms are done" in out
    assert sorted(project.ran) == ["1 1", "1 2", "3 1", "3 2", "5 2"]  # no_thought's are the shipped ones
    assert project.accuracies() == {(1, 1): 0.1, (1, 2): 0.1, (3, 1): 0.3, (3, 2): 0.3}
    assert project.table.query("method == 'base' and measure == 'accuracy'")["mean"].tolist() == [0.05]
    assert (project.table["state"] == "done").all()

    assert project.git("status", "--porcelain", "--untracked-files=no") == before  # params and lock are as they were
    shown = project.call("dvc", "exp", "show", "--csv", "--hide-workspace")
    assert all(shown.count(name) == 1 for name in set(project.table["experiment"].dropna()))
    words = (project.folder / "results/grid.md").read_text()
    assert "| 1 | 0.100 [0.000, 1.000] | 0.100 [0.000, 1.000] |" in words and "failed" not in words
    figure = (project.folder / "results/grid.svg").read_text()
    assert "lookahead 2" in figure and "base" in figure

    files = {path: path.read_bytes() for path in project.folder.glob("results/grid.*")}
    assert project.finish()[0] == 0 and len(project.ran) == 5
    assert {path: path.read_bytes() for path in project.folder.glob("results/grid.*")} == files


def test_an_arm_that_fails_is_named_and_shown_and_run_again_once_mended(project: Project):
    project.stage(broken=(3, 1))
    project.commit()
    code, out, err = project.finish()
    assert code == 1 and err.count("\n") == 1 and err.startswith(f"error: 1 of {ARMS} arms failed: quiet_star-k3-a1-")
    assert "this one breaks" in err and "Traceback" not in err
    failed = project.table.query("state == 'failed'")
    assert failed[["thought_tokens", "lookahead"]].to_numpy().tolist() == [[3, 1]] and failed["mean"].isna().all()
    assert project.accuracies() == {(1, 1): 0.1}
    words = (project.folder / "results/grid.md").read_text()
    assert f"**1 of {ARMS} arms failed:** quiet_star-k3-a1-" in words and "| 3 | failed |" in words
    assert "failed: quiet_star-k3-a1-" in (project.folder / "results/grid.svg").read_text()
    assert len(project.ran) == ARMS - 1

    again = project.finish()  # nothing has changed: that arm alone is tried again, and fails again
    assert again[0] == 1 and len(project.ran) == ARMS - 1
    assert project.started.count("3 1") == 2 and len(project.started) == ARMS + 1
    project.stage()
    project.commit()
    code, out, err = project.finish()
    assert code == 0, (out, err)
    assert project.accuracies()[(3, 1)] == 0.3


def test_killed_halfway_it_does_only_what_is_missing(project: Project):
    (project.folder / "grid.yaml").write_text(yaml.safe_dump(GRID | {"thought_tokens": [1, 3, 4]}))
    process = project.begin(seconds=3)
    wait_for(lambda: len(project.ran) == 2)
    project.kill_all()
    process.communicate()
    done = project.ran
    assert len(done) == 2 and not (project.folder / "results/grid.csv").exists()
    code, out, err = project.finish()
    assert code == 0, (out, err)
    assert set(project.ran) == {"1 1", "3 1", "4 1"}
    assert all(project.ran.count(arm) == 1 for arm in done[:-1])  # of the last one DVC may not have made its commit
    assert set(project.table["state"]) == {"done"} and len(project.accuracies()) == 3


def test_killed_alone_its_worker_goes_on_and_a_second_call_waits_for_it(project: Project):
    process = project.begin(seconds=2)
    wait_for(lambda: len(project.ran) == 1)
    process.kill()
    process.communicate()
    code, out, err = project.finish()
    assert code == 0, (out, err)
    assert len(project.ran) == ARMS


@pytest.mark.parametrize("killed", ["queue-worker", "exec-run"])
def test_an_arm_that_dvc_loses_is_run_again(project: Project, killed: str):
    """As where memory runs out: no stage has failed, so the arm has not."""
    process = project.begin(seconds=6)
    kill(project, killed)
    out, err = process.communicate(timeout=LONG)
    assert process.returncode == 0, (out, err)
    assert project.started == ["1 1", *project.ran] and sorted(project.ran) == ALL


def test_an_arm_that_dvc_loses_is_not_run_with_other_code(project: Project):
    """DVC would take what is in the workspace by then, under the name of the code before it."""
    process = project.begin(seconds=6)
    project.stage(shift=0.5)
    kill(project, "exec-run")
    _, err = process.communicate(timeout=LONG)
    assert process.returncode == 1 and err.startswith(f"error: 1 of {ARMS} arms failed: quiet_star-k1-a1-")
    assert project.started == ["1 1", "3 1"] and project.accuracies() == {(3, 1): 0.3}


def kill(project: Project, word: str) -> None:
    """The process with this word in its command, and what it has started."""
    for one in [found for found in project.processes() if word in (found.info["cmdline"] or [])]:
        kill_tree(one)


def test_where_dvc_is_busy_arms_are_queued_as_soon_as_it_is_not(project: Project):
    """DVC refuses at once to queue an experiment while a worker takes another out."""
    lock = project.folder / ".dvc/tmp/exps/rwlock"
    lock.parent.mkdir(parents=True)
    held = {"refs/exps/celery/stash": {"pid": os.getpid(), "cmd": "a worker"}}
    lock.write_text(json.dumps({"read": {}, "write": held}))
    process = project.ablations()
    time.sleep(8)
    assert process.poll() is None
    lock.write_text(json.dumps({"read": {}, "write": {}}))
    out, err = process.communicate(timeout=LONG)
    assert process.returncode == 0, (out, err)
    assert sorted(project.ran) == ALL


def test_stopped_by_hand_it_leaves_nothing_running(project: Project):
    """Not the stage either, which DVC alone would leave running for its five minutes."""
    process = project.begin(seconds=300)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=LONG)
    assert process.returncode == 130 and err == ""
    wait_for(lambda: not project.processes(), seconds=120)
    project.stage()
    assert project.finish()[0] == 0 and set(project.ran) == set(ALL)


def test_two_at_a_time_with_changes_and_no_author_known_to_git(tmp_path: Path):
    """As on a fresh machine: DVC commits the changes in the workspace, for which git wants a name."""
    home = tmp_path / "home"
    home.mkdir()
    names = {f"GIT_{who}_{what}": "" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    project = Project(tmp_path / "project", HOME=str(home), GIT_CONFIG_NOSYSTEM="1")
    for name in names:
        del project.environment[name]
    project.stage(seconds=10, shift=0.2)
    try:
        code, _, err = project.finish("--jobs", "2")
    finally:
        project.kill_all()
    assert code == 0, err
    assert project.accuracies()[(3, 1)] == 0.5
    lines = project.log.read_text().splitlines()
    assert any(one.startswith("start") and other.startswith("start") for one, other in itertools.pairwise(lines))


def test_what_cannot_be_run_is_refused_before_anything_is_queued(project: Project):
    code, _, err = project.finish("--jobs", "0")
    assert code == 1 and err == "error: --jobs is 0, but must be at least 1\n"
    (project.folder / "grid.yaml").write_text(yaml.safe_dump(GRID | {"thought_tokens": [3, 0]}))
    code, _, err = project.finish()
    assert code == 1 and err.startswith("error: ") and err.count("\n") == 1 and "train.thought_tokens is 0" in err
    assert "quiet_star" not in project.call("dvc", "queue", "status")
