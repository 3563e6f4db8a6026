"""The results of all arms as sentences and tables, from what the stage compare wrote: it alone computes intervals.

A verdict (a colour, "holds", "fails", "helps", "harmed") is a statement about the interval of one comparison.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from pipeline.evaluation.names import (
    ACCURACY,
    BEFORE,
    GATED,
    HELDOUT,
    LOSS,
    MARKED,
    MEAN,
    NORM,
    OFF,
    PROB,
    SAMPLED,
    SWAPPED,
    UNTRAINED,
)
from pipeline.params import Arms
from pipeline.report.estimates import (
    ABOVE,
    BELOW,
    UNDECIDED,
    Estimate,
    Finding,
    counted,
    decimal,
    interval,
    listed,
    nats,
    p_value,
    percent,
    points,
    whole,
)
from pipeline.report.method import METHODS, Method, arm_name, arm_order
from pipeline.report.reading import read_csv, read_json
from pipeline.training.warnings import HARM

# what the run must be better than: arms without the cause, and its own model with another's thoughts
RIVALS = {
    "no_policy": "training without the policy loss",
    UNTRAINED: "untrained thoughts",
    BEFORE: "the model before training",
    SWAPPED: "the same model with the thoughts of other questions",
}
CONTROLS = (*RIVALS, "shuffled_reward", "trained_swapped")  # methods of which nothing is claimed
UNTESTED = "untested"
STANDS = {
    ABOVE: "answers more questions right than",
    BELOW: "answers fewer questions right than",
    UNDECIDED: "is not shown to differ from",
    UNTESTED: "was not compared with",
}


class Measure(NamedTuple):
    """How a value and a difference of two are written; differences are in ``unit``."""

    title: str
    show: Callable[[float], str]
    change: Callable[[float], str]
    unit: str


MEASURES = {
    ACCURACY: Measure("Accuracy", percent, points, "points"),
    NORM: Measure("Accuracy by log-probabilities a byte", percent, points, "points"),
    PROB: Measure("Probability of the right answer", percent, points, "points"),
    LOSS: Measure("Loss", decimal, nats, "nats a token"),
    MARKED: Measure("Loss, thoughts after the marker alone", decimal, nats, "nats a token"),
}


class Cell(NamedTuple):
    text: str
    verdict: str = ""


@dataclass(frozen=True)
class Table:
    """Each row is as long as ``header``; its first cell names it."""

    title: str
    header: list[str]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Results:
    """The rows of figures.csv by (task, measure, arm) and of comparisons.csv by (task, measure, arm, against)."""

    method: Method
    figures: dict[tuple[str, ...], dict]
    comparisons: dict[tuple[str, ...], dict]
    seeds: pd.DataFrame

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(task for task, *_ in self.figures if task != HELDOUT))

    @property
    def losses(self) -> list[str]:
        """The measures of held-out text."""
        return list(dict.fromkeys(measure for task, measure, _ in self.figures if task == HELDOUT))

    def better(self, *key: str) -> Estimate | None:
        """By how much an arm is better than another: ``key`` is (task, measure, arm, against)."""
        return Estimate.of(self.comparisons[key], "difference", ends="") if key in self.comparisons else None

    def arms(self, tasks: Iterable[str]) -> list[str]:
        """The arms of the main table: each method's own way, the run's other ways, and two more of `untrained`."""
        arms = {arm for task, _, arm in self.figures if task in tasks}
        also = (f"{self.method.key}/", f"{UNTRAINED}/{SAMPLED}", f"{UNTRAINED}/{MEAN}")
        return sorted((arm for arm in arms if "/" not in arm or arm.startswith(also)), key=arm_order)


def read_results(folder: Path, method: Method) -> Results:
    """The files of the stage compare in ``folder``, of whose run's ``method`` the page is; no parts of tasks."""
    about, ends = ("task", "measure", "arm"), ("low", "high")
    figures = read_csv(folder / "figures.csv", *about, "seeds", "n", "groups", "value", *ends)
    columns = (*about, "against", "seeds", "n", "groups", "difference", *ends, "p_value", "share")
    comparisons = read_csv(folder / "comparisons.csv", *columns)
    seeds = read_csv(folder / "seeds.csv", *about, "seed", "value")
    figures = figures[figures["task"].isin(seeds["task"])]  # which has no parts
    return Results(
        method,
        {tuple(row[name] for name in about): row for row in figures.to_dict("records")},
        {tuple(row[name] for name in columns[:4]): row for row in comparisons.to_dict("records")},
        seeds,
    )


