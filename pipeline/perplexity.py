"""Where does thinking help? The loss of every token of held-out text, with thoughts and without."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from pipeline.bootstrap import interval
from pipeline.files import write_json, write_table
from pipeline.loop import Spans, pick_device, read_tokenizer
from pipeline.params import Perplexity
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.sampler import Sampling
from pipeline.trained import load_trained

DECILES = 10


def write_perplexity(params: Perplexity, trained: Path, heldout: Path, results: Path) -> None:
    """Write a row a token (tokens.parquet), the improvement by decile (deciles.csv) and the means (metrics.json)."""
    model = load_trained(trained).to(pick_device(params.device))
    tokenizer = read_tokenizer(trained)
    tokens = token_table(params, model, tokenizer, Spans(heldout, params.texts))
    write_table(results / "tokens.parquet", tokens)
    metrics = summary(tokens, params)
    write_table(results / "deciles.csv", pd.DataFrame(metrics["deciles"]))
    write_json(results / "metrics.json", metrics)


def token_table(
    params: Perplexity, model: QuietStarForCausalLM, tokenizer: PreTrainedTokenizerBase, spans: Spans
) -> pd.DataFrame:
    """One row a predicted token: text, position, token, both losses in nats, mixing weight, the thought before it."""
    sampling = Sampling(params.thought_temperature, params.seed)
    loader = DataLoader(spans, batch_size=params.batch_size)
    rows = [
        row
        for batch in tqdm(loader, desc="perplexity", unit=" batches", mininterval=2)
        for row in _token_rows(model, tokenizer, batch, sampling)
    ]
    return pd.DataFrame(rows)


@torch.no_grad()
def _token_rows(
    model: QuietStarForCausalLM, tokenizer: PreTrainedTokenizerBase, batch: dict, sampling: Sampling
) -> Iterator[dict]:
    ids, mask, keys = (batch[name].to(model.device) for name in ("input_ids", "attention_mask", "text_keys"))
    output = model(ids, mask, sampling=sampling, text_keys=keys)
    losses = [
        F.cross_entropy(x[:, :-1].float().mT, ids[:, 1:], reduction="none") for x in (output.base_logits, output.logits)
    ]
    for text, position in mask[:, 1:].nonzero().tolist():
        yield {
            "text": int(keys[text]),
            "position": position + 1,
            "token": tokenizer.decode(ids[text, position + 1]),
            "nll_no_thought": losses[0][text, position].item(),
            "nll_thought": losses[1][text, position].item(),
            "weight": output.weight[text, position].item(),
            "thought": tokenizer.decode(output.thoughts.ids[text, 0, position]),
        }


def summary(tokens: pd.DataFrame, params: Perplexity) -> dict:
    """Mean losses and perplexities, and the improvement in nats with its interval over texts, in all and by decile."""
    means = {"no_thought": tokens["nll_no_thought"].mean(), "thought": tokens["nll_thought"].mean()}
    tokens = tokens.assign(improvement=tokens["nll_no_thought"] - tokens["nll_thought"])
    rank = tokens["nll_no_thought"].rank(method="first")
    decile = np.ceil(rank * DECILES / len(tokens)).astype(int)
    return {
        "n_texts": int(tokens["text"].nunique()),
        "n_tokens": len(tokens),
        "loss": {way: float(value) for way, value in means.items()},
        "perplexity": {way: float(np.exp(value)) for way, value in means.items()},
        "improvement": _improvement(tokens, params),
        "mixing_weight": float(tokens["weight"].mean()),
        "deciles": [
            {
                "decile": int(number),
                "base_loss": float(group["nll_no_thought"].mean()),
                **_improvement(group, params, name="improvement"),
                "n": len(group),
            }
            for number, group in tokens.groupby(decile)
        ],
    }


def _improvement(tokens: pd.DataFrame, params: Perplexity, name: str = "mean") -> dict[str, float]:
    """The mean improvement; its interval draws whole texts, as tokens of one text go together."""
    by_text = tokens.groupby("text")["improvement"].agg(["sum", "count"])
    low, high = interval(by_text["sum"].to_numpy(), by_text["count"].to_numpy(), params.bootstrap_samples, params.seed)
    return {name: float(tokens["improvement"].mean()), "ci_low": low, "ci_high": high}
