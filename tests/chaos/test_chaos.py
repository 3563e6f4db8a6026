"""A small project that is killed for real, and what the comparison would say of a run that came out otherwise."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import yaml

from pipeline.resume import Scratch
from tests.chaos.compare import differences, is_stale, surprises
from tests.chaos.kills import DVC, NO_STAGE, NOTHING, Kill, left, spoil
from tests.killing import checkpoint_often
from tests.stage_runner import ENVIRONMENT, copy_project, make_repository, run_stages

STAGES = ("base_model", "train")  # of the graph; their inputs are in git
WHO = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
# a shell that stays between DVC and a command without exec
PLACE = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "SHELL": "/bin/sh"}


def call(folder: Path, *words: str) -> str:
    environment = os.environ | ENVIRONMENT | WHO | PLACE
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the dvc.lock of stages that nobody has killed. They keep a checkpoint of every logged step."""
    folder = copy_project(
        tmp_path_factory.mktemp("chaos") / "project", base_model__scratch__steps=600, train__steps=300
    )
    checkpoint_often(folder)
    run_stages(folder, ("corpus", "tokenize"))
    make_repository(folder, STAGES, call)
    call(folder, "git", "add", "--force", "data")
    run_stages(folder, STAGES)
    call(folder, "dvc", "commit", "--force")
    call(folder, "git", "add", "-A")
    call(folder, "git", "commit", "-qm", "what came out")
    return folder


@pytest.fixture
def copy(project: Path, tmp_path: Path) -> Path:
    return shutil.copytree(project, tmp_path / "copy")


def test_killed_three_times_it_ends_as_if_it_were_not(copy: Path):
    told = call(copy, "python", "-m", "tests.chaos", "--kills", "3", "--seed", "3", "--longest", "8")
    assert "3 kills, and the same end as without" in told and "stale" not in told
    page = (copy / "results/chaos.md").read_text()
    assert "**3 kills: dvc.lock equals that of an uninterrupted run" in page and "--seed 3" in page
    assert [line.split(" | ")[0] for line in page.splitlines()[-3:]] == ["| 1", "| 2", "| 3"]
    assert all(f" | {way} | " in page for way in ("dvc", "power"))


def test_a_changed_parameter_makes_a_lock_stale(copy: Path):
    assert not is_stale(copy)
    made(copy / "data/tokens/tokenizer/more")  # an output: those of a clone are not whole either
    assert not is_stale(copy)
    text = (copy / "params.yaml").read_text()
    (copy / "params.yaml").write_text(text.replace("lookahead: 2", "lookahead: 3"))
    assert is_stale(copy)


def test_every_difference_is_told(copy: Path, project: Path):
    assert list(differences(copy, project)) == []
    lock = yaml.safe_load((copy / "dvc.lock").read_text())
    lock["stages"]["train"]["outs"][0]["md5"] = "0" * 32
    (copy / "dvc.lock").write_text(yaml.safe_dump(lock))
    rest = [".resume/train/quiet_star/1/rows.jsonl", "models/base.part", "new.txt"]
    for name in (rest[0], f"{rest[1]}/config.json", rest[2]):
        made(copy / name)
    assert list(differences(copy, project)) == [
        "dvc.lock differs in train",
        "changed are ['dvc.lock'], not []",
        *(f"{name} is left over" for name in rest),
    ]


@pytest.mark.parametrize(
    "kills, went_on, told",
    [
        ([("train", "step 3", 0)], ["step 3"], None),
        ([("train", NOTHING, 0)], [""], None),
        ([("train", "step 3", 0), ("train", "step 3", 0)], ["", "step 3"], None),  # killed again before it said so
        ([("train", "step 3", 0), (NO_STAGE, "step 3", 0)], ["", ""], None),
        (
            [("train", "step 40", 0), ("train", "step 6", 0)],
            ["", "step 6"],
            "after kill 1 train had step 40 and, killed again, step 6",
        ),
        ([("evaluate", "8 rows", 0), ("evaluate", NOTHING, 0)], ["", ""], "after kill 1 evaluate had 8 rows and, "),
        ([("train", "step 6", 0), ("train", "step 40", 0)], ["", "step 40"], None),
        ([("train", "step 3", 2)], ["step 3"], "kill 1 left 2 processes running"),
        ([("train", "step 3", 0)], [""], "after kill 1 train had step 3 but went on from nothing"),
        (
            [("train", "step 3", 0), ("evaluate", NOTHING, 0)],
            ["", ""],
            "after kill 1 train had step 3 but went on from ",
        ),
        ([("train", "step 3", 0)], ["step 2"], "after kill 1 train had step 3 but went on from step 2"),
    ],
)
def test_a_stage_that_loses_what_it_had_is_told(kills: list[tuple], went_on: list[str], told: str | None):
    done = [Kill(stage, 1.0, DVC, kept, orphans) for stage, kept, orphans in kills]
    found = list(surprises(done, went_on))
    assert found == [] if told is None else len(found) == 1 and found[0].startswith(told)


def test_a_power_cut_spoils_only_what_nobody_waited_for(tmp_path: Path):
    whole, half = (
        made(tmp_path / f".resume/train/a/{name}/model", bytes([7]) * 999) for name in ("step-4", "checkpoint-6")
    )
    part = made(tmp_path / "models/base.part/model", bytes([7]) * 999)
    made(tmp_path / ".resume/train/a/lock")
    assert left(tmp_path) == "step 4"
    rows = tmp_path / ".resume/evaluate/a/rows.jsonl"
    made(rows.with_name("lock"))
    Scratch(rows).add([{"index": 0}, {"index": 1}])
    for seed in range(4):
        spoil(tmp_path, Random(seed))
        assert list(Scratch(rows).rows) == [{"index": 0}, {"index": 1}]
    assert whole.read_bytes() == bytes([7]) * 999
    assert all(file.read_bytes() != bytes([7]) * 999 for file in (half, part))
    shutil.rmtree(tmp_path / ".resume/train")
    assert left(tmp_path) == "2 rows"


def refused(folder: Path, *options: str) -> tuple[int, str]:
    """The exit code and the last line of what the command says, which must leave no folder behind."""
    (folder / "tmp").mkdir()
    environment = os.environ | {"TMPDIR": str(folder / "tmp"), "PYTHONPATH": str(folder)}
    line = [sys.executable, "-m", "tests.chaos", *options]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert not list((folder / "tmp").iterdir()) and "Traceback" not in done.stderr
    return done.returncode, done.stderr.splitlines()[-1]


def test_outside_a_repository_it_is_refused(tmp_path: Path):
    told = "error: this folder is no git repository with a commit: the kills are in a clone of the last one"
    assert refused(copy_project(tmp_path)) == (1, told)


def test_a_reference_without_a_run_is_refused(copy: Path):
    told = "error: --reference is stages, but there is no dvc.lock in it: run `dvc repro` there first"
    assert refused(copy, "--reference", "stages") == (1, told)


@pytest.mark.parametrize(
    "option, told",
    [
        (("--kills", "-1"), "error: argument --kills: -1 is not at least 1"),
        (("--longest", "nan"), "error: argument --longest: nan is not a number above 0"),
    ],
)
def test_options_that_mean_nothing(option: tuple[str, str], told: str, tmp_path: Path):
    code, line = refused(copy_project(tmp_path), *option)
    assert code == 2 and line.endswith(told)


def made(file: Path, content: bytes = b"") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file
