"""The pass over held-out text: every token's loss with a thought before it and without."""

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from pipeline.data.spans import Spans
from pipeline.errors import UserError
from pipeline.evaluation.perplexity.kinds import TokenReader
from pipeline.params import Perplexity
from pipeline.resume import Scratch
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.sampler import Sampling, Thoughts


def token_table(
    params: Perplexity, model: QuietStarForCausalLM, tokenizer: PreTrainedTokenizerBase, spans: Spans, scratch: Scratch
) -> pd.DataFrame:
    """One row a predicted token, in reading order: every token of ``spans`` but the first of each text.

    Columns: text (its number in ``spans``), position (in the text, from 1), token (as it stands in the text), kind,
    nll_no_thought and nll_thought (nats), weight (the mixing weight), thought (the one before the token, "" where the
    method samples none). Batches that ``scratch`` has, a row each, are not computed again. Raises UserError where the
    model's losses are not numbers.
    """
    sampling, reader = Sampling(params.thought_temperature, params.seed), TokenReader(tokenizer)
    left = range(min(len(scratch.rows) * params.batch_size, len(spans)), len(spans))
    loader = DataLoader(Subset(spans, left), batch_size=params.batch_size)
    for batch in tqdm(loader, desc="perplexity", unit=" batches", mininterval=2):
        scratch.add([_batch_columns(model, reader, batch, sampling)])
    tokens = pd.concat(map(pd.DataFrame, scratch.rows), ignore_index=True)
    if not np.isfinite(tokens[["nll_no_thought", "nll_thought", "weight"]].to_numpy()).all():
        raise UserError("the trained model's losses on held-out text are not finite: lower the learning rate")
    return tokens


@torch.no_grad()
def _batch_columns(
    model: QuietStarForCausalLM, reader: TokenReader, batch: dict[str, Tensor], sampling: Sampling
) -> dict[str, list]:
    ids, mask, keys = (batch[name].to(model.device) for name in ("input_ids", "attention_mask", "text_keys"))
    output = model(ids, mask, sampling=sampling, text_keys=keys)
    predicted = mask[:, 1:].bool()
    row, position = predicted.nonzero(as_tuple=True)
    texts = [
        text[length > 0].tolist() for text, length in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    return {
        "text": keys[row].tolist(),
        "position": (position + 1).tolist(),
        "token": [reader.text(token) for ids in texts for token in ids[1:]],
        "kind": [kind for ids in texts for kind in reader.kinds(ids)[1:]],
        "nll_no_thought": _losses(output.base_logits, ids, predicted),
        "nll_thought": _losses(output.logits, ids, predicted),
        "weight": output.weight[:, :-1][predicted].double().tolist(),
        "thought": _thought_texts(output.thoughts, predicted, reader),
    }


def _losses(logits: Tensor, ids: Tensor, predicted: Tensor) -> list[float]:
    """The loss in nats of each predicted token, from the logits (B, N, V) before it."""
    losses = F.cross_entropy(logits[:, :-1].float().mT, ids[:, 1:], reduction="none")
    return losses[predicted].double().tolist()


def _thought_texts(thoughts: Thoughts | None, predicted: Tensor, reader: TokenReader) -> list[str]:
    if thoughts is None:
        return [""] * int(predicted.sum())
    return [reader.decode(ids) for ids in thoughts.ids[:, 0, :-1][predicted].tolist()]
