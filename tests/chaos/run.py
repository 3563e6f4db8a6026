"""A run of the pipeline that is killed until the kills are used up, and what its stages said to that."""

import re
import time
from pathlib import Path
from random import Random

from pipeline.errors import UserError
from tests.chaos.kills import Kill, begin, called, kill, running

# how many kills a stage gets for one of another, and within how many seconds of its beginning: about as its share of
# the default run's time, and as long as it takes on two cores
KILLS = {"base_model": (7, 60), "train": (4, 45), "baseline": (2, 40), "evaluate": (2, 9), "evaluate_baseline": (1, 8)}
KILLS |= {"chain_of_thought": (1, 12), "perplexity": (1, 3)}  # the last one: all that are left
STAGE = re.compile("Running stage '(.*)'")  # some run while a kill is waited for
WENT_ON = re.compile(r"going on from (?:(\d+ rows)|\S*/step-(\d+))")


def run(project: Path, kills: int, seed: int, longest: float) -> list[Kill]:
    """`dvc repro`, killed and run again until the kills are used up, and then run to its end.

    A kill comes at most so long after a stage began as `KILLS` says, and ``longest`` seconds. A stage gets its share of
    them, and those that the stages before it were too quick for. Raises UserError where a run that nobody has killed
    fails, or ends before the kills are used up.
    """
    random, seen, done = Random(seed), set(), []
    share = kills / _weight(set(called(project, "dvc", "stage", "list", "--name-only").split()))
    while True:
        dvc = begin(project, _log(project, len(done)))
        while dvc.poll() is None:
            stage, _ = running(dvc)
            seen.add(stage)
            if _weight({stage}) and round(share * _weight(seen)) > len(done):
                break
            time.sleep(0.1)
        one = kill(project, dvc, random, min(longest, _kills(stage)[1]))
        seen.update(STAGE.findall(_log(project, len(done)).read_text(errors="replace")))
        if one is None:
            break
        done.append(one)
        print(f"kill {len(done)}: {one}", flush=True)
    if dvc.returncode or len(done) < kills:
        ended = "failed" if dvc.returncode else "ended"
        raise UserError(f"`dvc repro` {ended} after {len(done)} of {kills} kills: see {_log(project, len(done))}")
    return done


def went_on_from(project: Path, number: int, stage: str) -> str:
    """What ``stage`` said, after so many kills, that it goes on from; empty where it said nothing."""
    text = _log(project, number).read_text(errors="replace")
    _, _, own = text.partition(f"Running stage '{stage}'")
    found = WENT_ON.search(own.partition("Running stage")[0])
    return "" if found is None else found[1] or f"step {found[2]}"


def _log(project: Path, number: int) -> Path:
    return project.with_name(f"{number}.log")


def _kills(stage: str) -> tuple[int, float]:
    """Of a stage in `KILLS`, or of one of a matrix (``baseline@pause-1``)."""
    return KILLS.get(stage.partition("@")[0], (0, 0.0))


def _weight(stages: set[str]) -> int:
    return sum(_kills(stage)[0] for stage in stages)
