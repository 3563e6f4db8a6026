"""Small fake outputs of the other stages, hostile text among them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.report import ReportInputs

HOSTILE = """<script>alert(1)</script> & "double" 'single' $x_1$ </span>"""
TOKENS = ("Q", ":", " The", " lemur", "\n", "\n\n", "\t", "  ", HOSTILE, " A")
STEPS = 60
PARAMS = Path(__file__).parents[2] / "params.yaml"
GROUPS = {
    "deciles": [str(i) for i in range(1, 11)],
    "kinds": ["word start", "digit", "NA", "$x_1$", HOSTILE],
    "positions": ["1", "2-3", "4-7"],
    "weights": ["-0.5 to 0.1", "0.1 to 0.9"],
}


def write_inputs(folder: Path, method: str = "quiet_star") -> ReportInputs:
    """A complete set of inputs of a run of this method: gsm8k helped, commonsense_qa undecided."""
    tables = {
        "base_model_steps": base_model_steps(),
        "train_steps": train_steps(),
        "train_heldout": train_heldout(),
        "compare_figures": figures(method),
        "compare_comparisons": comparisons(method),
        "cot_votes": votes(),
        "density": density(),
        "extremes": extremes(),
        **{name: groups(names) for name, names in GROUPS.items()},
    }
    metrics = {
        "train_metrics": train(method),
        "evaluate_metrics": {
            "gsm8k": task(0.8, 0.77, 0.83, method),
            "commonsense_qa": task(0.01, -0.02, 0.04, method),
        },
        "cot_metrics": {"gsm8k": reasoning(method)},
        "perplexity_metrics": perplexity(method),
    }
    paths = {name: folder / f"{name}.csv" for name in tables} | {name: folder / f"{name}.json" for name in metrics}
    paths |= {"tokens": folder / "tokens.parquet", "predictions": folder / "predictions.parquet"}
    for name, table in tables.items():
        table.to_csv(paths[name], index=False)
    for name, values in metrics.items():
        paths[name].write_text(json.dumps(values))
    tokens(method).to_parquet(paths["tokens"])
    predictions(method).to_parquet(paths["predictions"])
    paths["params"] = folder / "params.yaml"
    paths["params"].write_text(f"# <b>\n{PARAMS.read_text()}")
    return ReportInputs(**paths, passages=2)


def task(accuracy: float, low: float, high: float, method: str = "quiet_star") -> dict:
    """Metrics of a task whose difference in accuracy is ``accuracy`` [``low``, ``high``]."""
    found = {
        "n": 1400,
        "base": {"prob": 0.11, "accuracy": 0.095},
        "no_thought": {"prob": 0.125, "accuracy": 0.1},
        "thought": {"prob": 0.75, "accuracy": 0.1 + accuracy},
        "difference": {
            "accuracy": accuracy,
            "ci_low": low,
            "ci_high": high,
            "p_value": 0.0234,
            "prob": 0.625,
            "prob_ci_low": 0.6,
            "prob_ci_high": 0.65,
        },
    }
    return _thinking(found, method)


def _thinking(found: dict, method: str) -> dict:
    """``found`` as a run of this method has it."""
    if method != "no_thought":
        return found
    return {name: value for name, value in found.items() if name not in ("thought", "difference")}


def reasoning(method: str = "quiet_star") -> dict:
    measures = ("accuracy@1", "maj@2", "maj@8")
    found = {
        "n": 32,
        "samples": 8,
        "thought": dict(zip(measures, (0.5, 0.6, 0.7), strict=True)),
        "no_thought": dict(zip(measures, (0.4, 0.45, 0.5), strict=True)),
        "difference": {name: {"mean": 0.2, "ci_low": 0.05, "ci_high": 0.35} for name in measures},
    }
    found["difference"]["maj@8"]["p_value"] = 0.0156
    return _thinking(found, method)


def votes() -> pd.DataFrame:
    rows = [
        {"task": task, "way": way, "k": k, "accuracy": mean, "ci_low": mean - 0.1, "ci_high": mean + 0.1, "n": 32}
        for task in ("gsm8k", "another")
        for way, means in (("thought", (0.5, 0.6, 0.7)), ("no_thought", (0.4, 0.45, 0.5)))
        for k, mean in zip((1, 2, 8), means, strict=True)
    ]
    return pd.DataFrame(rows)


def figures(method: str = "quiet_star") -> pd.DataFrame:
    arms = (method, *(() if method == "no_thought" else (f"{method}, thoughts off",)), "base", f"other {HOSTILE}")
    rows = [
        {"task": task, "measure": measure, "arm": arm, "seeds": seeds, "n": 1400, "mean": 0.5, "ci_low": 0.4}
        for task in ("gsm8k", "commonsense_qa")
        for measure in ("accuracy", "prob")
        for seeds, arm in enumerate(arms, start=1)
    ]
    return pd.DataFrame(rows).assign(ci_high=0.625)


def comparisons(method: str = "quiet_star") -> pd.DataFrame:
    """On each task the run is above its base, and undecided against another arm."""
    columns = ["task", "measure", "arm", "against", "seeds", "n", "difference", "ci_low", "ci_high"]
    columns += ["only_arm", "only_against", "p_value"]
    rows = []
    for task in ("gsm8k", "commonsense_qa"):
        rows += [
            (task, "accuracy", method, "base", 1, 1400, 0.4, 0.3, 0.5, 700.5, 140, 1e-9),
            (task, "accuracy", method, f"other {HOSTILE}", 3, 1400, 0.01, -0.02, 0.04, 20, 6, 0.25),
            (task, "prob", method, "base", 1, 1400, 0.3, 0.2, 0.4, None, None, None),
        ]
        if method != "no_thought":
            rows.append((task, "accuracy", method, f"{method}, thoughts off", 1, 1400, 0.6, 0.5, 0.7, 900, 60, 1e-9))
    return pd.DataFrame(rows, columns=columns)


def groups(names: list[str]) -> pd.DataFrame:
    table = pd.DataFrame({"group": names, "n": 1234, "share": 1 / len(names)})
    table["base_loss"] = 0.3 * (table.index + 1)
    table["improvement"] = 0.05 * table.index - 0.03
    return table.assign(
        ci_low=table["improvement"] - 0.02, ci_high=table["improvement"] + 0.02, helped=0.125, hurt=0.0625
    )


def density() -> pd.DataFrame:
    return pd.DataFrame(
        {"base_loss": [0.1, 0.3, 0.7, 0.7], "improvement": [0.05, 0.05, 0.35, -0.25], "tokens": [4000, 100, 10, 1]}
    )


def extremes() -> pd.DataFrame:
    """Eight of a kind and side, the first two alike."""
    rows = [
        {
            "what": what,
            "side": side,
            "rank": rank,
            "text": rank,
            "position": None if what == "passage" else 3,
            "token": "" if what == "passage" else " NA",
            "thought": "" if what == "passage" else f"thought {side} {max(rank, 2)} {HOSTILE}",
            "base_loss": 3.0,
            "improvement": sign * (3 - 0.25 * rank),
            "excerpt": f"{what} {side} {max(rank, 2)}\n{HOSTILE}" + " long" * 100,
        }
        for what in ("passage", "thought")
        for side, sign in (("gain", 1), ("loss", -1))
        for rank in range(8, 0, -1)
    ]
    return pd.DataFrame(rows)


def perplexity(method: str = "quiet_star") -> dict:
    known = {"spearman": None, "ci_low": None, "ci_high": None}
    if method != "no_thought":
        known = {"spearman": 0.31, "ci_low": 0.25, "ci_high": 0.37}
    return {
        "n_texts": 120,
        "n_tokens": 12340,
        "loss": {"no_thought": 1.2345, "thought": 1.0},
        "perplexity": {"no_thought": 3.437, "thought": 2.718},
        "improvement": {"mean": 0.2345, "ci_low": 0.2, "ci_high": 0.27},
        "helped": {"share": 0.2, "ci_low": 0.18, "ci_high": 0.22},
        "hurt": {"share": 0.1, "ci_low": 0.09, "ci_high": 0.11},
        "threshold": 0.01,
        "mixing_weight": 0.4,
        "agreement": known,
    }


def train(method: str = "quiet_star") -> dict:
    return {
        "method": method,
        "steps": 60,
        "working_share": {"first": 0.4, "last": 0.95} if method == "quiet_star" else None,
        "heldout": {
            "first": {"base_loss": 1.5, "talk_loss": 1.51},
            "last": {"base_loss": 1.4, "talk_loss": 1.1},
        },
        "text_tokens": 983040,
        "parameters": 1234567,
    }


def train_steps() -> pd.DataFrame:
    step = np.arange(1, STEPS + 1)
    wave = np.sin(step)
    return pd.DataFrame(
        {
            "step": step,
            "loss": 1.4 - 0.004 * step + 0.1 * wave,
            "base_loss": 1.5 + 0.05 * wave,
            "talk_loss": 1.5 - 0.006 * step + 0.05 * wave,
            "policy_loss": 0.01 * wave,
            "reward": 0.01 * step + 0.1 * wave,
            "positive_advantages": 0.4 + 0.05 * wave,
            "mixing_weight": 0.007 * step,
            "thought_entropy": 3 - 0.02 * step,
            "grad_norm": 1.0,
            "learning_rate": 1e-4,
        }
    )


def train_heldout() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "step": [0, 20, 40, 60],
            "base_loss": [1.5, 1.45, 1.43, 1.4],
            "talk_loss": [1.51, 1.4, 1.2, 1.1],
            "working_share": [0.4, 0.6, 0.9, 0.95],
        }
    )


def base_model_steps() -> pd.DataFrame:
    step = np.arange(10, 1010, 10)
    heldout = pd.Series(2 + 300 / (step + 60)).where(step % 200 == 0)
    return pd.DataFrame({"step": step, "loss": 1.9 + 300 / (step + 60), "heldout_loss": heldout, "learning_rate": 1e-3})


def tokens(method: str = "quiet_star") -> pd.DataFrame:
    rows = [(text, i, token) for text in (0, 1, 2) for i, token in enumerate(TOKENS * 6, start=1)]
    table = pd.DataFrame(rows, columns=["text", "position", "token"]).assign(kind="word start")
    table["nll_no_thought"] = 1.5 + np.cos(table.index) * 1.4
    table["nll_thought"] = table["nll_no_thought"] - np.sin(table.index * 1.3 + 1) ** 3
    table["weight"] = 0.25
    thoughts = [f"a primate lives in text {text} {HOSTILE}\n" for text in table["text"]]
    table["thought"] = thoughts if method == "quiet_star" else ""
    return table.sample(frac=1, random_state=0)


def predictions(method: str = "quiet_star") -> pd.DataFrame:
    """Six questions a task; thoughts add -20, -10, 0, ... 30 points of probability."""
    gains = {"base": 0.0, "no_thought": 0.25, "thought": 0.3}
    rows = [
        {
            "task": task,
            "index": index,
            "prompt": f"Q: Question {index} of {task}? {HOSTILE}\n(A) trees\n(B) ponds\nA:",
            "answer": "A",
            "way": way,
            "predicted": "A" if way == "thought" and index > 2 else None,
            "correct": way == "thought" and index > 2,
            "prob": 0.25 + gain + (0 if way == "base" else (index - 2) * 0.1 * (1 if way == "thought" else 0.01)),
            "thought": f" thought {index} of {task} {HOSTILE}" if way == "thought" and method == "quiet_star" else "",
        }
        for task in ("gsm8k", "commonsense_qa")
        for index in range(6)
        for way, gain in gains.items()
        if way != "thought" or method != "no_thought"
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)
