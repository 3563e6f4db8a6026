"""The repository: README's tree and the pages' links; workflows hold no logic, want the whole history and no secret."""

import importlib
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
FILES = {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "Makefile", "Dockerfile"}
FILES |= {"constraints.txt", "pyproject.toml", "dvc.lock"}
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.MULTILINE))
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((ROOT / ".github/workflows").glob("*.yml"))}


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
    assert len(list((ROOT / "docs").glob("*.md"))) <= 7


def test_the_citation_the_changes_and_the_package_name_one_version():
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    assert citation["version"] == newest == package["version"] and citation["license"] == package["license"]
    for target in package["scripts"].values():
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


# a Python that makes environments without installing anything
NO_PYTHON = """#!/bin/sh
case "$*" in
"-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python; ln -s python .venv/bin/pip ;;
esac
"""


def test_a_checkout_whose_path_has_a_space_is_set_up(tmp_path: Path):
    folder = tmp_path / "a checkout"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "python").write_text(NO_PYTHON)
    (folder / "python").chmod(0o755)
    subprocess.run(["make", "setup-tests", "PYTHON=./python"], cwd=folder, capture_output=True, check=True)
    assert (folder / ".venv/.ready-tests").exists()


def test_the_image_for_gpus_has_what_its_tests_need():
    """Its documented command, `make bench-cuda`, runs pytest."""
    image = (ROOT / "Dockerfile").read_text().partition(" AS cuda")[2].partition("FROM")[0]
    assert "RUN make setup-tests\n" in image


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(#[^)]*)?\)", page.read_text()):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
            anchors = {"#" + re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, anchor


def steps(name: str) -> list[dict]:
    return [step for job in WORKFLOWS[name]["jobs"].values() for step in job["steps"]]


def test_there_are_tests_on_every_push_and_ablations_weekly_and_on_request():
    assert [*WORKFLOWS] == ["ablations", "tests"]
    tests, ablations = (WORKFLOWS[name][True] for name in ("tests", "ablations"))  # YAML reads `on` as true
    assert "push" in tests and tests["push"] is None
    assert {"schedule", "workflow_dispatch", "pull_request"} <= set(ablations)
    assert "make lint" in [step.get("run") for step in steps("tests")]
    assert "check-jsonschema" in MAKEFILE and "zizmor" in MAKEFILE  # the workflows' own linters


@pytest.mark.parametrize("name", WORKFLOWS)
def test_make_targets_run_actions_are_pinned_the_whole_history_is_fetched_no_secret_is_needed(name: str):
    commands = [step["run"] for step in steps(name) if "run" in step]
    assert commands and set(commands) <= {f"make {target}" for target in TARGETS}
    used = [step for step in steps(name) if "uses" in step]
    assert all(re.fullmatch(r"actions/[a-z/-]+@[0-9a-f]{40}", step["uses"]) for step in used)
    checkout = next(step for step in used if step["uses"].startswith("actions/checkout@"))
    assert checkout["with"]["fetch-depth"] == 0 and checkout["with"]["persist-credentials"] is False
    assert "secrets." not in (ROOT / f".github/workflows/{name}.yml").read_text()


def test_the_grid_runs_in_order_and_the_cache_is_restored_and_kept_also_when_an_arm_fails():
    every = steps("ablations")
    ran = [step["run"] for step in every if "run" in step]
    assert ran == ["make repro", "make check", "make ablations-ci", "make ci-report", "make ci-comment"]
    used = {step["uses"].partition("@")[0]: step for step in every if "uses" in step}
    restore, save = used["actions/cache/restore"], used["actions/cache/save"]
    assert restore["with"]["path"] == save["with"]["path"] == ".dvc/cache"
    assert save["with"]["key"].startswith(restore["with"]["restore-keys"]) and save["if"] == "always()"
