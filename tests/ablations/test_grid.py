"""What a grid's file may say, and the arms that it asks for."""

from pathlib import Path

import pytest
import yaml

from pipeline.ablations.grid import Arm, arms, read_grid
from pipeline.errors import UserError
from tests.ablations.toy import GRID, ROOT

STAGED = "train.stages=[{thought_tokens:3,lookahead:2,learning_rate:1e-4,steps:5}]"
FOUR = GRID | {"lookaheads": [1, 2]}


def asked(folder: Path, **changes: object) -> list[Arm]:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(FOUR | changes))
    return arms(read_grid(path))


def test_every_combination_is_an_arm_of_its_own(tmp_path: Path):
    found = asked(tmp_path, methods=["quiet_star", "no_policy", "no_thought", "before"])
    grid = [(1, 1), (1, 2), (3, 1), (3, 2)]
    methods = [(method, *point) for method in ("quiet_star", "no_policy") for point in grid]
    plain = [("no_thought", None, None), ("before", None, None)]
    assert [tuple(arm.about.values()) for arm in found] == [*methods, *plain]
    assert len({arm.name for arm in found}) == len(found)
    assert all(arm.params["train.thought_tokens"] == arm.about["thought_tokens"] for arm in found[:-2])
    assert "train.thought_tokens" not in found[-1].params and found[-1].params["arms.methods"] == ["before"]
    assert [len(arms(read_grid(ROOT / name))) for name in ("ablations.yaml", "ablations-ci.yaml")] == [11, 4]  # shipped


def test_options_and_seeds_are_those_of_every_arm(tmp_path: Path):
    one, several = asked(tmp_path), asked(tmp_path, seeds=[3, 1, 2], options=["scale=smoke", "train.steps=7"])
    assert one[0].params["arms.seeds"] == [1]
    for arm in several:
        assert arm.params["arms.seeds"] == [3, 1, 2] and arm.params["arms.methods"] == ["quiet_star"]
        assert arm.params["train.steps"] == 7 and arm.params["report.passages"] == 2
    names = [arm.name for arm in one]
    assert names == [arm.name for arm in asked(tmp_path)] and not set(names) & {arm.name for arm in several}
    assert names[0].startswith("quiet_star-k1-a1-") and len(names[0].rpartition("-")[2]) == 8


def test_relative_folders_become_absolute_as_an_arm_runs_elsewhere(tmp_path: Path):
    options = ["base_model.source=hub", "base_model.path=../models/x", "tasks.root=hub", "corpus.hub.train.path=a/b"]
    given = asked(tmp_path, options=options)[0].params
    assert given["base_model.path"] == str(Path("../models/x").resolve())
    assert given["tasks.root"] == str(Path("hub").resolve()) and given["corpus.hub.train.path"] == "a/b"  # a hub name
    options[-1] = "corpus.hub.train.path=tests/data"  # a folder, though it could be a hub name
    assert asked(tmp_path, options=options)[0].params["corpus.hub.train.path"] == str(Path("tests/data").resolve())


@pytest.mark.parametrize(
    "grid, complaint",
    [
        ({"thought_tokens": []}, "thought_tokens"),
        ({"lookaheads": [1, 1]}, "lookaheads"),
        ({"methods": ["magic"]}, "arms.methods is "),
        ({"options": ["scale=huge"]}, "scale=huge"),
        ({"options": ["train.steps=[1"]}, "train.steps"),
        ({"options": [STAGED]}, "train.stages has thought lengths and lookaheads, which a grid combines"),
    ],
)
def test_a_grid_that_cannot_be_run_is_refused(grid: dict, complaint: str, tmp_path: Path):
    with pytest.raises(UserError, match=complaint) as error:
        asked(tmp_path, **grid)
    assert "\n" not in str(error.value)


def test_a_missing_grid_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="grid.yaml is missing"):
        read_grid(tmp_path / "grid.yaml")
