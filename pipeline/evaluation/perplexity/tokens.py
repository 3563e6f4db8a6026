"""The passes over held-out text: the loss of every token before training, without thoughts, and after each thought."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import default_collate
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from pipeline.data.spans import Spans
from pipeline.errors import UserError
from pipeline.evaluation.donors import ENDED, as_input, derangement, pooled, random_thoughts, sampled
from pipeline.evaluation.names import BEFORE, NO_THOUGHT, RANDOM, SWAPPED, THOUGHT
from pipeline.evaluation.perplexity.kinds import TokenReader
from pipeline.evaluation.shared import in_turns
from pipeline.params import Perplexity
from pipeline.resume import Scratch
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.sampler import Sampling, entropy
from pipeline.training.processes import is_main

Batch = dict[str, Tensor]
LOSSES = [f"nll_{way}" for way in (BEFORE, NO_THOUGHT, THOUGHT, SWAPPED, RANDOM)]
HOLDS = [f"holds_next{way}" for way in ("", f"_{SWAPPED}", f"_{RANDOM}")]
COLUMNS = ["text", "position", "token", "kind", *LOSSES, "weight", "entropy", "gate", *HOLDS, "thought"]


class Passes:
    """Passes over all spans, a row of ``scratch`` for each batch; the rows that are there are not computed again.

    Several processes take turns at batches, and each has the rows of all.
    """

    def __init__(self, params: Perplexity, spans: Spans, scratch: Scratch):
        self._spans, self._size, self._scratch, self._first = spans, params.batch_size, scratch, 0

    def run(self, name: str, compute: Callable[[Batch], dict]) -> tuple[pd.DataFrame, list]:
        """The columns that ``compute`` gives for each batch, of all batches, and the ``thoughts`` of all texts."""
        done, texts = self._scratch.rows, range(len(self._spans))
        starts = texts[(len(done) - self._first) * self._size :: self._size]

        def row_from(start: int) -> dict:
            return compute(default_collate([self._spans[text] for text in texts[start : start + self._size]]))

        with tqdm(total=len(starts), desc=name, unit=" batches", mininterval=2, disable=not is_main()) as progress:
            for row in in_turns(row_from, starts):
                self._scratch.add([row])
                progress.update()
        tables, thoughts, first = [], [], self._first
        self._first += -(-len(texts) // self._size)
        for place in range(first, self._first):
            row = done[place]
            tables.append(pd.DataFrame(row["columns"]))
            thoughts += map(np.array, row.get("thoughts", ()))
        return pd.concat(tables, ignore_index=True), thoughts


def loss_before(model: QuietStarForCausalLM, passes: Passes) -> pd.DataFrame:
    """The loss (nats) of each predicted token by the ``model`` before training, as column nll_before."""

    @torch.no_grad()
    def compute(batch: Batch) -> dict:
        ids, mask = (batch[name].to(model.device) for name in ("input_ids", "attention_mask"))
        return {"columns": {"nll_before": _losses(model(ids, mask).base_logits, ids, mask)}}

    return passes.run("before training", compute)[0]


def token_table(
    params: Perplexity,
    model: QuietStarForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    before: pd.DataFrame,
    passes: Passes,
) -> pd.DataFrame:
    """A row for each predicted token in reading order, which is every token of the spans but the first of each text.

    Columns: text (its number), position (in the text, from 1), token (its text), kind and losses in nats: nll_before
    (`loss_before`), nll_no_thought and, if the ``model`` has thoughts, nll_thought, weight (the mixing weight), entropy
    (of the prediction without a thought, in nats), gate (the gain in nats that the gate expects, if there is one) and
    thought (the one before the token; "" if the method samples none). If it samples thoughts, also nll_random, after
    thoughts whose tokens are drawn from those of all thoughts, and nll_swapped, after the thoughts of another text
    (where there are several); and holds_next, holds_next_random and holds_next_swapped: whether the token is in the
    thought before it. Raises UserError if losses are not finite.
    """
    sampling, reader = Sampling(params.thought_temperature, params.seed), TokenReader(tokenizer)
    columns, own = passes.run("own thoughts", partial(_own, model, reader, sampling))
    tables = [before, columns]
    if own:
        donors, pool = derangement(range(len(own)), params.seed), pooled(own, model.vocabulary)
        others = {RANDOM: [random_thoughts(ids, pool, params.seed, text) for text, ids in enumerate(own)]}
        if len(own) > 1:
            others[SWAPPED] = [own[donor] for donor in donors]
        tables.append(passes.run("other thoughts", partial(_others, model, others))[0])
    tokens = pd.concat(tables, axis=1)
    tokens = tokens[[name for name in COLUMNS if name in tokens]]
    if not np.isfinite(tokens.select_dtypes("number").to_numpy()).all():
        raise UserError("the losses on held-out text are not finite: lower the learning rate")
    return tokens


@torch.no_grad()
def _own(model: QuietStarForCausalLM, reader: TokenReader, sampling: Sampling, batch: Batch) -> dict:
    """The columns of the pass with the model's own thoughts, and the ``thoughts`` before each text's tokens."""
    ids, mask, keys = (batch[name].to(model.device) for name in ("input_ids", "attention_mask", "text_keys"))
    output = model(ids, mask, sampling=sampling, text_keys=keys)
    predicted = mask[:, 1:].bool()
    row, position = predicted.nonzero(as_tuple=True)
    lengths = mask.sum(1).tolist()
    texts = [text[:length].tolist() for text, length in zip(ids, lengths, strict=True)]
    columns = {
        "text": keys[row].tolist(),
        "position": (position + 1).tolist(),
        "token": [reader.text(token) for text in texts for token in text[1:]],
        "kind": [kind for text in texts for kind in reader.kinds(text)[1:]],
        "nll_no_thought": _losses(output.base_logits, ids, mask),
    }
    thoughts = []
    if model.has_thoughts:
        columns["nll_thought"] = _losses(output.logits, ids, mask)
        columns["weight"] = output.weight[:, :-1][predicted].double().tolist()
        entropies = torch.stack([entropy(logits.float()) for logits in output.base_logits[:, :-1]])
        columns["entropy"] = entropies[predicted].double().tolist()
        columns["thought"] = [""] * len(row)
    if output.gate is not None:
        columns["gate"] = output.gate[:, :-1][predicted].double().tolist()
    if output.thoughts is not None:
        own = sampled(output.thoughts)
        thoughts = [one[: n - 1].tolist() for one, n in zip(own, lengths, strict=True)]
        tokens = ([token for token in thought if token != ENDED] for text in thoughts for thought in text)
        columns["thought"] = [reader.decode(thought) for thought in tokens]
        columns["holds_next"] = _hold_next(own, ids, mask)
    return {"columns": columns, "thoughts": thoughts}


@torch.no_grad()
def _others(model: QuietStarForCausalLM, others: dict[str, list[np.ndarray]], batch: Batch) -> dict:
    """Losses after others' thoughts by way, aligned at each text's start; where there are fewer, they begin again."""
    ids, mask = (batch[name].to(model.device) for name in ("input_ids", "attention_mask"))
    columns, shape = {}, (ids.shape[1], model.config.thought_tokens)
    for way, thoughts in others.items():
        given = np.stack([np.resize(thoughts[text], shape) for text in batch["text_keys"].tolist()])
        thought_ids = as_input(given, model)
        columns[f"nll_{way}"] = _losses(model(ids, mask, thought_ids=thought_ids).logits, ids, mask)
        columns[f"holds_next_{way}"] = _hold_next(given, ids, mask)
    return {"columns": columns}


def _hold_next(thoughts: np.ndarray, ids: Tensor, mask: Tensor) -> list[bool]:
    """Whether the thought (B, N, K) before each predicted token of the texts ``ids`` (B, N) holds that token.

    `ENDED` is no token, so a thought does not hold the token that ended it.
    """
    held = (torch.from_numpy(thoughts[:, :-1]).to(ids.device) == ids[:, 1:, None]).any(-1)
    return held[mask[:, 1:].bool()].tolist()


def _losses(logits: Tensor, ids: Tensor, mask: Tensor) -> list[float]:
    """The loss in nats of each predicted token of the texts ``ids`` (B, N), from the logits (B, N, V) before it."""
    losses = F.cross_entropy(logits[:, :-1].float().mT, ids[:, 1:], reduction="none")
    return losses[mask[:, 1:].bool()].double().tolist()
