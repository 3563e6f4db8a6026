"""A grid as DVC experiments, with one quick stage in place of the graph: it fails, is killed, goes on, and is changed.

What the real graph writes from these parameters is measured in docs/results.md; here the commands are real.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
# accuracy is a tenth of the thought length; more answers than that would be telling of the toy
STAGE = """
import sys, time
from pathlib import Path
import yaml

train = yaml.safe_load(Path("params.yaml").read_text())["train"]
length, lookahead = train["thought_tokens"], train["lookahead"]
Path("results/compare").mkdir(parents=True, exist_ok=True)
time.sleep({seconds})
if (length, lookahead) == {broken}:
    sys.exit("error: this one breaks")
rows = [("micro", "accuracy", train["method"], 1, 10, length / 10 + {shift}, 0.0, 1.0)]
rows += [("micro", "accuracy", "base", 1, 10, 0.05, 0.0, 0.1), ("micro", "prob", train["method"], 1, 10, 0.5, 0.4, 0.6)]
lines = ["task,measure,arm,seeds,n,mean,ci_low,ci_high", *(",".join(map(str, row)) for row in rows)]
Path("results/compare/figures.csv").write_text("\\n".join(lines) + "\\n")
with open({log!r}, "a") as log:
    log.write(f"{{length}} {{lookahead}}\\n")