def rivals_of(key: str) -> dict[str, str]:
    """The `RIVALS` of the method ``key`` in words, by arm."""
    return {arm if arm in METHODS else f"{key}/{arm}": words for arm, words in RIVALS.items()}


def claims(results: Results) -> list[Finding]:
    """For each task, whether the run beats all `RIVALS`. Empty for one of the `CONTROLS`."""
    method, found = results.method, []
    for task in results.tasks if method.writes and method.key not in CONTROLS else ():
        by_verdict: dict[str, list[str]] = {}
        for rival, words in rivals_of(method.key).items():
            difference, verdict = results.better(task, ACCURACY, method.key, rival), UNTESTED
            if difference is not None:
                verdict, words = difference.verdict, f"{words} ({interval(difference, points)} points)"
            by_verdict.setdefault(verdict, []).append(words)
        parts = [
            f"{stands} {listed(by_verdict[verdict])}" for verdict, stands in STANDS.items() if verdict in by_verdict
        ]
        fails = {BELOW, UNDECIDED} & by_verdict.keys()
        says = "fails" if fails else "is not tested" if UNTESTED in by_verdict else "holds"
        verdict = BELOW if BELOW in by_verdict else ABOVE if says == "holds" else UNDECIDED
        found.append(Finding(f"On {task} the claim {says}: {method.name} {'; it '.join(parts)}.", verdict))
    return found


def harm_findings(results: Results) -> list[Finding]:
    """Whether training harmed the predictions without thoughts on held-out text: at most `HARM` is allowed."""
    method = results.method
    without = f"{method.key}/{OFF}" if method.thinks else method.key
    better = results.better(HELDOUT, LOSS, without, BEFORE)
    if better is None:
        return []
    harm = Estimate(*(0.0 - value for value in (better.mean, better.high, better.low)))
    verdict = ABOVE if harm.high <= HARM else BELOW if harm.low > 0 else UNDECIDED
    words = {ABOVE: "did no harm", BELOW: "harmed the model", UNDECIDED: "is not shown to be harmless"}[verdict]
    text = (
        f"Training {words}: without thoughts the loss on held-out text changed by {interval(harm, nats)} nats a token"
    )
    most = f", so the harm is at most {nats(harm.high)}" if harm.high > 0 else ""
    return [Finding(f"{text}{most} ({HARM} is allowed).", verdict)]


def heldout_findings(results: Results) -> list[Finding]:
    """What thoughts gain on held-out text against the model before training."""
    method, found = results.method, []
    for measure, where in ((LOSS, "before every token"), (MARKED, "after the marker alone")):
        gain = results.better(HELDOUT, measure, method.key, BEFORE)
        if method.thinks and gain is not None:
            words = {ABOVE: "lower than", BELOW: "higher than", UNDECIDED: "not shown to differ from"}[gain.verdict]
            text = f"With {method.many} {where} the loss is {words} that of the model before training: the gain is "
            found.append(Finding(f"{text}{interval(gain, nats)} nats a token.", gain.verdict))
    return found


def arms_table(results: Results, measure: str) -> Table:
    """The value of each arm on each task; the number of questions where it is not the run's."""
    tasks, about = results.tasks, MEASURES[measure]

    def cell(task: str, arm: str) -> Cell:
        row, own = (results.figures.get((task, measure, some)) for some in (arm, results.method.key))
        if row is None:
            return Cell("")
        fewer = f", {whole(row['n'])} questions" if own and row["n"] != own["n"] else ""
        return Cell(interval(Estimate.of(row, "value", ends=""), about.show) + fewer)

    rows = [[Cell(arm_name(arm)), *(cell(task, arm) for task in tasks)] for arm in results.arms(tasks)]
    return Table(about.title, ["arm", *tasks], rows)


def differences_table(results: Results, measure: str) -> Table:
    """By how much the run is better than other methods on each task, with the p-value where there is one."""
    run, about = results.method, MEASURES[measure]
    others = [arm for arm in results.arms(results.tasks) if arm.partition("/")[0] != run.key]
    rows = [
        [Cell(arm_name(arm)), *(_difference(results, task, measure, run.key, arm) for task in results.tasks)]
        for arm in others
    ]
    title = f"{about.title}: {run.name} minus each other arm, {about.unit}"
    return Table(title, ["arm", *results.tasks], rows)


