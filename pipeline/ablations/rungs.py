"""Rungs: arms on a real model whose question is whether what is thought matters, and the table that compares them.

A rung is a file of `ladder/`. Each of its arms is a DVC experiment of one method and one seed. What the comparison
needs of a finished arm is kept in git (results/real/RUNG/METHOD-SEED), so that nobody has to train it again.
"""

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from dvc.api import DVCFileSystem

from pipeline import params, typed_yaml
from pipeline.ablations.grid import PLACES, Arm, digest, git
from pipeline.errors import UserError
from pipeline.evaluation.arms import pairs, read_arms
from pipeline.evaluation.compare import better
from pipeline.evaluation.names import BEFORE, CONTINUED, LOSSES, RUN
from pipeline.evaluation.statistics import SHARE, Totals, asked, mean, mean_interval
from pipeline.files import replacing, write_json, write_table
from pipeline.params import METHODS, Arms
from pipeline.report.reading import read_json

TOTALS, ABOUT = "totals.parquet", "about.json"
# copies of an arm's files, for readers: its parameters, the training log, held-out losses, what its thoughts said, and
# what they gain where a rule says to think
PARAMS = "params.yaml"
COPIES = ("train/{run}/steps.csv", "train/{run}/heldout.csv", "perplexity/{run}/tables/extremes.csv")
COPIES += ("perplexity/{run}/tables/metrics.json", "perplexity/{run}/tables/choices.csv")
ELSEWHERE = (*PLACES, *(place.replace(".path", ".revision") for place in PLACES))  # what differs between machines
COLUMNS = ["rung", "method", "seed", "measure", "n", "value", "difference_to", "difference", "low", "high", "weights"]
EVERY = "all"  # seeds


@dataclass
class Rung:
    """``arms``: METHOD-SEED, in the order in which they are run. ``options``: words for `python -m pipeline.preset`."""

    arms: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)


def read_rung(path: Path) -> Rung:
    """Read a rung's file. Raises UserError if it is missing or malformed, or names arms that cannot be."""
    rung = typed_yaml.load(path, Rung)
    if not rung.arms or len(set(rung.arms)) < len(rung.arms):
        raise UserError(f"{path}: arms is {rung.arms}, but must name at least one and none twice")
    for arm in rung.arms:
        method, _, seed = arm.rpartition("-")
        if method not in METHODS or not re.fullmatch("0|[1-9][0-9]*", seed):
            raise UserError(f"{path}: {arm} is no arm: write METHOD-SEED, such as {RUN}-1")
    return rung


def settings_of(arm: Arm) -> str:
    """A digest of the arm's options, wherever its model and data are: the weights have a name of their own.

    Nor does a revision count, as a folder has none.
    """
    return digest(*(f"{name}={value}" for name, value in sorted(arm.params.items()) if name not in ELSEWHERE))


def changed(arm: Arm, folder: Path) -> list[str]:
    """The parameters that had other values when the arm was kept in ``folder``, by its params.yaml if it has one."""
    if not (folder / PARAMS).exists():
        return []
    every = replace(params.load(changes=arm.params), report=None, plan=None)  # which change no figure
    then, now = params.flat(typed_yaml.read(folder / PARAMS)), params.flat(asdict(every))
    return [name for name in then if name in now and name not in ELSEWHERE and now[name] != then[name]]


def keep(arm: Arm, run: str, settings: Mapping[str, str], rung: Path) -> None:
    """Write what the comparison needs of a finished arm, ``run`` (METHOD-SEED), and its tables to ``rung``/RUN.

    ``settings``: those of the rung's arms, by run. Raises UserError if others have been kept that began with other
    weights, with which it cannot be compared.
    """
    files = DVCFileSystem(rev=git("rev-parse", arm.ref))
    method, _, seed = run.rpartition("-")
    with tempfile.TemporaryDirectory() as scratch, replacing(rung / run) as folder:
        here = Path(scratch)
        files.get_file(f"results/train/{run}/metrics.json", str(here / "metrics.json"))
        weights = read_json(here / "metrics.json")["base_weights"]
        for other in kept(rung, {name: its for name, its in settings.items() if name != run}):
            if (theirs := read_json(rung / other / ABOUT)["weights"]) != weights:
                what = f"{run} began with the weights {weights} and {other}, which {rung} has, with {theirs}"
                raise UserError(f"{what}: remove the folders of those, or give --model the model that they began with")
        for stage, name in (("evaluate", "predictions.parquet"), ("perplexity", "tokens.parquet")):
            (here / stage / run).mkdir(parents=True)
            files.get_file(f"results/{stage}/{run}/{name}", str(here / stage / run / name))
        folder.mkdir()
        for source in (PARAMS, *(f"results/{pattern.format(run=run)}" for pattern in COPIES)):
            if files.exists(source):
                files.get_file(source, str(folder / Path(source).name))
        found = read_arms(Arms([method], [int(seed)]), here / "evaluate", here / "perplexity")
        write_table(folder / TOTALS, totals_table(found))
        write_json(folder / ABOUT, {"settings": settings[run], "weights": weights, "commit": arm.baseline})


