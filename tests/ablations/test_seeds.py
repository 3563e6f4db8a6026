"""Runs with several base models and seeds: each is kept once it is done, and is not run again."""

import sys
from pathlib import Path

import pandas as pd
import pytest

from pipeline.ablations import experiments, seeds
from pipeline.errors import UserError
from tests.ablations.toy import STUB, Project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    made = Project(tmp_path / "project")
    (tmp_path / "dvc.py").write_text(STUB)
    monkeypatch.setattr(experiments, "DVC", (sys.executable, str(tmp_path / "dvc.py")))
    monkeypatch.chdir(made.folder)
    return made


def run(*pairs: str) -> pd.DataFrame:
    sys.argv = ["seeds", *pairs]
    seeds.main()
    return pd.read_csv("results/seeds.csv")


def test_each_run_is_kept_and_a_run_with_rows_is_not_run_again(project: Project):
    first = run("2:2", "1:1")
    assert list(first.columns) == seeds.COLUMNS and first["base_seed"].tolist() == [1] * 7 + [2] * 7
    assert len(project.ran) == 2 and first["groups"].unique() == [5]
    own = first[first["method"] == "quiet_star"]  # a tenth of five tokens, less a hundredth of the base's seed
    assert own["content_effect"].to_numpy() == pytest.approx([0.49, 0.48])
    assert first[first["method"] != "quiet_star"]["content_effect"].isna().all()
    project.stage(broken=(5, 2))
    project.commit()
    with pytest.raises(UserError, match="1 of 3 runs failed: base1-seed2-.*this one breaks"):
        run("2:2", "1:1", "1:2")
    project.stage()
    rows = first[(first["method"] != "pause") | (first["seed"] == 1)]
    rows.to_csv("results/seeds.csv", index=False)  # a method that has come since
    again = run("2:2", "1:1", "1:2")
    assert len(project.ran) == 4 and len(again) == 21
    page = Path("results/seeds.md").read_text()
    assert "| pause | 2 | 0.500 [0.500, 0.500]: 0.500, 0.500 |" in page and "## micro: training seeds on one" in page


def test_what_is_no_pair_is_refused(project: Project):
    with pytest.raises(UserError, match="1 is no pair of seeds: write BASE:SEED"):
        run("1")
    assert project.started == []
