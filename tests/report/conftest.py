"""A run's fake outputs, and the page made of them."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from fake_outputs import write_inputs
from markupsafe import Markup
from report_page import Page, written

from pipeline.report import ReportInputs, curves, figures
from pipeline.report.drawing import Plot, csv_link


@pytest.fixture
def inputs(tmp_path: Path) -> ReportInputs:
    return write_inputs(tmp_path)


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("report")
    return written(write_inputs(folder), folder / "out")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures without drawings, which take most of a page's time."""

    def plot(name: str, title: str, unit: str, data: pd.DataFrame, draw: Callable, height: float) -> Plot:
        return Plot(name, title, unit, Markup("<svg></svg>"), csv_link(data))

    monkeypatch.setattr(figures, "plot", plot)
    monkeypatch.setattr(curves, "plot", plot)