def content_table(results: Results) -> Table:
    """How much better each arm is with its own thoughts than with something else in their place."""
    columns = [(task, ACCURACY) for task in results.tasks] + [(HELDOUT, measure) for measure in results.losses]
    pairs = {(arm, against) for *_, arm, against in results.comparisons if "/" in against}
    pairs = {(arm, against) for arm, against in pairs if arm.partition("/")[0] == against.partition("/")[0]}
    rows = []
    for arm, against in sorted(pairs, key=lambda pair: (arm_order(pair[1]), pair)):
        rows.append([Cell(arm_name(against)), *(_difference(results, *one, arm, against) for one in columns)])
    names = {(HELDOUT, LOSS): "held-out text", (HELDOUT, MARKED): "held-out text, thoughts after the marker alone"}
    units = [f"{names.get((task, measure), task)}, {MEASURES[measure].unit}" for task, measure in columns]
    return Table("Own thoughts minus something else in their place", ["in their place", *units], rows)


def heldout_table(results: Results) -> Table:
    """Each arm's loss with thoughts before every token and, if a text has the marker, with thoughts after it alone."""
    rows, header = [], ["arm"]
    for measure in results.losses:
        header += [MEASURES[measure].title.lower(), "better than before training by"]
    for arm in results.arms([HELDOUT]):
        row = [Cell(arm_name(arm))]
        for measure in results.losses:
            value = Estimate.of(results.figures[HELDOUT, measure, arm], "value", ends="")
            row += [Cell(interval(value, decimal)), _difference(results, HELDOUT, measure, arm, BEFORE)]
        rows.append(row)
    return Table("Loss on held-out text, nats a token", header, rows)


def _difference(results: Results, task: str, measure: str, arm: str, against: str) -> Cell:
    """How much better ``arm`` is, and a p-value or a share of the gain where given; blank if not compared."""
    difference = results.better(task, measure, arm, against)
    if difference is None:
        return Cell("")
    row = results.comparisons[task, measure, arm, against]
    share = "" if pd.isna(row["share"]) else f"{percent(row['share'])} of it"
    shown = interval(difference, MEASURES[measure].change)
    return Cell(", ".join(filter(None, (shown, p_value(row["p_value"]), share))), difference.verdict)


def counts_sentence(results: Results) -> str:
    """How many questions, texts and seeds the figures rest on."""
    parts, seeds = [], 0
    for (task, measure, arm), row in results.figures.items():
        if arm == results.method.key and measure in (ACCURACY, LOSS):
            n, groups, seeds = whole(row["n"]), whole(row["groups"]), row["seeds"]
            alike = f" in {groups} groups of like questions" if groups != n else ""
            held = f"held-out text: {n} tokens in {groups} texts"
            parts.append(held if task == HELDOUT else f"{task}: {n} questions{alike}")
    return "; ".join([*parts, f"{counted(seeds, 'seed')} of each arm."])


def costs_sentence(evaluations: Path, arms: Arms) -> str:
    """What a predicted token takes in each arm, from the metrics of the stage evaluate."""
    costs: dict[str, float] = {}
    for method in arms.methods:
        cost = read_json(evaluations / f"{method}-{arms.seeds[0]}" / "metrics.json")["cost"]
        costs[arm_name(method)] = cost["operations"]
        for way in (GATED, MEAN):
            if f"operations_{way}" in cost:
                costs[arm_name(f"{method}/{way}")] = cost[f"operations_{way}"]
    shown = listed([f"{number:.4g} ({name})" for name, number in costs.items()])
    return f"Operations a predicted token, in units of the base model’s: {shown}."


def reasoning_table(reasoning: dict, method: Method) -> Table:
    """The metrics of the stage chain_of_thought, a row for each task and measure."""
    ways = {way: name for way, name in method.ways.items() if way != SWAPPED}
    rows = []
    for task, values in reasoning.items():
        for measure in values["no_thought"]:
            row = [Cell(f"{task}, {measure}"), *(Cell(percent(values[way][measure])) for way in ways)]
            if method.thinks:
                difference = values["difference"][measure]
                parts = [interval(Estimate.of(difference), points), p_value(difference.get("p_value"))]
                row.append(Cell(", ".join(filter(None, parts))))
            rows.append([*row, Cell(whole(values["n"])), Cell(whole(values["samples"]))])
    added = [f"{method.many} add, points"] if method.thinks else []
    return Table("With written reasoning", ["task", *ways.values(), *added, "questions", "samples"], rows)
