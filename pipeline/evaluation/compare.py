"""Is it the thoughts? Compare the run with the base model and with other methods, question by question."""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.errors import UserError
from pipeline.evaluation.statistics import interval_over_seeds, mcnemar, share_interval
from pipeline.files import write_json, write_table
from pipeline.params import Arms, Compare

MEASURES = {"accuracy": "correct", "prob": "prob"}  # and the columns that hold them
BASE = "base"  # the model before training, which is the same for every seed

Runs = dict[int, np.ndarray]  # an arm's runs: a number for each question (n,), by seed


def write_compare(params: Compare, baseline: Arms, method: str, seed: int, evaluations: Path, results: Path) -> None:
    """Compare the run of ``method`` and ``seed`` in ``evaluations`` with the baselines in its folders METHOD-SEED.

    Writes the figures of each arm (figures.csv), their differences from the run's (comparisons.csv) and the differences
    in accuracy (metrics.json). Raises UserError if answers are missing or the runs were not asked the same questions.
    """
    tables = [_read(evaluations, method, seed)]
    for other, number in product(baseline.methods, baseline.seeds):
        if (other, number) != (method, seed):  # which is the run itself
            table = _read(evaluations / f"{other}-{number}", other, number)
            # another method is compared as it was trained: without its answers with thoughts off
            tables.append(table if other == method else table[table["arm"] == other])
    figures, comparisons, metrics = [], [], {}
    for (task, measure), arms in _arms(pd.concat(tables, ignore_index=True)).items():
        about = {"task": task, "measure": measure}
        figures += [{**about, "arm": arm, **_figure(runs, measure, params)} for arm, runs in arms.items()]
        for arm in [arm for arm in arms if arm != method]:
            own, others = arms[method], arms[arm]
            shared = [seed for seed in own if seed in others and arm != BASE]
            # runs of the same seed are paired; if there are none, every run with every other
            pairs = [(own[seed], others[seed]) for seed in shared] or list(product(own.values(), others.values()))
            row = _comparison(pairs, measure, params)
            comparisons.append({**about, "arm": method, "against": arm, **row})
            if measure == "accuracy":
                names = ("difference", "ci_low", "ci_high", "p_value")
                metrics.setdefault(task, {})[arm] = {name: float(row[name]) for name in names}
    write_table(results / "figures.csv", pd.DataFrame(figures))
    write_table(results / "comparisons.csv", pd.DataFrame(comparisons))
    write_json(results / "metrics.json", metrics)


def _read(folder: Path, method: str, seed: int) -> pd.DataFrame:
    """The answers of a run, each with its seed and its arm: the method, the method with thoughts off, or the base."""
    path, numbers = folder / "predictions.parquet", dict.fromkeys(MEASURES.values(), float)
    try:
        rows = pd.read_parquet(path, columns=["task", "index", "prompt", "way", *numbers]).astype(numbers)
        if rows.empty:
            raise ValueError("it has no rows")
    except (OSError, ValueError, TypeError) as error:  # TypeError: a list where a number should be
        raise UserError(f"{path} is missing or broken: run `dvc repro` to make it again") from error
    names = {"no_thought": method, BASE: BASE}
    if "thought" in set(rows["way"]):
        names |= {"thought": method, "no_thought": f"{method}, thoughts off"}
    return rows.assign(seed=seed, arm=rows["way"].map(names))


def _arms(answers: pd.DataFrame) -> dict[tuple[str, str], dict[str, Runs]]:
    """The runs of each arm, by task and measure; their questions are in one order."""
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
    if measure == "accuracy" and len(values) == 1:  # a bootstrap of 500 right in 500 would have no width
        low, high = share_interval(int(values.sum()), values.shape[1])
    else:
        low, high = interval_over_seeds(values, params.bootstrap_samples, params.seed)
    return {"seeds": len(values), "n": values.shape[1], "mean": values.mean(), "ci_low": low, "ci_high": high}


def _comparison(pairs: list[tuple[np.ndarray, np.ndarray]], measure: str, params: Compare) -> dict:
    """The mean paired difference; for accuracy also how often one arm alone is right, and McNemar's largest p."""
    differences = np.stack([one - other for one, other in pairs])
    low, high = interval_over_seeds(differences, params.bootstrap_samples, params.seed)
    row = {"seeds": len(pairs), "n": differences.shape[1], "difference": differences.mean()}
    row |= {"ci_low": low, "ci_high": high, "only_arm": None, "only_against": None, "p_value": None}
    if measure == "accuracy":
        row["only_arm"], row["only_against"] = (float((sign * differences > 0).sum(1).mean()) for sign in (1, -1))
        row["p_value"] = max(mcnemar(one > 0, other > 0) for one, other in pairs)
    return row
