"""What came out of a run that was killed, beside one that was not."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from pipeline.bench.machine import machine
from pipeline.resume import FOLDER
from tests.chaos.kills import NO_STAGE, NOTHING, Kill, called

LOCK = "dvc.lock"
OUTS = ("data", "models", "results")


def is_stale(clone: Path) -> bool:
    """Whether code or parameters have changed since the clone's dvc.lock was made.

    Not what stages read of each other, which a clone has in part or not at all.
    """
    told = json.loads(called(clone, "dvc", "status", "--json"))
    changes = [change for stage in told.values() for change in stage]
    deps = [change.get("changed deps", {}) for change in changes if isinstance(change, dict)]
    ours = {path for some in deps for path, how in some.items() if how != "deleted" and Path(path).parts[0] not in OUTS}
    return bool(ours) or "changed command" in changes


def differences(project: Path, reference: Path) -> Iterator[str]:
    """What is not as in the folder of an uninterrupted run, or is left over."""
    ours, theirs = (yaml.safe_load((folder / LOCK).read_text())["stages"] for folder in (project, reference))
    yield from (f"{LOCK} differs in {name}" for name in sorted(ours | theirs) if ours.get(name) != theirs.get(name))
    changed, expected = (called(folder, "git", "diff", "--name-only") for folder in (project, reference))
    if changed != expected:
        yield f"changed are {changed.split()}, not {expected.split()}"
    left = [file for file in (project / FOLDER).rglob("*") if file.is_file()]
    left += [part for part in project.rglob("*.part") if ".dvc" not in part.parts]
    left += [project / name for name in called(project, "git", "ls-files", "--others", "--exclude-standard").split()]
    yield from (f"{path.relative_to(project)} is left over" for path in left)


def surprises(kills: Sequence[Kill], went_on: Sequence[str]) -> Iterator[str]:
    """Stages that lost more than they had to, or did not die."""
    yield from lost_unseen(kills, went_on)
    after = [kill.stage for kill in kills[1:]] + [""]
    for number, (kill, said, then) in enumerate(zip(kills, went_on, after, strict=True), start=1):
        if kill.orphans:
            yield f"kill {number} left {kill.orphans} processes running"
        ran = said or kill.stage != NO_STAGE and then not in (kill.stage, NO_STAGE)  # as far as it would say so
        if ran and (said or NOTHING) != kill.left:
            yield f"after kill {number} {kill.stage} had {kill.left} but went on from {said or NOTHING}"


def lost_unseen(kills: Sequence[Kill], went_on: Sequence[str]) -> Iterator[str]:
    """Stages that were killed again before they had said what they go on from, and then had less than before."""
    pairs = zip(kills, kills[1:], went_on, strict=False)
    for number, (kill, then, said) in enumerate(pairs, start=1):
        if not said and kill.stage == then.stage and _amount(then.left) < _amount(kill.left):
            yield f"after kill {number} {kill.stage} had {kill.left} and, killed again, {then.left}"


def _amount(left: str) -> int:
    """Of what a stage can go on from (`kills.left`): its checkpoint's step, or how many rows."""
    return int(next(iter(re.findall(r"\d+", left)), 0))


def in_words(kills: Sequence[Kill], went_on: Sequence[str], problems: Sequence[str], about: str) -> str:
    """A page: what was done, how it ended, a row a kill."""
    verdict = "; ".join(problems) or "dvc.lock equals that of an uninterrupted run, hash by hash; nothing is left over"
    where = ", ".join(
        str(value) if name == "device_name" else f"{name} {value}" for name, value in machine("cpu").items()
    )
    lines = ["# Killed and run again", "", f"{about} Machine: {where}.", "", f"**{len(kills)} kills: {verdict}.**", ""]
    lines += ["| kill | stage | seconds into it | way | it had | run again, it went on from |"]
    lines += ["| ---: | --- | ---: | --- | --- | --- |"]
    for number, (kill, said) in enumerate(zip(kills, went_on, strict=True), start=1):
        lines.append(f"| {number} | {kill.stage} | {kill.seconds:.1f} | {kill.way} | {kill.left} | {said} |")
    return "\n".join(lines) + "\n"
