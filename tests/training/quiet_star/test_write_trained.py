"""The training stage, from its inputs to its outputs, on a tiny base model."""

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

PAUSES = replace(TRAIN, method="pause")  # which read no probe
LEARNED = replace(PAUSES, adapt="frozen", saved="learned")
ROUNDED = replace(PAUSES, adapt="frozen", precision="bfloat16")
WAYS = ["rounded", "learned", "whole"]


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


def write(folder: Path, params: Train) -> None:
    write_trained(params, folder / "base", folder, folder / "probe", folder / "out", folder / "results")


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.dtype]:
    """How the trainer keeps each weight."""
    dtypes, run = {}, QuietStarTrainer.run

    def spied(self: QuietStarTrainer) -> list[dict]:
        dtypes.update((name, weight.dtype) for name, weight in self.model.named_parameters())
        return run(self)

    monkeypatch.setattr(QuietStarTrainer, "run", spied)
    return dtypes


@pytest.mark.parametrize("params, rounds", [(ROUNDED, True), (LEARNED, False), (PAUSES, False)], ids=WAYS)
def test_bfloat16_keeps_matrices_that_do_not_learn_in_it(
    params: Train, rounds: bool, folder: Path, kept: dict[str, torch.dtype]
):
    write(folder, params)
    rounded = {name for name, dtype in kept.items() if dtype == torch.bfloat16}
    assert rounded == ({name for name in kept if "proj" in name or "lm_head" in name} if rounds else set())
    assert set(kept.values()) - {torch.bfloat16} == {torch.float32}


def test_weights_that_do_not_learn_are_written_as_they_were_read(folder: Path):
    write(folder, ROUNDED)
    base, out = (load_file(folder / f"{name}/model.safetensors") for name in ("base", "out"))
    assert all(torch.equal(out[f"base.{name}"], value) for name, value in base.items())


@pytest.mark.parametrize("params", [ROUNDED, LEARNED, PAUSES], ids=WAYS)
def test_a_base_model_that_changes_meanwhile(params: Train, folder: Path, monkeypatch: pytest.MonkeyPatch):
    run = QuietStarTrainer.run

    def changing(self: QuietStarTrainer) -> list[dict]:
        rows = run(self)
        spoil.weights("base/model.safetensors", spoil.another)(folder)
        return rows

    monkeypatch.setattr(QuietStarTrainer, "run", changing)
    with pytest.raises(UserError, match="base changed while they were trained on: run `dvc repro train` again"):
        write(folder, params)
    assert not (folder / "out").exists()
