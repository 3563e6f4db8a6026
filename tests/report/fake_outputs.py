"""A small fake run: params.yaml and the files in results/ that the report reads, with hostile text among them."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.report.method import METHODS

HOSTILE = """<script>alert(1)</script> & "double" 'single' $x_1$ </span>"""
TOKENS = ("Q", ":", " The", " lemur", "\n", "\n\n", "\t", "  ", HOSTILE, " A")
PASSAGE = 6 * len(TOKENS)  # tokens of a text
STEPS = 60
PARAMS = re.sub(r"methods: \[.*\]", "methods: [quiet_star]", (Path(__file__).parents[2] / "params.yaml").read_text())
HUB_PARAMS = PARAMS.replace("source: microworld", "source: hub").replace("source: scratch", "source: hub")
CELLS = [(0.1, 0.05, 4000), (0.3, 0.05, 100), (0.7, 0.35, 10), (0.7, -0.25, 1)]  # of the density
GROUPS = {
    "deciles": [str(i) for i in range(1, 11)],
    "kinds": ["word start", "digit", "NA", "$x_1$", HOSTILE],
    "positions": ["1", "2-3", "4-7"],
    "weights": ["-0.5 to 0.1", "0.1 to 0.9"],
}
TRAIN, TABLES = "train/quiet_star-1", "perplexity/quiet_star-1/tables"  # of the default run, in results/
TASKS = ("gsm8k", "commonsense_qa")
CONTROLS = ("no_policy", "pause", "no_thought", "untrained", "before", "other <script> $x_1$")
WAYS = ("swapped", "random", "own_where_same_last", "same_last", "thoughts_off")


def write_run(folder: Path, method: str = "quiet_star") -> Path:
    """Write a run of this method: its claim holds on gsm8k and fails on commonsense_qa. The page shows two passages."""
    text = re.sub(r"passages: \d+", "passages: 2", PARAMS).replace("[quiet_star]", f"[{method}]")
    (folder / "params.yaml").write_text(f"# <b>\n{text}")
    run = f"{method}-1"
    files = {
        "base_model/steps.csv": base_model_steps(),
        f"train/{run}/metrics.json": train(method),
        f"train/{run}/steps.csv": train_steps(),
        f"train/{run}/heldout.csv": train_heldout(),
        f"evaluate/{run}/metrics.json": {"cost": {"operations": 7.5, "operations_mean16": 97}},
        f"evaluate/{run}/predictions.parquet": predictions(method),
        "compare/figures.csv": arms(method),
        "compare/comparisons.csv": comparisons(method),
        "compare/seeds.csv": seeds(method),
        "summary.json": {"thought_length": 4.5, "cost": 7.25},
        "chain_of_thought/metrics.json": {"gsm8k": reasoning(method)},
        "chain_of_thought/votes.csv": votes(),
        f"perplexity/{run}/tokens.parquet": tokens(method),
        f"perplexity/{run}/tables/metrics.json": perplexity(),
        f"perplexity/{run}/tables/density.csv": pd.DataFrame(CELLS, columns=["base_loss", "improvement", "tokens"]),
        f"perplexity/{run}/tables/extremes.csv": extremes(),
        **{f"perplexity/{run}/tables/{name}.csv": groups(names) for name, names in GROUPS.items()},
    }
    for name, content in files.items():
        write(folder, name, content)
    return folder


def write(run: Path, name: str, content: dict | pd.DataFrame) -> None:
    path = run / "results" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(content))
    elif path.suffix == ".csv":
        content.to_csv(path, index=False)
    else:
        content.to_parquet(path)


def reasoning(method: str = "quiet_star") -> dict:
    found = {"n": 32, "samples": 8, "no_thought": {"accuracy@1": 0.4, "maj@2": 0.45, "maj@8": 0.5}}
    if method != "no_thought":
        found["thought"] = {"accuracy@1": 0.5, "maj@2": 0.6, "maj@8": 0.7}
        found["difference"] = {name: {"mean": 0.2, "ci_low": 0.05, "ci_high": 0.35} for name in found["thought"]}
        found["difference"]["maj@8"]["p_value"] = 0.0156
    return found


def votes() -> pd.DataFrame:
    means = {"thought": (0.5, 0.6, 0.7), "no_thought": (0.4, 0.45, 0.5)}
    rows = itertools.product(("gsm8k", "another"), means, enumerate((1, 2, 8)))
    table = pd.DataFrame([(task, way, k, means[way][i]) for task, way, (i, k) in rows])
    table.columns = ["task", "way", "k", "accuracy"]
    return table.assign(ci_low=table["accuracy"] - 0.1, ci_high=table["accuracy"] + 0.1, n=32)


def arms(method: str = "quiet_star") -> pd.DataFrame:
    """The run is right in 0.9 and has a loss of 1, everything else 0.5 and 1.3; few questions have a same_last."""
    more = ("untrained/sampled", "untrained/mean16", "no_policy/swapped")
    rows = []
    for arm in dict.fromkeys([method, *(f"{method}/{way}" for way in WAYS), *CONTROLS, *more]):
        best = arm == method
        for task, measure in itertools.product(TASKS, ("accuracy", "prob")):
            rows.append((task, measure, arm, 312 if "same_last" in arm else 1400, 700, 0.9 if best else 0.5))
        if "same_last" not in arm:
            rows.append(("heldout", "loss", arm, 12340, 120, 1.0 if best else 1.3))
            rows.append(("heldout", "loss_after_marker", arm, 12340, 120, 0.9 if best else 1.3))
    table = pd.DataFrame(rows, columns=["task", "measure", "arm", "n", "groups", "value"])
    return table.assign(seeds=2, low=table["value"] - 0.1, high=table["value"] + 0.05)


def seeds(method: str = "quiet_star") -> pd.DataFrame:
    return pd.concat([arms(method).assign(seed=seed) for seed in (1, 2)], ignore_index=True)


def comparisons(method: str = "quiet_star") -> pd.DataFrame:
    """The run is above every arm on gsm8k, above most on commonsense_qa, and harmed the base path a little."""
    pairs = [(method, arm) for arm in (*(f"{method}/{way}" for way in WAYS), *CONTROLS)]
    pairs += [("no_policy", "no_policy/swapped"), ("pause", "before"), (f"{method}/thoughts_off", "before")]
    rows = []
    for task, (arm, against) in itertools.product((*TASKS, "heldout"), dict.fromkeys(pairs)):
        numbers = (0.4, 0.3, 0.5, 1e-9)
        if task == "commonsense_qa" and against == "no_policy":
            numbers = (0.01, -0.02, 0.04, None)
        elif arm == f"{method}/thoughts_off":
            numbers = (-0.01, -0.03, 0.01, None)
        numbers += (0.75 if against == f"{method}/swapped" else None,)
        for measure in ("loss", "loss_after_marker") if task == "heldout" else ("accuracy", "prob"):
            rows.append((task, measure, arm, against, 2, 1400, 700, *numbers))
    columns = ["task", "measure", "arm", "against", "seeds", "n", "groups", "difference", "low", "high", "p_value"]
    return pd.DataFrame(rows, columns=[*columns, "share"])


def groups(names: list[str]) -> pd.DataFrame:
    table = pd.DataFrame({"group": names, "n": 1234, "share": 1 / len(names)})
    gain = 0.05 * table.index - 0.03
    ends = {"ci_low": gain - 0.02, "ci_high": gain + 0.02}
    return table.assign(base_loss=0.3 * (table.index + 1), improvement=gain, **ends, helped=0.125, hurt=0.0625)


def extremes() -> pd.DataFrame:
    """Eight of a kind and side, the first two alike, the last ones first."""
    rows = []
    for what in ("passage", "thought"):
        for side, sign in (("gain", 1), ("loss", -1), ("content", 1)):
            for rank in range(8, 0, -1):
                name = f"{side} {max(rank, 2)}"
                token, thought = ("", "") if what == "passage" else (" NA", f"thought {name} {HOSTILE}")
                excerpt = f"{what} {name}\n{HOSTILE}" + " long" * 100
                rows.append(
                    (what, side, rank, rank, token, thought, 3.0, sign * (3 - 0.25 * rank), 1 - rank / 10, excerpt)
                )
    columns = ["what", "side", "rank", "text", "token", "thought", "base_loss"]
    columns += ["improvement", "content", "excerpt"]
    return pd.DataFrame(rows, columns=columns)


def perplexity() -> dict:
    return {
        "helped": {"share": 0.2, "ci_low": 0.18, "ci_high": 0.22},
        "hurt": {"share": 0.1, "ci_low": 0.09, "ci_high": 0.11},
        "threshold": 0.01,
        "mixing_weight": 0.4,
        "agreement": {"spearman": 0.31, "ci_low": 0.25, "ci_high": 0.37},
    }


def train(method: str = "quiet_star") -> dict:
    share = {"first": 0.4, "last": 0.95} if method == "quiet_star" else None
    return {
        "working_share": share,
        "steps": STEPS,
        "text_tokens": 983040,
        "base_weights": "0123456789ab",
        "parameters": 1234567,
    }


def train_steps() -> pd.DataFrame:
    """The thoughts become noise in the end."""
    step = np.arange(1, STEPS + 1)
    wave = np.sin(step)
    columns = {
        "step": step,
        "loss": 1.4 - 0.004 * step + 0.1 * wave,
        "base_loss": 1.5 + 0.05 * wave,
        "base_loss_ahead": 1.6 + 0.05 * wave,
        "talk_loss": 1.5 - 0.006 * step + 0.05 * wave,
        "policy_loss": 0.01 * wave,
        "reward": 0.01 * step + 0.1 * wave,
        "positive_advantages": 0.4 + 0.05 * wave,
        "mixing_weight": 0.007 * step,
        "thought_entropy": 1 + 0.1 * step,
    }
    return pd.DataFrame(columns)


def train_heldout() -> pd.DataFrame:
    rows = [(0, 1.5, 1.51, 0.4), (20, 1.45, 1.4, 0.6), (40, 1.43, 1.2, 0.9), (60, 1.4, 1.1, 0.95)]
    table = pd.DataFrame(rows, columns=["step", "base_loss", "talk_loss", "working_share_rings"])
    table["working_share_animals"] = table["working_share_rings"] / 2
    return table.assign(base_loss_ahead=table["base_loss"] + 0.1)


def base_model_steps() -> pd.DataFrame:
    table = pd.DataFrame({"step": range(10, 1010, 10)})
    table["loss"] = 1.9 + 300 / (table["step"] + 60)
    return table.assign(heldout_loss=(table["loss"] + 0.1).where(table["step"] % 200 == 0))


def tokens(method: str = "quiet_star") -> pd.DataFrame:
    """Three texts, in another order than that of reading."""
    rows = [(text, i, token) for text in (0, 1, 2) for i, token in enumerate(TOKENS * 6, start=1)]
    table = pd.DataFrame(rows, columns=["text", "position", "token"])
    table["nll_no_thought"] = 1.5 + np.cos(table.index) * 1.4
    table["nll_thought"] = table["nll_no_thought"] - np.sin(table.index * 1.3 + 1) ** 3
    table["weight"] = 0.25
    thoughts = [f"a primate lives in text {text} {HOSTILE}\n" for text in table["text"]]
    table["thought"] = thoughts if method == "quiet_star" else ""
    return table.sample(frac=1, random_state=0)


def predictions(method: str = "quiet_star") -> pd.DataFrame:
    """Six questions a task; thoughts add -20, -10, 0, ... 30 points of probability."""
    gains = {"no_thought": (0.5, 0.001), "thought": (0.55, 0.1), "swapped": (0.25, 0)}
    rows = []
    for task, index in itertools.product(TASKS, range(6)):
        prompt = f"Q: Question {index} of {task}? {HOSTILE}\n(A) trees\n(B) ponds\nA:"
        for way in METHODS[method].ways:
            probability, more = gains[way]
            right = way == "thought" and index > 2
            thought = f" thought {index} of {task} {HOSTILE}" if way == "thought" and method != "pause" else ""
            answer = ("A", "A" if right else None, right, probability + more * (index - 2), thought)
            rows.append((task, index, task, way, prompt, *answer))
    columns = ["task", "index", "group", "way", "prompt", "answer", "predicted", "correct", "prob", "thought"]
    return pd.DataFrame(rows, columns=columns).sample(frac=1, random_state=0)
