"""The training stage, from its inputs to its outputs, on a tiny base model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.data.spans import SPANS
from pipeline.errors import UserError
from pipeline.files import write_rows
from pipeline.params import Train
from pipeline.training.quiet_star.train import write_trained
from pipeline.training.quiet_star.trainer import QuietStarTrainer
from tests.bad_input import spoil
from tests.local_hub import model_folder
from tests.training.quiet_star.test_trainer import TRAIN

LEARNED = replace(TRAIN, adapt="frozen", saved="learned")
ROUNDED = replace(TRAIN, adapt="frozen", precision="bfloat16")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a base model and spans of ten tokens."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    model_folder(tmp_path / "base", "llama", num_attention_heads=2, intermediate_size=24)
    ids = torch.randint(2, 90, (8, 10), generator=torch.Generator().manual_seed(0)).tolist()
    for name in ("train", "heldout"):
        write_rows(tmp_path / f"{name}.arrow", [{"input_ids": row, "length": 10} for row in ids], SPANS)
    return tmp_path


@pytest.fixture
def write(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Train, and after the last step call ``meanwhile`` with the trainer."""
    run = QuietStarTrainer.run

    def call(params: Train, meanwhile: Callable[[QuietStarTrainer], object]) -> None:
        monkeypatch.setattr(QuietStarTrainer, "run", lambda self: (run(self), meanwhile(self))[0])
        places = (folder / name for name in ("base", "", "probe", "out", "results/train/out"))
        write_trained(params, "pause", 1, *places)  # pauses read no probe

    return call


@pytest.mark.parametrize("params", [ROUNDED, LEARNED, TRAIN], ids=["rounded", "learned", "whole"])
def test_bfloat16_keeps_only_matrices_that_do_not_learn_in_it(params: Train, write: Callable, folder: Path):
    kept = {}
    write(params, lambda trainer: kept.update((name, w.dtype) for name, w in trainer.model.named_parameters()))
    rounded = {name for name, dtype in kept.items() if dtype == torch.bfloat16}
    assert rounded == {name for name in kept if params is ROUNDED and ("proj" in name or "lm_head" in name)}
    assert set(kept.values()) - {torch.bfloat16} == {torch.float32}
    if params is ROUNDED:  # weights that do not learn are written as they were read
        base, out = (load_file(folder / f"{name}/model.safetensors") for name in ("base", "out"))
        assert all(torch.equal(out[f"base.{name}"], value) for name, value in base.items())


@pytest.mark.parametrize("params", [ROUNDED, LEARNED], ids=["rounded", "learned"])
def test_a_base_model_that_changes_meanwhile(params: Train, write: Callable, folder: Path):
    change = spoil.weights("base/model.safetensors", spoil.another)
    with pytest.raises(UserError, match="base changed while they were trained on: run `dvc repro train` again"):
        write(params, lambda trainer: change(folder))
    assert not (folder / "out").exists()
