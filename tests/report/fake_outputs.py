"""Small fake outputs of the other stages, hostile text among them."""

import numpy as np
import pandas as pd

HOSTILE = """<script>alert(1)</script> & "double" 'single' </span>"""
TOKENS = ("Q", ":", " The", " lemur", "\n", "\n\n", "\t", "  ", HOSTILE, " A")
STEPS = 60


def task(accuracy: float, low: float, high: float) -> dict:
    """Metrics of a task whose difference in accuracy is ``accuracy`` [``low``, ``high``]."""
    return {
        "n": 1400,
        "no_thought": {"prob": 0.125, "accuracy": 0.1},
        "thought": {"prob": 0.75, "accuracy": 0.1 + accuracy},
        "difference": {
            "accuracy": accuracy,
            "ci_low": low,
            "ci_high": high,
            "prob": 0.625,
            "prob_ci_low": 0.6,
            "prob_ci_high": 0.65,
        },
    }


def perplexity() -> dict:
    deciles = [
        {
            "decile": i,
            "base_loss": 0.3 * i,
            "improvement": 0.05 * i - 0.08,
            "ci_low": 0.05 * i - 0.1,
            "ci_high": 0.05 * i - 0.06,
            "n": 1234,
        }
        for i in range(1, 11)
    ]
    return {
        "n_texts": 120,
        "n_tokens": 12340,
        "loss": {"no_thought": 1.2345, "thought": 1.0},
        "perplexity": {"no_thought": 3.437, "thought": 2.718},
        "improvement": {"mean": 0.2345, "ci_low": 0.2, "ci_high": 0.27},
        "mixing_weight": 0.4,
        "deciles": deciles,
    }


def train() -> dict:
    return {
        "steps": 60,
        "working_share": {"first": 0.4, "last": 0.95},
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
            "text_tokens_per_second": 5000.0,
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


def tokens() -> pd.DataFrame:
    rows = [(text, i, token) for text in (0, 1, 2) for i, token in enumerate(TOKENS * 6, start=1)]
    table = pd.DataFrame(rows, columns=["text", "position", "token"])
    table["nll_no_thought"] = 1.5 + np.cos(table.index) * 1.4
    table["nll_thought"] = table["nll_no_thought"] - np.sin(table.index * 1.3 + 1) ** 3
    table["weight"] = 0.25
    table["thought"] = [f"a primate lives in text {text} {HOSTILE}\n" for text in table["text"]]
    return table.sample(frac=1, random_state=0)


def predictions() -> pd.DataFrame:
    rows = [
        {
            "task": task,
            "index": index,
            "prompt": f"Q: Question {index} of {task}? {HOSTILE}\n(A) trees\n(B) ponds\nA:",
            "answer": "A",
            "thought": f" thought {index} of {task} {HOSTILE}",
            "prob_no_thought": 0.5,
            "prob_thought": 0.5 + (index - 2) * 0.1,
            "predicted_no_thought": None,
            "predicted_thought": "A" if index > 2 else "B",
            "correct_no_thought": False,
            "correct_thought": index > 2,
        }
        for task in ("gsm8k", "commonsense_qa")
        for index in range(6)
    ]
    return pd.DataFrame(rows)
