"""What is published is the release, under its own name; a fake hub keeps it, and transformers loads it from there."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from pipeline.errors import UserError
from pipeline.models.trained import load_trained
from pipeline.publish import __main__ as publish
from tests.fake_hub import FakeHub, fake_hub
from tests.thought.tiny import random_ids

LOAD = """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("org/name", trust_remote_code=True).eval()
assert AutoTokenizer.from_pretrained("org/name", trust_remote_code=True)("Q:").input_ids
ids = torch.load("ids.pt")
torch.save([model(ids).logits.detach(), model.generate(ids, max_new_tokens=4)], "found.pt")
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub() as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(publish, "HfApi", partial(publish.HfApi, endpoint=hub.address, token="hf_of_nobody"))
        yield hub


@pytest.fixture
def release(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(finished)
    return finished / "models/release"


def test_every_file_is_uploaded_and_the_card_names_the_model(
    release: Path, hub: FakeHub, capsys: pytest.CaptureFixture
):
    publish.main(["org/name", "--private"])
    files = {str(path.relative_to(release)): path.read_bytes() for path in release.rglob("*")}
    card = files.pop("README.md").decode()
    found = dict(hub.models["org/name"])
    assert found.pop("README.md").decode() == card.replace('"models/release"', '"org/name"') != card
    assert found == files and hub.private == {"org/name"}
    assert json.loads(found["metrics.json"]) and "model.py" in found
    assert f"{hub.address}/org/name: {len(files) + 1} files, " in capsys.readouterr().out


@pytest.mark.parametrize("spelled", ["./models/release/", "/absolute"])
def test_the_card_names_the_model_however_the_folder_is_spelled(release: Path, hub: FakeHub, spelled: str):
    publish.main(["org/name", "--folder", str(release) if spelled == "/absolute" else spelled])
    card = hub.models["org/name"]["README.md"].decode()
    assert '"org/name"' in card and '"models/release"' not in card


def test_private_does_not_upload_to_a_public_model(release: Path, hub: FakeHub):
    publish.main(["org/name"])
    hub.models["org/name"].clear()
    with pytest.raises(UserError, match="^org/name was not published: there is a public model of that name"):
        publish.main(["org/name", "--private"])
    assert not hub.models["org/name"]
    publish.main(["org/other", "--private"])
    publish.main(["org/other", "--private"])
    assert hub.private == {"org/other"}


@pytest.mark.slow
def test_transformers_loads_it_from_the_hub_without_this_project(release: Path, hub: FakeHub, tmp_path: Path):
    publish.main(["org/name"])
    ids = random_ids(2, 6)
    torch.save(ids, tmp_path / "ids.pt")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HUB_OFFLINE")}
    environment |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    subprocess.run([sys.executable, "-c", LOAD], cwd=tmp_path, env=environment, check=True)
    model = load_trained(release)
    logits, written = torch.load(tmp_path / "found.pt")
    torch.testing.assert_close(logits, model(ids).logits.detach())
    assert torch.equal(written, model.generate(ids, max_new_tokens=4))


def test_what_is_refused(release: Path, hub: FakeHub, tmp_path: Path):
    def refused(message: str, *arguments: str) -> None:
        with pytest.raises(UserError, match=message):
            publish.main(list(arguments))

    refused("is no release, as it has no config.json: run `dvc repro release`", "org/name", "--folder", str(tmp_path))
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/config.json").touch()  # another one's
    refused("no config.json", "org/name", "--folder", str(tmp_path))
    for path in release.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").touch()
    refused("its config.json is broken", "org/name", "--folder", str(tmp_path))
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").symlink_to(release / "config.json")
    (tmp_path / "model.py").unlink()
    refused("no model.py, its config.json's code", "org/name", "--folder", str(tmp_path))
    (tmp_path / "model.py").symlink_to(release / "model.py")
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").write_text("a card that was written by hand")
    refused('README.md does not load "models/release"', "org/name", "--folder", str(tmp_path))
    (tmp_path / "optimizer.pt").touch()
    refused("may be pickled, which can run any code", "org/name", "--folder", str(tmp_path))
    refused("^a b was not published: ", "a b")
    hub.refuse = True
    refused("^org/name was not published: .*403", "org/name")
    assert not hub.models
