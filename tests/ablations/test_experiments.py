"""Experiments of a grid or of several seeds fail, are stopped, killed and changed, and resume. Slow: with real DVC."""

import fcntl
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml

from pipeline.ablations import __main__ as command
from pipeline.ablations import experiments, seeds, single
from pipeline.ablations.grid import Arm, arms, git, read_grid
from pipeline.errors import UserError
from tests.ablations.toy import ROOT, STUB, Project
from tests.chaos.kills import LONG, wait_for


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project in the current folder, where a stub takes DVC's place and git knows no author."""
    made = Project(tmp_path / "project")
    (tmp_path / "dvc.py").write_text(STUB)
    (tmp_path / "home").mkdir()
    monkeypatch.setattr(experiments, "DVC", (sys.executable, str(tmp_path / "dvc.py")))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.chdir(made.folder)
    return made


def ablations(*options: str) -> None:
    sys.argv = ["ablations", "grid.yaml", *options]
    command.main()


def test_every_arm_is_an_experiment_and_nothing_is_run_twice(project: Project, capsys: pytest.CaptureFixture):
    project.grid(methods=["quiet_star", "no_thought"], lookaheads=[1, 2])
    project.stage(shift=0.2)  # not committed: arms have the workspace's code
    before = project.call("git", "status", "--porcelain")
    ablations("--jobs", "2")
    told = capsys.readouterr().out
    assert "all 5 arms are done" in told and told.count(": compare: 2 s\n") == 5
    assert sorted(project.ran) == ["1 1", "1 2", "3 1", "3 2", "5 2"]  # no_thought's are the shipped ones
    assert project.accuracies() == {(1, 1): 0.3, (1, 2): 0.3, (3, 1): 0.5, (3, 2): 0.5}
    assert (project.table["state"] == "done").all()
    files = {path: path.read_bytes() for path in Path("results").glob("grid.*")}
    assert b"| 1 | 0.300 [0.000, 1.000] | 0.300 [0.000, 1.000] |" in files[Path("results/grid.md")]
    assert b"lookahead 2" in files[Path("results/grid.svg")] and b"failed" not in files[Path("results/grid.md")]
    shutil.rmtree("results")
    assert project.call("git", "status", "--porcelain") == before  # parameters, index and branch are as they were
    assert [path.suffix for path in experiments.FOLDER.iterdir() if path.name != "lock"] == [".log"] * 5

    ablations()
    assert len(project.ran) == 5 and {path: path.read_bytes() for path in Path("results").glob("grid.*")} == files


def test_an_arm_with_rows_of_the_same_settings_is_not_run_again_whatever_the_code(project: Project):
    """So what takes hours is run in several sittings, and its table is in git."""
    project.grid(lookaheads=[1])
    ablations()
    assert project.ran == ["1 1", "3 1"]
    rows = project.table
    project.stage(shift=0.4)
    project.call("git", "commit", "--quiet", "--all", "--message", "other code")
    project.grid(lookaheads=[1, 2])
    ablations()
    assert sorted(project.ran[2:]) == ["1 2", "3 2"]
    found = project.table
    pd.testing.assert_frame_equal(found[found["lookahead"] == 1].reset_index(drop=True), rows)
    Path("results/grid.csv").unlink()
    ablations()
    assert sorted(project.ran[4:]) == ["1 1", "3 1"]


def test_an_arm_that_fails_is_named_and_shown_and_run_again_once_mended(project: Project):
    project.stage(broken=(3, 1))
    project.commit()
    for times in (1, 2):  # a second call tries that arm alone
        with pytest.raises(UserError) as error:
            ablations()
        assert str(error.value).startswith("1 of 2 arms failed: quiet_star-k3-a1-")
        assert "(this one breaks)" in str(error.value)
        assert sorted(project.started) == ["1 1", *["3 1"] * times] and project.ran == ["1 1"]
    failed = project.table.query("state == 'failed'")
    assert failed[["thought_tokens", "lookahead"]].to_numpy().tolist() == [[3, 1]] and failed["value"].isna().all()
    assert project.accuracies() == {(1, 1): 0.1}
    words = Path("results/grid.md").read_text()
    assert "**1 of 2 arms failed:** quiet_star-k3-a1-" in words and "| 3 | failed |" in words
    assert "failed: quiet_star-k3-a1-" in Path("results/grid.svg").read_text()
    project.stage()
    ablations()
    assert project.accuracies()[(3, 1)] == 0.3


def test_an_edit_while_arms_run_does_not_change_them(project: Project):
    changed = False

    def edit(line: str) -> None:
        nonlocal changed
        if "running" in line and not changed:
            changed = True
            project.stage(shift=0.5)

    every = arms(read_grid(Path("grid.yaml")))
    assert experiments.run(every, 1, edit) == {} and changed
    figures = [git("show", f"{arm.ref}:results/compare/figures.csv") for arm in every]
    with pytest.raises(UserError, match="git show failed: .*nowhere"):
        git("show", f"{every[0].ref}:nowhere")
    params = [yaml.safe_load(git("show", f"{arm.ref}:params.yaml")) for arm in every]
    assert [values["train"]["thought_tokens"] for values in params] == [1, 3]
    assert "accuracy,quiet_star,1,10,5,0.1," in figures[0] and "accuracy,quiet_star,1,10,5,0.3," in figures[1]
    assert [arm.name for arm in arms(read_grid(Path("grid.yaml")))] != [arm.name for arm in every]
    project.stage()  # the same text, with another date
    assert [arm.name for arm in arms(read_grid(Path("grid.yaml")))] == [arm.name for arm in every]


