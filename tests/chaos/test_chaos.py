"""A small project is killed for real; the comparison names every difference from an uninterrupted run."""

import shutil
from pathlib import Path
from random import Random

import pytest

from pipeline.resume import Scratch
from tests.chaos.__main__ import differences, in_words, run, surprises
from tests.chaos.kills import DVC, NO_STAGE, NOTHING, Kill, call, checkpoint_often, left, spoil
from tests.stage_runner import TRAIN, copy_project, make_repository, run_stages

STAGES = ("base_model", "train")  # of the graph; their inputs are in git


@pytest.mark.slow
def test_killed_three_times_it_ends_as_if_it_were_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SHELL", "/bin/sh")  # a shell that stays between DVC and a command without exec
    changes = {"base_model__scratch__steps": 1200, "train__steps": 500, "arms__methods": ["quiet_star"]}
    reference = copy_project(tmp_path / "reference/project", **changes)
    checkpoint_often(reference)
    run_stages(reference, ("inputs", "corpus", "tokenize"))
    make_repository(reference, STAGES, call)
    call(reference, "git", "add", "--force", "data")
    call(reference, "git", "commit", "-qm", "inputs")
    project = shutil.copytree(reference, tmp_path / "killed/project")
    run_stages(reference, ("base_model", TRAIN))
    call(reference, "dvc", "commit", "--force")
    kills = run(project, 3, Random(3), dict.fromkeys(STAGES, 1), longest=12)
    assert [*differences(project, reference), *surprises(kills)] == []
    assert len(kills) == 3 and {one.stage for one in kills} <= {*STAGES, NO_STAGE}


def test_every_difference_is_named(tmp_path: Path):
    ended = tmp_path / "ended"
    made(ended / "dvc.lock", b"stages: {train: {outs: [{md5: 1}]}}")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "start"]):
        call(ended, "git", *words)
    reference = shutil.copytree(ended, tmp_path / "reference")
    assert list(differences(ended, reference)) == []
    made(ended / "dvc.lock", b"stages: {train: {outs: [{md5: 2}]}}")
    rest = [".resume/train/quiet_star/1/rows.jsonl", "models/base.part", "models/base.part.lock", "new.txt"]
    for name in (rest[0], f"{rest[1]}/config.json", *rest[2:]):
        made(ended / name)
    made(ended / ".gitignore", b".resume\nmodels\n.gitignore\n")
    assert list(differences(ended, reference)) == [
        "dvc.lock differs in train",
        "changed are ['dvc.lock'], not []",
        *(f"{name} is left over" for name in rest),
    ]


@pytest.mark.parametrize(
    "kills, complaint",
    [
        ([("train", "step 6", 0, ""), ("train", "step 40", 0, "step 40")], None),  # killed again before it said so
        ([("train", "step 3", 0, ""), (NO_STAGE, "step 3", 0, "")], None),
        ([("train", "step 40", 0, ""), ("train", "step 6", 0, "step 6")], "had step 40 and, killed again, step 6"),
        ([("evaluate", "8 rows", 0, ""), ("evaluate", NOTHING, 0, "")], "had 8 rows and, killed again, nothing"),
        ([("train", "step 3", 2, "step 3")], "kill 1 left 2 processes running"),
        ([("train", "step 3", 0, NOTHING)], "after kill 1 train had step 3 but resumed from nothing"),
    ],
)
def test_a_stage_that_loses_what_it_had_is_named(kills: list[tuple], complaint: str | None):
    done = [Kill(stage, 1.0, DVC, kept, orphans, resumed_from) for stage, kept, orphans, resumed_from in kills]
    found = list(surprises(done))
    assert found == [] if complaint is None else len(found) == 1 and found[0].endswith(complaint)
    page = in_words(done, found, "about")
    assert f"**{len(kills)} kills: " in page and (complaint or "hash by hash") in page
    assert [line.split(" | ")[1] for line in page.splitlines()[-len(kills) :]] == [one.stage for one in done]


def test_a_power_cut_spoils_only_what_was_not_synced(tmp_path: Path):
    content, scratch = b"7" * 999, tmp_path / ".resume/train/a"
    files = (scratch / "step-4/model", scratch / "checkpoint-6/model", tmp_path / "models/base.part/model")
    whole, *unsure = (made(file, content) for file in files)
    rows = made(tmp_path / ".resume/evaluate/a/rows.jsonl")
    Scratch(rows).add([{"index": 0}, {"index": 1}])
    for seed in range(4):
        spoil(tmp_path, Random(seed))
    assert whole.read_bytes() == content and all(file.read_bytes() != content for file in unsure)
    assert left(tmp_path) == "step 4" and left(tmp_path / "models") == NOTHING
    shutil.rmtree(scratch)
    assert left(tmp_path) == "2 rows"  # torn ones are not counted
    assert list(Scratch(rows).rows) == [{"index": 0}, {"index": 1}]


def made(file: Path, content: bytes = b"") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file
