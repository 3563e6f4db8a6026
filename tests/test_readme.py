"""The README's tree is the repository's, and its links and those of the docs lead somewhere."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FILES = {"README.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "constraints.txt", "pyproject.toml", "dvc.lock"}


def tree() -> set[str]:
    """The paths in the README's tree, its indented ones below pipeline/."""
    blocks = (ROOT / "README.md").read_text().split("```\n")
    block = next(block for block in blocks if block.startswith("dvc.yaml"))
    names = [re.match(r"( *)(\S+)", line).groups() for line in block.splitlines()]
    return {("pipeline/" if indent else "") + name.rstrip("/") for indent, name in names}


def test_the_tree_is_the_repositorys():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    shown = [path for path in tracked if not path.startswith((".", "ablations")) and path not in FILES]
    top = {path.split("/")[0] for path in shown}
    rooms = {"/".join(path.split("/")[:2]) for path in shown if path.startswith("pipeline/") and path.count("/") > 1}
    assert tree() == top | rooms


def test_pipeline_has_few_names_and_docs_few_pages():
    assert len([path for path in (ROOT / "pipeline").iterdir() if path.name != "__pycache__"]) <= 18
    assert len(list((ROOT / "docs").glob("*.md"))) <= 6


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(#[^)]*)?\)", page.read_text()):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
            anchors = {"#" + re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, anchor