def test_interrupted_it_leaves_nothing_running(project: Project):
    project.stage(seconds=LONG)

    def interrupt() -> None:
        wait_for(lambda: len(project.started) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        ablations("--jobs", "2")
    assert psutil.Process().children(recursive=True) == [] and not Path("results").exists()
    project.stage()
    ablations()
    assert sorted(project.ran) == ["1 1", "3 1"]


def test_an_arm_whose_figures_cannot_be_kept_has_failed_and_the_others_go_on(project: Project):
    every, kept = arms(read_grid(Path("grid.yaml"))), []

    def keep(arm: Arm) -> None:
        if arm is every[0]:
            raise UserError("no room")
        kept.append(arm)

    for _ in ("as it ends", "as an earlier call has finished it"):
        assert experiments.run(every, 1, print, keep) == {every[0].name: "no room"} and kept == every[1:]
        kept.clear()


def test_it_waits_for_the_arms_of_another_call_and_takes_over_what_they_finished(project: Project):
    every = arms(read_grid(Path("grid.yaml")))
    folder = experiments.FOLDER
    (folder / "half").mkdir(parents=True)  # a clone that was not ready when its call was killed
    with pytest.MonkeyPatch.context() as patch:  # as on a full disk
        patch.setattr(experiments, "git", lambda *words: git(*words, *["--no-such-option"] * (words[0] == "fetch")))
        failed = experiments.run(every[:1], 1, print)
    assert list(failed) == [every[0].name] and (folder / every[0].name).is_dir()
    assert failed[every[0].name].startswith(f"its experiment is kept in {folder / every[0].name}: git fetch failed: ")
    project.call("git", "commit", "-q", "--allow-empty", "-m", "the next call starts from another commit")
    told: list[str] = []
    others = arms(read_grid(Path("grid.yaml")))[1:]  # takes longer than the lock is held where the machine is busy
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        threading.Timer(0.5, lambda: fcntl.flock(lock, fcntl.LOCK_UN)).start()
        assert experiments.run(others, 1, told.append) == {}
    assert told[0].startswith("waiting for the arms of another call")
    assert project.ran == ["1 1", "3 1"] and [path.name for path in folder.iterdir() if path.is_dir()] == []
    assert [bool(git("for-each-ref", arm.ref)) for arm in every] == [True, False]


def test_what_cannot_be_run_is_refused_before_anything_runs(project: Project):
    with pytest.raises(UserError, match="--jobs is 0, but must be at least 1"):
        ablations("--jobs", "0")
    project.grid(thought_tokens=[3, 0])
    with pytest.raises(UserError, match=r"train\.thought_tokens is 0"):
        ablations()
    shallow = project.folder.parent / "shallow"
    project.commit()
    project.call("git", "clone", "-q", "--depth=1", f"file://{project.folder}", str(shallow))
    os.chdir(shallow)
    with pytest.raises(UserError, match="this clone is shallow"):
        ablations()
    os.chdir(project.folder.parent)
    Path("grid.yaml").write_text((shallow / "grid.yaml").read_text())
    with pytest.raises(UserError, match="need a git repository"):
        ablations()
    with pytest.raises(UserError, match="1 is no pair of seeds: write BASE:SEED"):
        seed_runs("1")
    assert project.started == []


def seed_runs(*words: str) -> pd.DataFrame:
    sys.argv = ["seeds", *words]
    seeds.main()
    return pd.read_csv("results/seeds.csv")


def test_each_run_is_kept_and_a_run_with_rows_is_not_run_again(project: Project):
    first = seed_runs("2:2", "1:1")
    assert list(first.columns) == seeds.COLUMNS and first["base_seed"].tolist() == [1] * 6 + [2] * 6
    assert len(project.ran) == 2 and first["groups"].unique() == [5]
    own = first[first["method"] == "quiet_star"]  # a tenth of five tokens, less a hundredth of the base's seed
    assert own["content_effect"].to_numpy() == pytest.approx([0.49, 0.48])
    assert first[first["method"] != "quiet_star"]["content_effect"].isna().all()
    project.stage(broken=(5, 2))
    project.commit()
    with pytest.raises(UserError, match="1 of 3 runs failed: base1-seed2-.*this one breaks"):
        seed_runs("2:2", "1:1", "1:2")
    project.stage()
    rows = first[(first["method"] != "pause") | (first["seed"] == 1)]
    rows.to_csv("results/seeds.csv", index=False)  # a method that has come since
    again = seed_runs("2:2", "1:1", "1:2")
    assert len(project.ran) == 4 and len(again) == 18
    page = Path("results/seeds.md").read_text()
    assert "| pause | 2 | 0.500 [0.006, 0.994]: 0.500, 0.500 |" in page and "## micro: training seeds on one" in page


def test_runs_of_named_methods_two_at_a_time_keep_what_is_done_when_interrupted(project: Project):
    project.stage(seconds=LONG, quick_base=2)
    project.commit()
    words = ("1:1", "2:2", "3:3", "--methods", "shuffled_reward", "before", "--jobs", "2")

    def interrupt() -> None:
        wait_for(lambda: Path("results/seeds.csv").exists() and len(project.started) == 3)  # 3:3 has taken 2:2's place
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        seed_runs(*words)
    kept = pd.read_csv("results/seeds.csv")
    assert kept[["method", "base_seed"]].to_numpy().tolist() == [["shuffled_reward", 2], ["before", 2]]
    project.stage()
    project.commit()
    found = seed_runs(*words)
    assert found["base_seed"].tolist() == [1, 1, 2, 2, 3, 3] and len(project.ran) == 3
    assert found[found["base_seed"] == 2].to_csv(index=False) == kept.to_csv(index=False)
    with pytest.raises(UserError, match="--jobs is 0, but must be at least 1"):
        seed_runs("1:1", "--jobs", "0")
    with pytest.raises(UserError, match=r"arms.methods is \['nothing'\], but must be one of"):
        seed_runs("1:1", "--methods", "nothing")


def test_a_single_run_is_kept_beside_the_workspace_as_it_is(project: Project, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(single, "FILES", {"figures.csv": "results/compare/figures.csv"})
    before = project.call("git", "status", "--porcelain", "--", ":!results")
    for _ in range(2):
        single.run_single("small", {"train.thought_tokens": 7}, Path("results/small"))
        kept = pd.read_csv("results/small/figures.csv")
        assert set(kept.query("measure == 'accuracy' and arm == 'quiet_star'")["value"]) == {0.7}
    assert project.ran == ["7 2"] and project.call("git", "status", "--porcelain", "--", ":!results") == before
    project.stage(broken=(8, 2))
    with pytest.raises(UserError, match=r"the run failed: this one breaks\. Put it right"):
        single.run_single("small", {"train.thought_tokens": 8}, Path("results/small"))


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project under DVC, with the project's code; everything that runs in it is ended with the test."""
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    made = Project(tmp_path / "project")
    shutil.rmtree(made.folder / ".dvc")
    for name in ("pipeline", "tasks"):
        shutil.copytree(ROOT / name, made.folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    made.call("dvc", "init", "-q", "--force")
    made.commit()
    yield made
    kill_all(made)


def begin(project: Project, *options: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "pipeline.ablations", "grid.yaml", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(words, cwd=project.folder, text=True, **pipes)


def kill_all(project: Project) -> None:
    """Kill everything that works in the project's folder."""
    found = []
    for process in psutil.process_iter(["cwd"]):
        if process.pid != os.getpid() and str(process.info["cwd"] or "").startswith(str(project.folder)):
            process.kill()
            found.append(process)
    psutil.wait_procs(found, timeout=10)


@pytest.mark.slow
def test_with_dvc_two_at_a_time_one_of_which_fails(real: Project):
    real.stage(seconds=12, broken=(3, 1))  # not committed
    process = begin(real, "--jobs", "2")
    out, err = process.communicate(timeout=LONG)
    assert process.returncode == 1 and err.count("\n") == 1, (out, err)
    assert err.startswith("error: 1 of 2 arms failed: quiet_star-k3-a1-") and "(this one breaks)" in err
    lines = real.log.read_text().splitlines()
    assert any(one.startswith("start") and other.startswith("start") for one, other in itertools.pairwise(lines))
    shown = real.call("dvc", "exp", "show", "--csv", "--hide-workspace")
    assert shown.count("quiet_star-k1-a1-") == 1 and "quiet_star-k3-a1-" not in shown
    assert real.accuracies() == {(1, 1): 0.1}


@pytest.mark.slow
def test_with_dvc_killed_alone_killed_with_all_and_stopped_by_hand(real: Project):
    real.grid(thought_tokens=[1, 3, 4])
    real.stage(seconds=8)
    process = begin(real)
    wait_for(lambda: real.started)
    process.kill()  # alone: its arm goes on, and the next call waits for it
    process.communicate()
    process = begin(real)
    wait_for(lambda: len(real.started) == 2)
    assert real.ran == ["1 1"]
    kill_all(real)
    process.communicate()
    process = begin(real)
    wait_for(lambda: len(real.started) == 3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=LONG)
    assert process.returncode == 130 and err == "" and not (real.folder / "results/grid.md").exists()
    out, err = (process := begin(real)).communicate(timeout=LONG)
    assert process.returncode == 0, (out, err)
    assert real.started == ["1 1", "3 1", "3 1", "3 1", "4 1"] and real.ran == ["1 1", "3 1", "4 1"]
    assert set(real.table["state"]) == {"done"} and len(real.accuracies()) == 3
