"""The package can be shipped beside weights: transformers' loader finds all of its files, which need no others."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers.dynamic_module_utils import get_relative_import_files

import pipeline.thought
from tests.thought.tiny import LLAMA, quiet_star, random_ids

FOLDER = Path(pipeline.thought.__file__).parent
LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
assert not any(name.split(".")[0] == "pipeline" for name in sys.modules)
torch.save(model(torch.load("ids.pt")).logits.detach(), "logits.pt")
"""


def test_the_loader_follows_every_import():
    found = {Path(path).name for path in get_relative_import_files(str(FOLDER / "model.py"))} | {"model.py"}
    assert found == {path.name for path in FOLDER.glob("*.py")} - {"__init__.py"}
    assert not any(
        "import pipeline" in path.read_text() or "from pipeline" in path.read_text() for path in FOLDER.glob("*.py")
    )


@pytest.mark.slow
def test_a_folder_with_the_package_loads_without_this_project(tmp_path: Path):
    model, ids = quiet_star(LLAMA).eval(), random_ids(2, 6)
    model.save_pretrained(tmp_path / "model")
    for path in FOLDER.glob("*.py"):
        shutil.copy(path, tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    config["auto_map"] = {"AutoConfig": "model.QuietStarConfig", "AutoModelForCausalLM": "model.QuietStarForCausalLM"}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    torch.save(ids, tmp_path / "ids.pt")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    subprocess.run([sys.executable, "-c", LOAD, "model"], cwd=tmp_path, env=environment, check=True)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), model(ids).logits.detach())
