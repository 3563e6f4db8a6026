"""A fake run, and the pages of a run of each method."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from fake_outputs import write_run
from markupsafe import Markup
from report_page import Page

from pipeline.report import curves, figures
from pipeline.report.drawing import Plot, csv_link


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path)


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_run(tmp_path_factory.mktemp("quiet_star")))


@pytest.fixture(scope="session")
def pausing(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_run(tmp_path_factory.mktemp("pause"), "pause"))


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_run(tmp_path_factory.mktemp("no_thought"), "no_thought"))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures without drawings, which take most of a page's time."""

    def plot(name: str, title: str, unit: str, data: pd.DataFrame, draw: Callable, height: float) -> Plot:
        return Plot(name, title, unit, Markup("<svg></svg>"), csv_link(data))

    monkeypatch.setattr(figures, "plot", plot)
    monkeypatch.setattr(curves, "plot", plot)
