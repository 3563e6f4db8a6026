"""The grid in a parameters file, and the arms that it asks for."""

import hashlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from pipeline import params, preset
from pipeline.errors import UserError

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


def read_grid(path: Path) -> Grid:
    """The grid in ``path``. Raises UserError, in one line, for a file that is none or leaves an axis empty."""
    try:
        grid = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Grid), OmegaConf.load(path)))
    except (OmegaConfBaseException, YAMLError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a grid: {str(error).splitlines()[0]}") from error
    for axis in ("methods", "thought_tokens", "lookaheads", "seeds"):
        values = getattr(grid, axis)
        if not values or len(set(values)) < len(values):
            raise UserError(f"{path}: {axis} is {values}, but must name at least one and none twice")
    return grid


def arms(grid: Grid) -> list[Arm]:
    """Every arm of the grid. Raises UserError for parameters that no run can have."""
    return [_arm(grid, *point) for point in _points(grid)]


def _points(grid: Grid) -> Iterator[tuple[str, int | None, int | None]]:
    for method in grid.methods:
        if method in WITHOUT_THOUGHTS:
            yield method, None, None
        else:
            yield from product([method], grid.thought_tokens, grid.lookaheads)


def _arm(grid: Grid, method: str, thought_tokens: int | None, lookahead: int | None) -> Arm:
    """Its first seed is the run's own, the others are baselines of the same method: `compare` takes all together."""
    seed, *others = grid.seeds
    values: dict[str, object] = {"train.method": method, "train.seed": seed}
    values |= {"baseline.methods": [method] if others else [], "baseline.seeds": others or [seed]}
    if thought_tokens is not None:
        values |= {"train.thought_tokens": thought_tokens, "train.lookahead": lookahead}
    changes = preset.options([*grid.options, *preset.words(values)])
    sizes = "" if thought_tokens is None else f"-k{thought_tokens}-a{lookahead}"
    return Arm(f"{method}{sizes}-{_fingerprint(changes)}", method, thought_tokens, lookahead, changes)


def _fingerprint(changes: dict[str, object]) -> str:
    """Eight digits for the parameters, the graph and the code: experiments that share a name share their results."""
    digest = hashlib.sha256(repr(params.load(changes=changes)).encode())
    stages = yaml.safe_load(GRAPH.read_text(encoding="utf-8"))["stages"].values()
    code = sorted({dep for stage in stages for dep in stage["deps"] if dep.startswith(CODE)})
    listed = subprocess.run(["git", "ls-files", "-z", "--", *code], capture_output=True, text=True, check=False)
    if listed.returncode:
        raise UserError(f"this is no git repository, which experiments need: {listed.stderr}")
    for path in (GRAPH, *map(Path, sorted(filter(None, listed.stdout.split("\0"))))):
        if path.is_file():
            digest.update(f"\n{path}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:8]
