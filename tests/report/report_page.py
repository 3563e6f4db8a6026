"""Reads a written page for the tests."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pandas as pd

from pipeline.report.page import write_report


class Page(HTMLParser):
    """A run's page as elements (tag, attributes) and their text, entities resolved, every space a plain one."""

    def __init__(self, run: Path):
        super().__init__()
        self.file = run / "page/index.html"
        write_report(run / "params.yaml", run / "results", self.file)
        self.html = self.file.read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
        self.elements: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(self.html)
        self.flat = flat(self.html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    @property
    def cells(self) -> list[dict]:
        return [attributes for _, attributes in self.elements if "data-thought" in attributes]

    def ids(self, tag: str) -> list[str]:
        return [attributes["id"] for name, attributes in self.elements if name == tag and "id" in attributes]

    def part(self, start: str, end: str) -> str:
        return re.search(f"{start}.*?{end}", self.html, flags=re.DOTALL)[0]

    def csv(self, name: str) -> pd.DataFrame:
        link = next(a["href"] for _, a in self.elements if a.get("download") == f"{name}.csv")
        return pd.read_csv(io.StringIO(unquote(link.split(",", 1)[1])), keep_default_na=False)


def flat(html: str) -> str:
    """The text between the tags, a bar between any two of its pieces."""
    return re.sub(r"(<[^>]*>\s*)+", "|", html)
