"""A small fake run: params.yaml and the files in results/ that the report reads, with hostile text among them."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

HOSTILE = """<script>alert(1)</script> & "double" 'single' $x_1$ </span>"""
TOKENS = ("Q", ":", " The", " lemur", "\n", "\n\n", "\t", "  ", HOSTILE, " A")
PASSAGE = 6 * len(TOKENS)  # tokens of a text
STEPS = 60
PARAMS = (Path(__file__).parents[2] / "params.yaml").read_text()
HUB_PARAMS = PARAMS.replace("source: microworld", "source: hub").replace("source: scratch", "source: hub")
CELLS = [(0.1, 0.05, 4000), (0.3, 0.05, 100), (0.7, 0.35, 10), (0.7, -0.25, 1)]  # of the density
GROUPS = {
    "deciles": [str(i) for i in range(1, 11)],
    "kinds": ["word start", "digit", "NA", "$x_1$", HOSTILE],
    "positions": ["1", "2-3", "4-7"],
    "weights": ["-0.5 to 0.1", "0.1 to 0.9"],
}


def write_run(folder: Path, method: str = "quiet_star") -> Path:
    """Write a run of this method: gsm8k is helped, commonsense_qa undecided. The page shows two passages."""
    text = re.sub(r"passages: \d+", "passages: 2", PARAMS)
    (folder / "params.yaml").write_text(f"# <b>\n{text}")
    files = {
        "base_model/steps.csv": base_model_steps(),
        "train/metrics.json": train(method),
        "train/steps.csv": train_steps(),
        "train/heldout.csv": train_heldout(),
        "evaluate/metrics.json": {
            "gsm8k": task(0.8, 0.77, 0.83, method),
            "commonsense_qa": task(0.01, -0.02, 0.04, method),
        },
        "evaluate/predictions.parquet": predictions(method),
        "compare/figures.csv": arms(method),
        "compare/comparisons.csv": comparisons(method),
        "chain_of_thought/metrics.json": {"gsm8k": reasoning(method)},
        "chain_of_thought/votes.csv": votes(),
        "perplexity/metrics.json": perplexity(),
        "perplexity/tokens.parquet": tokens(method),
        "perplexity/density.csv": pd.DataFrame(CELLS, columns=["base_loss", "improvement", "tokens"]),
        "perplexity/extremes.csv": extremes(),
        **{f"perplexity/{name}.csv": groups(names) for name, names in GROUPS.items()},
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


def task(accuracy: float, low: float, high: float, method: str = "quiet_star") -> dict:
    """Metrics of a task whose difference in accuracy is ``accuracy`` [``low``, ``high``]."""
    found = {"n": 1400, "base": {"prob": 0.11, "accuracy": 0.095}, "no_thought": {"prob": 0.125, "accuracy": 0.1}}
    if method != "no_thought":
        test = {"accuracy": accuracy, "ci_low": low, "ci_high": high, "p_value": 0.0234}
        found["thought"] = {"prob": 0.75, "accuracy": 0.1 + accuracy}
        found["difference"] = test | {"prob": 0.625, "prob_ci_low": 0.6, "prob_ci_high": 0.65}
    return found


def reasoning(method: str = "quiet_star") -> dict:
    found = {"n": 32, "samples": 8, "no_thought": {"accuracy@1": 0.4, "maj@2": 0.45, "maj@8": 0.5}}
    if method != "no_thought":
        found["thought"] = {"accuracy@1": 0.5, "maj@2": 0.6, "maj@8": 0.7}
        found["difference"] = {name: {"mean": 0.2, "ci_low": 0.05, "ci_high": 0.35} for name in found["thought"]}
        found["difference"]["maj@8"]["p_value"] = 0.0156
    return found


def votes() -> pd.DataFrame:
    rows = [
        {"task": task, "way": way, "k": k, "accuracy": mean, "ci_low": mean - 0.1, "ci_high": mean + 0.1, "n": 32}
        for task in ("gsm8k", "another")
        for way, means in (("thought", (0.5, 0.6, 0.7)), ("no_thought", (0.4, 0.45, 0.5)))
        for k, mean in zip((1, 2, 8), means, strict=True)
    ]
    return pd.DataFrame(rows)


def arms(method: str = "quiet_star") -> pd.DataFrame:
    names = (method, *(() if method == "no_thought" else (f"{method}, thoughts off",)), "base", f"other {HOSTILE}")
    rows = [
        {"task": task, "measure": measure, "arm": arm, "seeds": seeds, "n": 1400, "mean": 0.5, "ci_low": 0.4}
        for task in ("gsm8k", "commonsense_qa")
        for measure in ("accuracy", "prob")
        for seeds, arm in enumerate(names, start=1)
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
    gain = 0.05 * table.index - 0.03
    ends = {"ci_low": gain - 0.02, "ci_high": gain + 0.02}
    return table.assign(base_loss=0.3 * (table.index + 1), improvement=gain, **ends, helped=0.125, hurt=0.0625)


def extremes() -> pd.DataFrame:
    """Eight of a kind and side, the first two alike, the last ones first."""
    rows = []
    for what in ("passage", "thought"):
        for side, sign in (("gain", 1), ("loss", -1)):
            for rank in range(8, 0, -1):
                name = f"{side} {max(rank, 2)}"
                token, thought = ("", "") if what == "passage" else (" NA", f"thought {name} {HOSTILE}")
                excerpt = f"{what} {name}\n{HOSTILE}" + " long" * 100
                rows.append((what, side, rank, rank, token, thought, 3.0, sign * (3 - 0.25 * rank), excerpt))
    columns = ["what", "side", "rank", "text", "token", "thought", "base_loss", "improvement", "excerpt"]
    return pd.DataFrame(rows, columns=columns)


def perplexity() -> dict:
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
        "agreement": {"spearman": 0.31, "ci_low": 0.25, "ci_high": 0.37},
    }


def train(method: str = "quiet_star") -> dict:
    first, last = {"base_loss": 1.5, "talk_loss": 1.51}, {"base_loss": 1.4, "talk_loss": 1.1}
    share = {"first": 0.4, "last": 0.95} if method == "quiet_star" else None
    sizes = {"steps": STEPS, "text_tokens": 983040, "parameters": 1234567}
    return {"method": method, "working_share": share, "heldout": {"first": first, "last": last}, **sizes}


def train_steps() -> pd.DataFrame:
    """The thoughts become noise in the end."""
    step = np.arange(1, STEPS + 1)
    wave = np.sin(step)
    columns = {
        "step": step,
        "loss": 1.4 - 0.004 * step + 0.1 * wave,
        "base_loss": 1.5 + 0.05 * wave,
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
    return pd.DataFrame(rows, columns=["step", "base_loss", "talk_loss", "working_share"])


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
    gains = {"base": (0.25, 0), "no_thought": (0.5, 0.001), "thought": (0.55, 0.1)}
    rows = []
    for task, index in itertools.product(("gsm8k", "commonsense_qa"), range(6)):
        prompt = f"Q: Question {index} of {task}? {HOSTILE}\n(A) trees\n(B) ponds\nA:"
        for way, (probability, more) in list(gains.items())[: 2 if method == "no_thought" else 3]:
            right = way == "thought" and index > 2
            thought = f" thought {index} of {task} {HOSTILE}" if way == "thought" and method == "quiet_star" else ""
            answer = ("A", "A" if right else None, right, probability + more * (index - 2), thought)
            rows.append((task, index, way, prompt, *answer))
    columns = ["task", "index", "way", "prompt", "answer", "predicted", "correct", "prob", "thought"]
    return pd.DataFrame(rows, columns=columns).sample(frac=1, random_state=0)
