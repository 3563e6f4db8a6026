"""The grid in a parameters file, and the arms that it asks for."""

import hashlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import yaml

from pipeline import params, typed_yaml
from pipeline.errors import UserError
from pipeline.preset import options as preset

WITHOUT_THOUGHTS = ("no_thought",)  # methods to which thought length and lookahead mean nothing: one arm each
GRAPH = Path("dvc.yaml")
CODE = ("stages/", "pipeline/", "tasks")


@dataclass
class Grid:
    """What is combined, and what all arms share (words for `python -m pipeline.preset`)."""

    methods: list[str] = field(default_factory=list)
    thought_tokens: list[int] = field(default_factory=list)
    lookaheads: list[int] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    options: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Arm:
    """One experiment: a method at a thought length K and a lookahead A (both None where it knows neither)."""

    name: str
    method: str
    thought_tokens: int | None
    lookahead: int | None
    params: dict[str, object]  # by dotted name
    baseline: str  # the commit that the experiment starts from


def read_grid(path: Path) -> Grid:
    """The grid in ``path``. Raises UserError, in one line, for a file that is none or leaves an axis empty."""
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
    """Every arm of the grid, on the commit and code of this moment. Raises UserError for what cannot be run."""
    baseline = git("rev-parse", "HEAD")
    if git("rev-parse", "--is-shallow-repository") == "true":
        raise UserError("this clone has no history, in which DVC loses experiments: `git fetch --unshallow`")
    code = _code_digest()
    return [_arm(grid, baseline, code, *point) for point in _points(grid)]


def git(*words: str) -> str:
    """What git prints. Raises UserError where it fails."""
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"experiments need a git repository with a commit: {done.stderr}")
    return done.stdout.strip()


def _points(grid: Grid) -> Iterator[tuple[str, int | None, int | None]]:
    for method in grid.methods:
        if method in WITHOUT_THOUGHTS:
            yield method, None, None
        else:
            yield from product([method], grid.thought_tokens, grid.lookaheads)


def _arm(grid: Grid, baseline: str, code: str, method: str, thought_tokens: int | None, lookahead: int | None) -> Arm:
    """Its first seed is the run's own, the others are baselines of the same method: `compare` takes all together."""
    seed, *others = grid.seeds
    values: dict[str, object] = {"train.method": method, "train.seed": seed}
    values |= {"baseline.methods": [method] if others else [], "baseline.seeds": others or [seed]}
    if thought_tokens is not None:
        values |= {"train.thought_tokens": thought_tokens, "train.lookahead": lookahead}
    changes = preset.options([*grid.options, *preset.words(values)])
    sizes = "" if thought_tokens is None else f"-k{thought_tokens}-a{lookahead}"
    name = f"{method}{sizes}-{_fingerprint(baseline, code, changes)}"
    return Arm(name, method, thought_tokens, lookahead, changes, baseline)


def _fingerprint(baseline: str, code: str, changes: dict[str, object]) -> str:
    """Eight digits for commit, code and parameters: experiments that share a name share their results."""
    return hashlib.sha256(f"{baseline}\n{code}\n{params.load(changes=changes)}".encode()).hexdigest()[:8]


def _code_digest() -> str:
    """Of the graph and of every file of code that a stage depends on."""
    digest = hashlib.sha256()
    stages = yaml.safe_load(GRAPH.read_text(encoding="utf-8"))["stages"].values()
    code = sorted({dep for stage in stages for dep in stage["deps"] if dep.startswith(CODE)})
    tracked = git("ls-files", "-z", "--", *code).split("\0")
    for path in (GRAPH, *map(Path, sorted(filter(None, tracked)))):
        if path.is_file():
            digest.update(f"\n{path}\n".encode() + path.read_bytes())
    return digest.hexdigest()
