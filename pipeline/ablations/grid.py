"""The grid file, and the arms that it asks for."""

import hashlib
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from operator import attrgetter
from pathlib import Path

import yaml

from pipeline import params, typed_yaml
from pipeline.errors import UserError
from pipeline.files import check_model_folder, looks_local
from pipeline.preset import options as preset

WITHOUT_SIZES = ("no_thought", "before")  # methods that have neither thought length nor lookahead: one arm
ROOT = "tasks.root"
# parameters that may be folders outside the project
PLACES = ("base_model.path", ROOT, *(f"corpus.hub.{split}.path" for split in ("pretrain", "train", "heldout")))


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
    """One experiment. ``about``: what a table says of it (the method, its thought length and lookahead, ...)."""

    name: str
    about: Mapping[str, object]
    params: dict[str, object]  # by dotted name
    settings: str  # a digest of all parameters but report's and plan's, whatever the code
    baseline: str  # the commit that the experiment starts from
    snapshot: str  # a commit of the workspace's tracked files; the baseline itself if nothing has changed
    target: str = "compare"  # the stage that it runs, with all that this needs

    @property
    def ref(self) -> str:
        """The git reference that DVC gives the experiment; it is there once the arm is done."""
        return f"refs/exps/{self.baseline[:2]}/{self.baseline[2:]}/{self.name}"


class Workspace:
    """The workspace's code as it is now, which arms run."""

    def __init__(self):
        """Raises UserError outside a git repository, and in a shallow clone."""
        try:
            self.baseline = git("rev-parse", "--verify", "HEAD")
        except UserError as error:
            raise UserError(f"experiments need a git repository with a commit: {error}") from error
        if git("rev-parse", "--is-shallow-repository") == "true":
            raise UserError("this clone is shallow, but experiments need its history: `git fetch --unshallow`")
        git("status", "--porcelain")  # refreshes the index: `stash create` fails on files that only have another date
        # creates a commit; leaves workspace, index and stash alone
        self.snapshot = git("stash", "create") or self.baseline
        graph = yaml.safe_load(git("show", f"{self.snapshot}:./dvc.yaml"))
        deps = {dep for stage in graph["stages"].values() for dep in stage.get("deps", ())}
        code = sorted(dep for dep in deps if dep.startswith(("stages/", "pipeline/", "tasks")))
        self._hashes = git("ls-tree", "-r", self.snapshot, "--", "dvc.yaml", *code)

    def arm(self, label: str, about: Mapping[str, object], options: list[str], target: str = "compare") -> Arm:
        """The arm with these options, as for `python -m pipeline.preset`.

        Its name ends in eight digits for commit, code and parameters: arms of one name have the same results.
        Raises UserError for parameters that no run can have.
        """
        changes = preset.options(options)
        changes |= _absolute(params.load(changes=changes))
        every = params.load(changes=changes)
        name = f"{label}-{digest(self.baseline, self._hashes, str(every))}"
        settings = digest(str(replace(every, report=None, plan=None)))  # which change no figure
        return Arm(name, about, changes, settings, self.baseline, self.snapshot, target)


def _absolute(every: params.Params) -> dict[str, str]:
    """The `PLACES` that are relative paths, made absolute: an arm runs in a folder of its own."""
    found = {}
    for place in PLACES:
        path = attrgetter(place)(every)
        if path is None or Path(path).is_absolute():
            continue
        folder = Path(path).expanduser()
        if place == ROOT or looks_local(path) or folder.is_dir():
            found[place] = str(folder.resolve())
    return found


def digest(*texts: str) -> str:
    """Eight digits that stand for these texts."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:8]


def read_grid(path: Path) -> Grid:
    """Read a grid file. Raises UserError if it is missing or malformed, or if an axis is empty or has duplicates."""
    grid = typed_yaml.load(path, Grid)
    for axis in ("methods", "thought_tokens", "lookaheads", "seeds"):
        values = getattr(grid, axis)
        if not values or len(set(values)) < len(values):
            raise UserError(f"{path}: {axis} is {values}, but must name at least one and none twice")
    return grid


def arms(grid: Grid) -> list[Arm]:
    """Every arm of the grid, each with all of its seeds. Raises UserError as `Workspace` and its `arm` do."""
    workspace, found = Workspace(), []
    for method in grid.methods:
        sizes = [(None, None)] if method in WITHOUT_SIZES else product(grid.thought_tokens, grid.lookaheads)
        for length, lookahead in sizes:
            values, label = {"arms.methods": [method], "arms.seeds": grid.seeds}, method
            if length is not None:
                values |= {"train.thought_tokens": length, "train.lookahead": lookahead}
                label += f"-k{length}-a{lookahead}"
            about = {"method": method, "thought_tokens": length, "lookahead": lookahead}
            found.append(workspace.arm(label, about, [*grid.options, *preset.words(values)]))
    if params.load(changes=found[0].params).train.stages:
        raise UserError("train.stages has thought lengths and lookaheads, which a grid combines: make it []")
    return found


def git(*words: str) -> str:
    """Run git and return what it prints, stripped. Raises UserError if it fails."""
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"git {words[0]} failed: {done.stderr}")
    return done.stdout.strip()


def check_given(model: Path | None, root: Path | None) -> None:
    """Raise UserError for a folder of --model or --root that does not exist, before hours of work."""
    if model is not None:
        check_model_folder(model.resolve())
    if root is not None and not root.is_dir():
        raise UserError(f"there are no data sets at {root}: the folder does not exist")
