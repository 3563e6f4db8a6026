"""What lies outside the graph is hashed, a group a file, so that a change reruns what reads it and nothing else."""

import json
from pathlib import Path

import pytest

from tests import local_hub
from tests.stage_runner import copy_project, run_here, set_params


def written(project: Path) -> dict[str, str]:
    run_here(project, "inputs")
    return {path.stem: path.read_text() for path in (project / "data/inputs").iterdir()}


def test_each_change_of_a_local_input_changes_the_file_of_its_group_alone(tmp_path: Path):
    project, hub = copy_project(tmp_path / "project"), tmp_path / "hub"
    default = {"corpus": {}, "tasks": {}, "base_model": {}, "launcher": {"single": {}}}
    assert {name: json.loads(text) for name, text in written(project).items()} == default
    model = local_hub.model_folder(tmp_path / "model")
    set_params(project, local_hub.sources(hub) | {"train.launcher": "launchers/cpus.yaml"})
    set_params(project, {"base_model.source": "hub", "base_model.path": str(model)})
    before = written(project)
    assert written(project) == before
    changes = {
        "corpus": next((hub / "news").rglob("*.jsonl")),
        "tasks": next((hub / "tau").rglob("*.parquet")),
        "base_model": model / "model.safetensors",
        "launcher": project / "launchers/cpus.yaml",
    }
    for group, file in changes.items():
        file.write_bytes(file.read_bytes() + b" ")
        after = written(project)
        assert [name for name in before if before[name] != after[name]] == [group]
        before = after


def test_a_data_set_below_data_is_hashed_and_a_folder_that_is_a_link_is_followed(tmp_path: Path):
    """Only what the stage corpus writes is left out, as the graph watches that itself."""
    project = copy_project(tmp_path / "project")
    set_params(project, local_hub.sources(project / "data/hub"))
    (project / "data/hub/tau/commonsense_qa/data").rename(tmp_path / "elsewhere")
    (project / "data/hub/tau/commonsense_qa/data").symlink_to(tmp_path / "elsewhere")
    set_params(project, {"tasks.root": "data/hub"})
    before = written(project)
    file = next((tmp_path / "elsewhere").iterdir())
    file.write_bytes(file.read_bytes() + b" ")
    after = written(project)
    assert [name for name in before if before[name] != after[name]] == ["tasks"]


def test_a_file_that_has_not_changed_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    project = copy_project(tmp_path / "project", train__launcher="launchers/cpus.yaml")
    before = written(project)
    monkeypatch.setattr("pipeline.data.inputs.digests", lambda path: pytest.fail(f"{path} is read again"))
    assert written(project) == before
