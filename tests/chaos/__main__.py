"""Kill the pipeline again and again, and see that nothing but time is lost: `python -m tests.chaos`.

In a throw-away clone of the last commit, with a DVC cache of its own, `dvc repro` is killed at random moments of
pretraining, training and evaluation and run again, until the kills are used up. Then its dvc.lock has to be that of an
uninterrupted run. Writes results/chaos.md; the exit code is 1 if anything is not as it should be.
"""

import argparse
import math
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline import errors
from pipeline.errors import UserError
from pipeline.files import new_path
from tests.chaos.compare import LOCK, differences, in_words, is_stale, surprises
from tests.chaos.kills import begin, called
from tests.chaos.run import run, went_on_from

RESULTS = Path("results/chaos.md")


def main() -> None:
    options = _options()
    _check(options.reference)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    reference = options.reference or _reference(folder / "reference")
    project = _clone(folder / "killed")
    began = time.monotonic()
    kills = run(project, options.kills, options.seed, options.longest)
    about = _about(project, options.seed, time.monotonic() - began)
    went_on = [went_on_from(project, number, one.stage) for number, one in enumerate(kills, start=1)]
    problems = [*differences(project, reference), *surprises(kills, went_on)]
    with new_path(RESULTS) as part:
        part.write_text(in_words(kills, went_on, problems, about), encoding="utf-8")
    if problems:
        raise UserError(f"{'; '.join(problems)}: see {RESULTS} and {folder}")
    shutil.rmtree(folder)
    print(f"{len(kills)} kills, and the same end as without: {RESULTS}")


def _about(project: Path, seed: int, seconds: float) -> str:
    commit = called(project, "git", "rev-parse", "--short", "HEAD").strip()
    words = " ".join(["python -m tests.chaos", *sys.argv[1:]])
    return f"`{words}`: commit {commit}, seed {seed}, {seconds / 60:.1f} minutes."


def _check(reference: Path | None) -> None:
    """Raise UserError where this folder has no commit to clone, or ``reference`` is no clone with a run."""
    last = ["git", "rev-parse", "--verify", "--quiet", "HEAD"]
    if not Path(".git").exists() or subprocess.run(last, stdout=subprocess.DEVNULL).returncode:
        raise UserError("this folder is no git repository with a commit: the kills are in a clone of the last one")
    if reference is not None and not (reference / LOCK).is_file():
        raise UserError(f"--reference is {reference}, but there is no {LOCK} in it: run `dvc repro` there first")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=_count, default=20, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="of their moments and ways (default: %(default)s)")
    parser.add_argument(
        "--longest", type=_seconds, default=60, help="seconds that a stage gets at most (default: %(default)s)"
    )
    parser.add_argument(
        "--reference",
        type=Path,
        help="a clone with an uninterrupted run (.: this one, where dvc.lock is of another machine)",
    )
    return parser.parse_args()


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{value} is not a number above 0")
    return value


def _clone(folder: Path) -> Path:
    subprocess.run(["git", "clone", "--quiet", ".", folder], check=True)
    return folder


def _reference(folder: Path) -> Path:
    """A clone with an uninterrupted run's dvc.lock: the committed one, unless code or parameters have changed since."""
    if is_stale(_clone(folder)):
        print(f"dvc.lock is stale: an uninterrupted run first, in {folder}", flush=True)
        log = folder.with_suffix(".log")
        if begin(folder, log).wait():
            raise UserError(f"the uninterrupted run failed: see {log}")
    return folder


if __name__ == "__main__":
    errors.run(main)
