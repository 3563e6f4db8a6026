"""All stages on very little data: they write what dvc.yaml says, and the same bytes again."""

import itertools
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pipeline.files import arrow_table
from pipeline.models.trained import load_trained
from pipeline.thought.methods import METHODS
from tests.local_hub import model_folder, sources
from tests.stage_runner import ARMS, STAGES, TRAIN, copy_project, run_as_module, run_stage, run_stages, set_params
from tests.test_graph import STAGES as GRAPH
from tests.test_graph import outputs


def written(folder: Path) -> dict[str, bytes]:
    """Every file that stages wrote, except the speed, which is never the same."""
    files = [f for top in ("data", "models", "results") for f in (folder / top).rglob("*") if f.is_file()]
    return {str(f.relative_to(folder)): f.read_bytes() for f in files if f.parent.name != "speed"}


def test_every_stage_of_the_graph_writes_its_outputs_and_leaves_no_part(finished: Path):
    assert set(GRAPH) == {stage.split()[0] for stage in STAGES}
    for output in itertools.chain.from_iterable(map(outputs, GRAPH.values())):
        found = list(finished.glob(output.replace("${item.method}-${item.seed}", "*-1")))
        assert len(found) == (len(ARMS) if "item" in output else 1), output
        assert all(path.is_file() or any(path.iterdir()) for path in found), output
    assert not list(finished.rglob("*.part*"))


def changed(finished: Path, folder: Path, stages: tuple[str, ...], **changes: object) -> Path:
    """A copy of the finished project in which these stages have run again with other parameters (``__`` is a dot)."""
    shutil.copytree(finished, folder)
    set_params(folder, {name.replace("__", "."): value for name, value in changes.items()})
    run_stages(folder, stages)
    return folder


def test_a_second_run_writes_the_same_bytes(finished: Path, tmp_path: Path):
    before, after = written(finished), written(changed(finished, tmp_path / "again", STAGES))
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == []


def test_another_seed_changes_what_it_should(finished: Path, tmp_path: Path):
    other = changed(finished, tmp_path / "other", ("train quiet_star 2", "train pause 2"))
    for name in ("trained/quiet_star-{}/model.safetensors", "trained/pause-{}/model.safetensors"):
        one, two = (other / "models" / name.format(seed) for seed in (1, 2))
        assert one.read_bytes() != two.read_bytes()
    assert written(finished).items() <= written(other).items()


def test_the_comparison_has_every_arm(finished: Path):
    figures = pd.read_csv(finished / "results/compare/figures.csv")
    ways = {f"quiet_star/{way}" for way in ("thoughts_off", "swapped", "random")}
    assert {arm.split()[0] for arm in ARMS} | ways <= set(figures["arm"])
    assert set(figures["task"]) == {"micro_rings", "micro_animals", "heldout"}


def test_an_arm_has_its_own_method_and_one_that_takes_no_step_leaves_the_base_as_it_is(finished: Path):
    folders = {arm: finished / "models/trained" / arm.replace(" ", "-") for arm in ARMS}
    for arm, folder in folders.items():
        steps = pd.read_csv(finished / "results/train" / folder.name / "steps.csv")
        heldout = pd.read_csv(finished / "results/train" / folder.name / "heldout.csv")
        method = json.loads((folder / "config.json").read_text())["method"]
        assert method == arm.split()[0] and METHODS[method].trains == bool(len(steps)) == (len(heldout) > 1)
    kept = {arm: set(load_file(folder / "learned.safetensors")) for arm, folder in folders.items() if "un" in arm}
    assert all(not name.startswith("base.") for name in kept["untrained 1"])
    base = load_file(finished / "models/base/model.safetensors")
    before = load_trained(folders["before 1"]).base.state_dict()
    assert all(torch.equal(before[name], value) for name, value in base.items())


@pytest.mark.slow
def test_data_sets_and_a_model_from_local_folders(tmp_path: Path):
    """What `corpus.source=hub` and `base_model.source=hub` do with hub names, they do with folders."""
    model = model_folder(tmp_path / "openai-community/gpt2")
    project = copy_project(tmp_path / "project", base_model__source="hub", base_model__path=str(model))
    set_params(project, sources(tmp_path / "hub"))
    run_stages(project)
    assert json.loads((project / "models/base/config.json").read_text())["model_type"] == "gpt2"
    assert not len(arrow_table(project / "data/corpus/texts/pretrain.arrow"))  # no use for it
    assert len(arrow_table(project / "data/corpus/texts/train.arrow")) == 12
    train = json.loads((project / "results/train/quiet_star-1/metrics.json").read_text())
    assert train["working_share"] is None  # no workings are known
    evaluate = json.loads((project / "results/evaluate/quiet_star-1/metrics.json").read_text())
    assert evaluate["gsm8k"]["n"] == evaluate["commonsense_qa"]["n"] == 4  # of the five that there are
    assert "<html" in (project / "results/report/index.html").read_text()


@pytest.mark.slow
def test_adapters_saved_alone_give_what_they_give_merged(finished: Path, tmp_path: Path):
    stages = STAGES[STAGES.index(TRAIN) :]
    whole, small = (
        changed(finished, tmp_path / saved, stages, train__adapt="lora", train__saved=saved)
        for saved in ("whole", "learned")
    )
    weights = {path.parent.name for path in (small / "models").rglob("learned.safetensors")}
    assert weights == {arm.replace(" ", "-") for arm in ARMS}
    kept, trained = (small / f"{name}/model.safetensors" for name in ("models/base", "models/trained/quiet_star-1"))
    assert not trained.exists() and kept.read_bytes() == (finished / "models/base/model.safetensors").read_bytes()
    for name in ("models/release/model.safetensors", "results/train/quiet_star-1/steps.csv"):
        assert (small / name).read_bytes() == (whole / name).read_bytes(), name
    one, other = (
        pd.read_parquet(run / "results/evaluate/quiet_star-1/predictions.parquet")["prob"] for run in (whole, small)
    )
    assert one.to_numpy() == pytest.approx(other.to_numpy(), rel=1e-4)
    assert AutoModelForCausalLM.from_pretrained(small / "models/release").config.method == "quiet_star"


@pytest.mark.slow
def test_stages_import_the_code_beside_them(finished: Path, tmp_path: Path):
    """An experiment's temporary workspace must not run the main checkout's code (dvc.md)."""
    project = shutil.copytree(finished, tmp_path / "project")
    (project / "pipeline/data/corpus/build.py").write_text("raise SystemExit('error: the copy')\n")
    assert run_as_module(project, "corpus").complaint == run_stage(project, "corpus").complaint == ["error: the copy"]
