"""Kill the pipeline again and again, and see that nothing but time is lost: `python -m tests.chaos`.

Two throw-away clones of the last commit run a small project, each with its own DVC cache: one without interruption; in
the other, `dvc repro` is killed at random moments and run again until the kills are used up. Both must end with the
same dvc.lock. Writes results/chaos.md; the exit code is 1 if anything is not as it should be.
"""

import argparse
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from random import Random

import yaml

from pipeline import errors
from pipeline.bench.measure import machine
from pipeline.errors import UserError
from pipeline.files import replacing
from pipeline.preset import options as preset
from tests.chaos.kills import NO_STAGE, NOTHING, Kill, begin, call, checkpoint_often, kill, running
from tests.stage_runner import set_params

RESULTS = Path("results/chaos.md")
LONGEST = 12  # seconds from a stage's beginning to its kill: 4 to 6 load libraries, then it works for 8 to 20 in all
SHARES = {"base_model": 5, "train": 6, "evaluate": 4, "chain_of_thought": 3, "perplexity": 2}
SMALL = {  # on top of the smoke preset
    "corpus.microworld.pretrain_documents": 4000,
    "corpus.microworld.train_documents": 720,
    "corpus.microworld.heldout_documents": 2000,
    "corpus.microworld.questions": 2500,
    "base_model.scratch.steps": 750,
    "train.steps": 250,
    "train.evaluation_steps": 125,
    "arms.methods": ["quiet_star", "pause"],
    "evaluate.questions": None,
    "chain_of_thought.questions": 80,
    "chain_of_thought.samples": 6,
    "chain_of_thought.new_tokens": 48,
    "perplexity.texts": 2000,
}
RESUMED = re.compile(r"(?:going on|[Rr]esum)[^\r\n]*?(?:(\d+ rows)|step-(\d+))")
PAGE = """# Killed and run again

{about} Machine: {where}.
Checkpoints come more often than in the shipped code, which lets 10 s pass between two (`LEAST_SECONDS`), as these small
stages train for less than that between two kills.

**{kills} kills: {verdict}.**

| kill | stage | seconds into it | way | it had | run again, it resumed from |
| ---: | --- | ---: | --- | --- | --- |"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="of their moments and ways (default: %(default)s)")
    options = parser.parse_args()
    commit = call(Path(), "git", "rev-parse", "--short", "HEAD").strip()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    reference, project = small_clone(folder / "reference"), small_clone(folder / "killed")
    if begin(reference, folder / "reference.log").wait():
        raise UserError(f"the uninterrupted run failed: see {folder / 'reference.log'}")
    kills = run(project, options.kills, Random(options.seed))
    problems = [*differences(project, reference), *surprises(kills)]
    about = f"`python -m tests.chaos --kills {options.kills} --seed {options.seed}`: commit {commit}."
    with replacing(RESULTS) as part:
        part.write_text(in_words(kills, problems, about), encoding="utf-8")
    if problems:
        raise UserError(f"{'; '.join(problems)}: see {RESULTS} and {folder}")
    shutil.rmtree(folder)
    print(f"{len(kills)} kills, and the same end as without: {RESULTS}")


def small_clone(folder: Path) -> Path:
    """A clone of the last commit with small parameters and frequent checkpoints."""
    call(Path(), "git", "clone", "--quiet", ".", str(folder))
    set_params(folder, preset.options(["scale=smoke"]) | SMALL)
    checkpoint_often(folder)
    call(folder, "git", "commit", "--quiet", "--all", "--message", "small")
    return folder


def run(
    project: Path, kills: int, random: Random, shares: Mapping[str, int] = SHARES, longest: float = LONGEST
) -> list[Kill]:
    """Run `dvc repro`, kill it and run it again until the kills are used up; then let it run to its end.

    Each stage gets its share of the kills, and those that the stages before it were too quick for; there are fewer
    kills if the last stages are too quick. Raises UserError if a run that nobody has killed fails.
    """
    done, seen = [], set()
    while True:
        log = project.with_name(f"{len(done)}.log")
        dvc, one = begin(project, log), None
        while dvc.poll() is None and one is None:
            stage, _ = running(dvc)
            seen.add(stage)
            due = kills * sum(shares.get(name, 0) for name in seen) / sum(shares.values())
            if stage in shares and len(done) < round(due):
                one = kill(project, dvc, random, longest)
            time.sleep(0.1)
        text = log.read_text(errors="replace")
        stages = re.findall(r"Running stage '(\w+)(.*?)(?=Running stage|\Z)", text, flags=re.DOTALL)
        seen.update(name for name, _ in stages)
        if done:  # what the stage killed last printed in this run
            printed = dict(stages).get(done[-1].stage, "")
            if resumed := RESUMED.search(printed):
                done[-1].resumed_from = resumed[1] or f"step {resumed[2]}"
            elif one is None or done[-1].stage in dict(stages[:-1]):  # it was not killed before it said so
                done[-1].resumed_from = NOTHING
        if one is None:
            break
        done.append(one)
        print(f"kill {len(done)}: {one}", flush=True)
    if dvc.returncode:
        raise UserError(f"`dvc repro` failed after {len(done)} of {kills} kills: see {log}")
    return done


def differences(project: Path, reference: Path) -> Iterator[str]:
    """What differs from an uninterrupted run, or is left over."""
    ours, theirs = (yaml.safe_load((folder / "dvc.lock").read_text())["stages"] for folder in (project, reference))
    yield from (f"dvc.lock differs in {name}" for name in sorted(ours | theirs) if ours.get(name) != theirs.get(name))
    changed, expected = (call(folder, "git", "diff", "--name-only") for folder in (project, reference))
    if changed != expected:
        yield f"changed are {changed.split()}, not {expected.split()}"
    over = [file for file in (project / ".resume").rglob("*") if file.is_file()]
    over += [part for part in sorted(project.rglob("*.part*")) if ".dvc" not in part.parts]
    untracked = (call(folder, "git", "ls-files", "-o", "--exclude-standard").split() for folder in (project, reference))
    over += [project / name for name in sorted(set.difference(*map(set, untracked)))]
    yield from (f"{path.relative_to(project)} is left over" for path in over)


def surprises(kills: Sequence[Kill]) -> Iterator[str]:
    """Stages that lost a checkpoint or rows, and processes that outlived a kill."""
    for number, (one, then) in enumerate(zip_longest(kills, kills[1:]), start=1):
        if one.orphans:
            yield f"kill {number} left {one.orphans} processes running"
        if one.resumed_from and one.resumed_from != one.left and one.stage != NO_STAGE:
            yield f"after kill {number} {one.stage} had {one.left} but resumed from {one.resumed_from}"
        if not one.resumed_from and then and then.stage == one.stage != NO_STAGE:
            before, after = (int("0" + re.sub(r"\D", "", some.left)) for some in (one, then))
            if after < before:
                yield f"after kill {number} {one.stage} had {one.left} and, killed again, {then.left}"


def in_words(kills: Sequence[Kill], problems: Sequence[str], about: str) -> str:
    """The page: what was done, how it ended, and one row per kill."""
    verdict = "; ".join(problems) or "dvc.lock equals that of an uninterrupted run, hash by hash; nothing is left over"
    where = ", ".join(value if name == "device_name" else f"{name} {value}" for name, value in machine("cpu").items())
    lines = [PAGE.format(about=about, where=where, kills=len(kills), verdict=verdict)]
    for number, one in enumerate(kills, start=1):
        lines.append(f"| {number} | {one.stage} | {one.seconds:.1f} | {one.way} | {one.left} | {one.resumed_from} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    errors.run(main)
