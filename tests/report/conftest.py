"""A fake run, and the pages of runs of several methods."""

from pathlib import Path

import pytest
from fake_outputs import write_run
from report_page import Page

from pipeline.report.drawing import Figure


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path)


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    methods = ("quiet_star", "pause", "no_thought")  # whose pages have other parts
    return {method: Page(write_run(tmp_path_factory.mktemp(method), method)) for method in methods}


@pytest.fixture(scope="session")
def page(pages: dict[str, Page]) -> Page:
    return pages["quiet_star"]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty figures, as rendering takes most of a page's time."""
    empty = '<svg viewBox="0 0 1 1"></svg>'
    monkeypatch.setattr(Figure, "savefig", lambda figure, target, **options: target.write(empty))
