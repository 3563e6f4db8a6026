"""A run of the pipeline that is killed until the kills are used up, and what its stages said to that."""

import re
import time
from pathlib import Path
from random import Random

from pipeline.chaos.kills import Kill, begin, called, kill, running
from pipeline.errors import UserError

# how many kills a stage gets for one of another: about as its share of the default run's time
WEIGHTS = {"base_model": 7, "train": 4, "baseline": 2, "evaluate": 2, "evaluate_baseline": 1}
WEIGHTS |= {"chain_of_thought": 1, "perplexity": 1}
WENT_ON = re.compile(r"going on from (?:(\d+ rows)|\S*/step-(\d+))")


def run(project: Path, kills: int, seed: int, longest: float) -> list[Kill]:
    """`dvc repro`, killed and run again until the kills are used up, and then run to its end.

    A kill comes ``longest`` seconds at most after the stage began that it is for. A stage gets its share of them, and
    those that the stages before it were too quick for. Raises UserError where
    a run that nobody has killed fails.
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
        one = kill(project, dvc, random, longest)
        if one is None:
            break
        done.append(one)
        print(f"kill {len(done)}: {one}", flush=True)
    if dvc.returncode:
        raise UserError(f"`dvc repro` failed after {len(done)} kills: see {_log(project, len(done))}")
    return done


def went_on_from(project: Path, number: int, stage: str) -> str:
    """What ``stage`` said, after so many kills, that it goes on from; empty where it said nothing."""
    text = _log(project, number).read_text(errors="replace")
    _, _, own = text.partition(f"Running stage '{stage}'")
    found = WENT_ON.search(own.partition("Running stage")[0])
    return "" if found is None else found[1] or f"step {found[2]}"


def _log(project: Path, number: int) -> Path:
    return project.with_name(f"{number}.log")


def _weight(stages: set[str]) -> int:
    """Of all these stages, those of a matrix (``baseline@pause-1``) among them."""
    return sum(WEIGHTS.get(stage.partition("@")[0], 0) for stage in stages)