"""
OUTS = [{"results/compare/figures.csv": {"cache": False}}]
GRAPH = {
    "stages": {"compare": {"cmd": "python -m stages.toy", "deps": ["stages/toy.py"], "params": ["train"], "outs": OUTS}}
}
GRID = {"methods": ["quiet_star", "no_thought"], "thought_tokens": [1, 3], "lookaheads": [1, 2], "seeds": [1]}
ARMS = 5


class Project:
    """A clone with the toy graph; ``ran`` are the arms whose stage has ended well, in order."""

    def __init__(self, folder: Path):
        self.folder = folder
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
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return self.call("git", *identity, *words)

    def call(self, *words: str) -> str:
        done = subprocess.run(words, cwd=self.folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def ablations(self) -> subprocess.Popen[str]:
        """`python -m pipeline.ablations grid.yaml`, started."""
        words = [sys.executable, "-m", "pipeline.ablations", "grid.yaml"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(words, cwd=self.folder, env=ENVIRONMENT, text=True, **pipes)

    def finish(self) -> tuple[int, str, str]:
        process = self.ablations()
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    @property
    def ran(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    @property
    def table(self) -> pd.DataFrame:
        return pd.read_csv(self.folder / "results/grid.csv")

    def accuracies(self) -> dict[tuple[int, int], float]:
        rows = self.table.query("measure == 'accuracy' and method == 'quiet_star'")
        return {(k, a): mean for k, a, mean in zip(rows.thought_tokens, rows.lookahead, rows["mean"], strict=True)}

    def processes(self) -> list[psutil.Process]:
        """Everything that works in this folder."""
        found = []
        for process in psutil.process_iter(["cwd"]):
            if process.pid != os.getpid() and str(process.info["cwd"] or "").startswith(str(self.folder)):
                found.append(process)
        return found

    def kill_all(self) -> None:
        for process in self.processes():
            process.send_signal(signal.SIGKILL)
        psutil.wait_procs(self.processes(), timeout=10)


ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "DVC_NO_ANALYTICS": "1",
    **{f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path / "project") if (tmp_path / "project").mkdir() is None else None
    yield made
    made.kill_all()


def wait_for(what: object, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.2)


def test_every_arm_is_an_experiment_and_nothing_is_run_twice(project: Project):
    before = project.git("status", "--porcelain", "--untracked-files=no")
    code, out, err = project.finish()
    assert code == 0 and err == "" and f"all {ARMS} arms are done" in out
    assert sorted(project.ran) == ["1 1", "1 2", "3 1", "3 2", "5 2"]  # no_thought has the shipped length and lookahead
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
    assert project.finish()[0] == 0 and len(project.ran) == ARMS
    assert {path: path.read_bytes() for path in project.folder.glob("results/grid.*")} == files


def test_an_arm_that_fails_is_named_and_shown_and_run_again_once_mended(project: Project):
    project.stage(broken=(3, 2))
    project.commit()
    code, out, err = project.finish()
    assert code == 1 and err.count("\n") == 1 and err.startswith(f"error: 1 of {ARMS} arms failed: quiet_star-k3-a2-")
    assert "this one breaks" in err and "Traceback" not in err
    failed = project.table.query("state == 'failed'")
    assert failed[["thought_tokens", "lookahead"]].to_numpy().tolist() == [[3, 2]] and failed["mean"].isna().all()
    assert (3, 2) not in project.accuracies() and len(project.accuracies()) == 3
    words = (project.folder / "results/grid.md").read_text()
    assert (
        f"**1 of {ARMS} arms failed:** quiet_star-k3-a2-" in words and "| 3 | 0.300 [0.000, 1.000] | failed |" in words
    )
    assert "failed: quiet_star-k3-a2-" in (project.folder / "results/grid.svg").read_text()
    assert len(project.ran) == ARMS - 1

    again = project.finish()  # nothing has changed: that arm alone is tried again, and fails again
    assert again[0] == 1 and len(project.ran) == ARMS - 1
    project.stage()
    project.commit()
    assert project.finish()[0] == 0 and project.accuracies()[(3, 2)] == 0.3


def test_killed_halfway_it_does_only_what_is_missing(project: Project):
    project.stage(seconds=3)
    project.commit()
    process = project.ablations()
    wait_for(lambda: len(project.ran) == 2)
    project.kill_all()
    process.communicate()
    done = project.ran
    assert len(done) < ARMS and not (project.folder / "results/grid.csv").exists()
    code, out, err = project.finish()
    assert code == 0, (out, err)
    assert project.ran[: len(done)] == done
    assert len(project.ran) <= ARMS + 1  # of the last one before the kill DVC may not have made its commit
    assert set(project.table["state"]) == {"done"} and len(project.accuracies()) == 4


def test_killed_alone_its_worker_goes_on_and_a_second_call_waits_for_it(project: Project):
    project.stage(seconds=2)
    project.commit()
    process = project.ablations()
    wait_for(lambda: len(project.ran) == 1)
    process.kill()
    process.communicate()
    code, out, err = project.finish()
    assert code == 0, (out, err)
    assert len(project.ran) == ARMS


def test_stopped_by_hand_it_leaves_nothing_running(project: Project):
    project.stage(seconds=2)
    project.commit()
    process = project.ablations()
    wait_for(lambda: len(project.ran) == 1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    wait_for(lambda: not project.processes())
    assert project.finish()[0] == 0 and len(project.ran) <= ARMS + 1


def test_changed_code_does_not_change_what_is_queued_already(project: Project):
    project.stage(seconds=2)
    project.commit()
    process = project.ablations()
    wait_for(lambda: len(project.ran) == 1)
    project.stage(shift=0.5)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert project.accuracies() == {(1, 1): 0.1, (1, 2): 0.1, (3, 1): 0.3, (3, 2): 0.3}
    assert project.finish()[0] == 0  # and the next call runs the code as it now is
    assert project.accuracies() == {(1, 1): 0.6, (1, 2): 0.6, (3, 1): 0.8, (3, 2): 0.8}


@pytest.mark.parametrize(
    "grid, told",
    [
        ({"thought_tokens": []}, "thought_tokens"),
        ({"lookaheads": [1, 1]}, "lookaheads"),
        ({"methods": ["magic"]}, "train.method is magic"),
        ({"thought_tokens": [0]}, "train.thought_tokens is 0"),
        ({"lookaheads": [99]}, "train.lookahead is 99"),
        ({"seeds": ["one"]}, "seeds"),
        ({"lengths": [1]}, "lengths"),
        ({"options": ["scale=huge"]}, "scale=huge"),
    ],
)
def test_a_grid_that_cannot_be_run_is_refused_before_anything_is_queued(grid: dict, told: str, project: Project):
    (project.folder / "grid.yaml").write_text(yaml.safe_dump(GRID | grid))
    code, _, err = project.finish()
    assert code == 1 and err.startswith("error: ") and err.count("\n") == 1 and told in err
    assert project.call("dvc", "queue", "status").count("quiet_star") == 0
