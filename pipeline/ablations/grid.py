"""The grid file, and the arms that it asks for."""

import hashlib
import subprocess
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import yaml

from pipeline import params, typed_yaml
from pipeline.errors import UserError
from pipeline.preset import options as preset


@dataclass
class Grid:
    """The values to combine, and options that all arms share (words for `python -m pipeline.preset`)."""

    methods: list[str] = field(default_factory=list)
    thought_tokens: list[int] = field(default_factory=list)
    lookaheads: list[int] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    options: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Arm:
    """One experiment: a method with thought length K and lookahead A (both None if the method has neither)."""

    name: str
    method: str
    thought_tokens: int | None
    lookahead: int | None
    params: dict[str, object]  # by dotted name
    baseline: str  # the commit that the experiment starts from
    snapshot: str  # a commit of the workspace's tracked files; the baseline itself if nothing has changed

    @property
    def ref(self) -> str:
        """The git reference that DVC gives the experiment; it is there once the arm is done."""
        return f"refs/exps/{self.baseline[:2]}/{self.baseline[2:]}/{self.name}"


def read_grid(path: Path) -> Grid:
    """Read a grid file. Raises UserError if it is missing or malformed, or if an axis is empty or has duplicates."""
    try:
        grid = typed_yaml.load(path, Grid)
    except FileNotFoundError as error:
        raise UserError(f"the grid {path} is missing") from error
    for axis in ("methods", "thought_tokens", "lookaheads", "seeds"):
        values = getattr(grid, axis)
        if not values or len(set(values)) < len(values):
            raise UserError(f"{path}: {axis} is {values}, but must name at least one and none twice")
    return grid


def arms(grid: Grid) -> list[Arm]:
    """Every arm of the grid, with the workspace's code as it is now.

    An arm's name ends in eight digits for commit, code and parameters: arms of one name have the same results.
    Raises UserError outside a git repository, in a shallow clone, and for parameters that no run can have.
    """
    try:
        baseline = git("rev-parse", "--verify", "HEAD")
    except UserError as error:
        raise UserError(f"experiments need a git repository with a commit: {error}") from error
    if git("rev-parse", "--is-shallow-repository") == "true":
        raise UserError("this clone is shallow, but experiments need its history: `git fetch --unshallow`")
    git("status", "--porcelain")  # refreshes the index: `stash create` fails on files that only have another date
    snapshot = git("stash", "create") or baseline  # creates a commit; leaves workspace, index and stash alone
    graph = yaml.safe_load(git("show", f"{snapshot}:./dvc.yaml"))
    deps = {dep for stage in graph["stages"].values() for dep in stage["deps"]}
    code = sorted(dep for dep in deps if dep.startswith(("stages/", "pipeline/", "tasks")))
    hashes = git("ls-tree", "-r", snapshot, "--", "dvc.yaml", *code)
    first, *others = grid.seeds
    found = []
    for method in grid.methods:
        # without thoughts there is neither thought length nor lookahead: one arm
        sizes = [(None, None)] if method == "no_thought" else product(grid.thought_tokens, grid.lookaheads)
        for length, lookahead in sizes:
            # further seeds are baselines of the same method, so that `compare` pools all seeds
            values = {"train.method": method, "train.seed": first}
            values |= {"baseline.methods": [method] if others else [], "baseline.seeds": others or [first]}
            name = method
            if length is not None:
                values |= {"train.thought_tokens": length, "train.lookahead": lookahead}
                name += f"-k{length}-a{lookahead}"
            changes = preset.options([*grid.options, *preset.words(values)])
            identity = f"{baseline}\n{hashes}\n{params.load(changes=changes)}"
            name += f"-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
            found.append(Arm(name, method, length, lookahead, changes, baseline, snapshot))
    return found


def git(*words: str) -> str:
    """Run git and return what it prints, stripped. Raises UserError if it fails."""
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"git {words[0]} failed: {done.stderr}")
    return done.stdout.strip()
