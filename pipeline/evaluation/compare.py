"""Is it the thoughts? The run's answers beside those of the base model and of other methods, question by question."""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.errors import UserError
from pipeline.evaluation.statistics import interval_over_seeds, mcnemar, share_interval
from pipeline.files import write_json, write_table
from pipeline.params import Baseline, Compare

MEASURES = {"accuracy": "correct", "prob": "prob"}
NUMBERS = [*MEASURES.values()]
BASE = "base"  # the model before training: it is the same whatever the seed

Runs = dict[int, np.ndarray]  # of an arm: a figure of each question (n,), by seed


def write_compare(
    params: Compare, baseline: Baseline, method: str, seed: int, evaluations: Path, results: Path
) -> None:
    """Compare the run of ``method`` and ``seed`` in ``evaluations`` with the baselines' in METHOD-SEED below it.

    Writes each arm's figures (figures.csv), its distance from the run (comparisons.csv) and, of the accuracy, that
    distance as metrics.json. Raises UserError where the runs were not asked the same questions.
    """
    answers = _arms(baseline, method, seed, evaluations)
    figures, comparisons = [], []
    for (task, measure), arms in _figures(answers).items():
        about = {"task": task, "measure": measure}
        figures += [{**about, "arm": arm, **_figure(runs, measure, params)} for arm, runs in arms.items()]
        for arm in [arm for arm in arms if arm != method]:
            pairs = _pairs(arms[method], arms[arm], by_seed=arm != BASE)
            comparisons.append({**about, "arm": method, "against": arm, **_comparison(pairs, measure, params)})
    write_table(results / "figures.csv", pd.DataFrame(figures))
    write_table(results / "comparisons.csv", pd.DataFrame(comparisons))
    write_json(results / "metrics.json", _metrics(comparisons))


def _arms(baseline: Baseline, method: str, seed: int, evaluations: Path) -> pd.DataFrame:
    """Every answer that is compared, with its ``arm`` and ``seed``."""
    run = _read(evaluations, seed)
    tables = [run.assign(arm=run["way"].map(_names(run, method) | {BASE: BASE}))]
    for other, number in product(baseline.methods, baseline.seeds):
        if (other, number) != (method, seed):  # which would be the run itself
            table = _read(evaluations / f"{other}-{number}", number)
            names = _names(table, other)
            if other != method:  # of another method, what it gives without its thoughts is not compared
                names = {way: arm for way, arm in names.items() if arm == other}
            tables.append(table.assign(arm=table["way"].map(names)).dropna(subset="arm"))
    return pd.concat(tables, ignore_index=True)


def _names(answers: pd.DataFrame, method: str) -> dict[str, str]:
    """The arms that a run of ``method`` is, by the way of answering."""
    if "thought" not in set(answers["way"]):
        return {"no_thought": method}
    return {"thought": method, "no_thought": f"{method}, thoughts off"}


def _read(folder: Path, seed: int) -> pd.DataFrame:
    path = folder / "predictions.parquet"
    broken = f"{path} is missing or broken: run `dvc repro` to make it again"
    try:
        rows = pd.read_parquet(path, columns=["task", "index", "prompt", "way", *NUMBERS]).assign(seed=seed)
        rows = rows.astype(dict.fromkeys(NUMBERS, float))
    except (OSError, ValueError, TypeError) as error:  # TypeError: of a list where a number should be
        raise UserError(broken) from error
    if rows.empty:
        raise UserError(broken)
    return rows


def _figures(answers: pd.DataFrame) -> dict[tuple[str, str], dict[str, Runs]]:
    """The figures by task and measure, then by arm and seed, each in the order of the questions."""
    found: dict[tuple[str, str], dict[str, Runs]] = {}
    runs = answers.groupby(["arm", "seed"]).ngroups
    for task, rows in answers.groupby("task", sort=False):
        prompts = rows.groupby(["arm", "seed"])["prompt"].agg(tuple)
        if prompts.nunique() > 1 or len(prompts) < runs:
            raise UserError(f"{task}: the runs were not asked the same questions: run `dvc repro` to ask them again")
        for measure, column in MEASURES.items():
            arms = found.setdefault((task, measure), {})
            for (arm, seed), some in rows.groupby(["arm", "seed"], sort=False):
                arms.setdefault(arm, {})[seed] = some.sort_values("index")[column].to_numpy(float)
    return found


def _figure(runs: Runs, measure: str, params: Compare) -> dict:
    values = np.stack(list(runs.values()))
    if measure == "accuracy" and len(values) == 1:  # of 500 right in 500 a bootstrap would be sure
        low, high = share_interval(int(values.sum()), values.shape[1])
    else:
        low, high = interval_over_seeds(values, params.bootstrap_samples, params.seed)
    return {"seeds": len(values), "n": values.shape[1], "mean": values.mean(), "ci_low": low, "ci_high": high}


def _pairs(first: Runs, second: Runs, by_seed: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """The two arms' runs of the same seed; not ``by_seed``, or where they share none, each of the one with each other.

    The model before training is the same whatever the seed, so it is not paired by seed.
    """
    shared = [seed for seed in first if seed in second]
    if by_seed and shared:
        return [(first[seed], second[seed]) for seed in shared]
    return list(product(first.values(), second.values()))


def _comparison(pairs: list[tuple[np.ndarray, np.ndarray]], measure: str, params: Compare) -> dict:
    """The difference with its paired interval; of right answers also how often one arm alone has them, and p."""
    differences = np.stack([one - other for one, other in pairs])
    low, high = interval_over_seeds(differences, params.bootstrap_samples, params.seed)
    row = {"seeds": len(pairs), "n": differences.shape[1], "difference": differences.mean()}
    row |= {"ci_low": low, "ci_high": high, "only_arm": None, "only_against": None, "p_value": None}
    if measure == "accuracy":
        row["only_arm"], row["only_against"] = (float((sign * differences > 0).sum(1).mean()) for sign in (1, -1))
        row["p_value"] = max(mcnemar(one > 0, other > 0) for one, other in pairs)
    return row


def _metrics(comparisons: list[dict]) -> dict:
    metrics: dict = {}
    for row in comparisons:
        if row["measure"] == "accuracy":
            names = ("difference", "ci_low", "ci_high", "p_value")
            metrics.setdefault(row["task"], {})[row["against"]] = {name: float(row[name]) for name in names}
    return metrics
