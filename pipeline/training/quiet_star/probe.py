"""Do thoughts hold the working? Asked where it is known: at the end of prompts of the micro-world."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pipeline.files import read_rows
from pipeline.models.prompts import left_padded, prompt_ids
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.sampler import Sampling

WORKING_SHARE = "working_share"
PROMPTS_AT_ONCE = 256


@dataclass(frozen=True)
class Probe:
    """Prompts (B, N, padded on the left), and for each the working that a thought at its end may hold."""

    input_ids: Tensor
    attention_mask: Tensor
    workings: list[str]
    tasks: list[str]
    tokenizer: PreTrainedTokenizerBase
    rationales: int

    def thoughts(self, model: QuietStarForCausalLM, sampling: Sampling) -> list[list[str]]:
        """The texts of the thoughts sampled at each prompt's end."""
        thinker, found = model.thinker, []
        last = torch.tensor([self.input_ids.shape[1] - 1], device=model.device)
        for keys in torch.arange(len(self.input_ids)).split(PROMPTS_AT_ONCE):
            ids, mask = self.input_ids[keys].to(model.device), self.attention_mask[keys].to(model.device)
            text = thinker.read(ids, mask, keys.to(model.device))
            sampled = thinker.sample(text, last, self.rationales, sampling).ids[:, :, 0]
            found += [self.tokenizer.batch_decode(thoughts) for thoughts in sampled]
        return found

    def shares(self, model: QuietStarForCausalLM, seed: int) -> dict[str, float]:
        """The share of thoughts, sampled at temperature 1, that hold their prompt's working: of all, and by task."""
        texts = self.thoughts(model, Sampling(seed=seed))
        held = pd.DataFrame(
            [[working in text for text in some] for working, some in zip(self.workings, texts, strict=True)]
        ).mean(axis=1)
        by_task = held.groupby(self.tasks).mean()
        return {WORKING_SHARE: float(held.mean())} | {
            f"{WORKING_SHARE}_{task}": float(by_task[task]) for task in by_task.index
        }


def read_probe(path: Path, tokenizer: PreTrainedTokenizerBase, rationales: int) -> Probe | None:
    """The corpus's probe, None if it has none."""
    rows = list(read_rows(path))
    if not rows:
        return None
    prompts = [prompt_ids(tokenizer, row["prompt"]) for row in rows]
    ids, mask = left_padded(prompts, tokenizer.pad_token_id, torch.device("cpu"))
    workings = [row["working"] for row in rows]
    tasks = [row["task"] for row in rows]
    return Probe(ids, mask, workings, tasks, tokenizer, rationales)
