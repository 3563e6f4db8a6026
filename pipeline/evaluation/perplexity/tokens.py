"""The pass over held-out text: the loss of every token with a thought before it and without."""

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
from pipeline.thought.sampler import Sampling


def token_table(
    params: Perplexity, model: QuietStarForCausalLM, tokenizer: PreTrainedTokenizerBase, spans: Spans, scratch: Scratch
) -> pd.DataFrame:
    """A row for each predicted token in reading order, which is every token of ``spans`` but the first of each text.

    Columns: text (its number in ``spans``), position (in the text, from 1), token (its text), kind, nll_no_thought and
    nll_thought (nats), weight (the mixing weight), thought (the one before the token; "" if the method samples none).
    ``scratch`` keeps a row for each batch, which is not computed again. Raises UserError if losses are not finite.
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

    def losses(logits: Tensor) -> list[float]:
        """The loss in nats of each predicted token, from the logits (B, N, V) before it."""
        return F.cross_entropy(logits[:, :-1].float().mT, ids[:, 1:], reduction="none")[predicted].double().tolist()

    thoughts = [""] * len(row)
    if output.thoughts is not None:
        thoughts = [reader.decode(some) for some in output.thoughts.ids[:, 0, :-1][predicted].tolist()]
    lengths = batch["attention_mask"].sum(1)
    texts = [text[:length].tolist() for text, length in zip(batch["input_ids"], lengths, strict=True)]
    return {
        "text": keys[row].tolist(),
        "position": (position + 1).tolist(),
        "token": [reader.text(token) for text in texts for token in text[1:]],
        "kind": [kind for text in texts for kind in reader.kinds(text)[1:]],
        "nll_no_thought": losses(output.base_logits),
        "nll_thought": losses(output.logits),
        "weight": output.weight[:, :-1][predicted].double().tolist(),
        "thought": thoughts,
    }