def totals_table(found: Mapping[tuple[str, str], Mapping[str, Totals]]) -> pd.DataFrame:
    """What `read_arms` has found of one seed, a row for each task, measure, arm and group."""
    tables = [
        pd.DataFrame({"task": task, "measure": measure, "arm": name, "sum": side.sums[0], "weight": side.weights[0]})
        for (task, measure), by_arm in found.items()
        for name, side in by_arm.items()
    ]
    return pd.concat(tables, ignore_index=True)


def kept(folder: Path, settings: Mapping[str, str]) -> list[str]:
    """The arms METHOD-SEED in ``folder`` that were kept with the ``settings`` that they have now."""
    there = (run for run in settings if (folder / run / ABOUT).exists())
    return [run for run in there if read_json(folder / run / ABOUT)["settings"] == settings[run]]


def comparison(rung: str, folder: Path, runs: Sequence[str]) -> pd.DataFrame:
    """The rows (`COLUMNS`) of a rung whose finished arms, METHOD-SEED, are ``runs`` in ``folder``.

    An arm is a method by itself, or with something else in its thoughts' place (METHOD/WAY). It has a row for itself
    and one against each arm that it is compared with, by how much it is better; of each seed that both have and of all
    of these (`EVERY`). low and high: the 95 % interval of the difference, or of the value where there is none. Raises
    UserError for arms that were not asked the same questions.
    """
    sides: dict[tuple[str, str], dict[str, dict[int, Totals]]] = {}
    weights = set()
    for run in runs:
        seed = int(run.rpartition("-")[2])
        weights.add(read_json(folder / run / ABOUT)["weights"])
        table = pd.read_parquet(folder / run / TOTALS)
        for (task, measure, arm), rows in table.groupby(["task", "measure", "arm"], sort=False):
            side = Totals(rows["sum"].to_numpy()[None], rows["weight"].to_numpy()[None])
            sides.setdefault((task, measure), {}).setdefault(arm, {})[seed] = side
    if len(weights) > 1:
        raise UserError(f"{folder}: arms of {len(weights)} base models: remove the folders of one of them")
    rows = []
    for (task, measure), by_arm in sides.items():
        mains = [arm for arm in by_arm if "/" not in arm]
        wanted = [*pairs(RUN, list(by_arm)), *((arm, CONTINUED) for arm in mains)]
        wanted = [pair for pair in dict.fromkeys(wanted) if pair[0] != pair[1] and {*pair} <= {*by_arm}]
        for arm, other in [*((arm, None) for arm in by_arm), *wanted]:
            one, two = by_arm[arm], by_arm.get(other)
            if other == BEFORE:  # it has no seeds
                two = dict.fromkeys(one, next(iter(two.values())))
            seeds = [seed for seed in one if two is None or seed in two]
            for name, some in [*((seed, [seed]) for seed in seeds), *([(EVERY, seeds)] if len(seeds) > 1 else [])]:
                mine = _joined(one, some)
                row = {"rung": rung, "method": arm, "seed": name, "measure": f"{task} {measure}"}
                row |= {"n": round(mine.weights.sum(-1).mean()), "value": mean(mine)}
                if two is None:
                    low, high = mean_interval(mine, None if measure in LOSSES else SHARE)
                else:
                    theirs = _joined(two, some)
                    if theirs.weights.shape != mine.weights.shape or (theirs.weights != mine.weights).any():
                        raise UserError(f"{folder}: {arm} and {other} were not asked the same of {task}: remove one")
                    found = better(mine, theirs, measure)
                    low, high = found.low, found.high
                    row |= {"difference_to": other, "difference": found.value}
                rows.append(row | {"low": low, "high": high, "weights": next(iter(weights))})
    return pd.DataFrame(rows, columns=COLUMNS)


def _joined(by_seed: Mapping[int, Totals], seeds: Sequence[int]) -> Totals:
    """The totals (S, G) of these seeds, without the groups that none of them was asked about."""
    return asked(Totals(*(np.concatenate(parts) for parts in zip(*(by_seed[seed] for seed in seeds), strict=True))))
