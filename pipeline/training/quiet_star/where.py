"""Where a training step thinks (`train.thinking`): at which positions of its texts."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pipeline.data.marker import follow_marker
from pipeline.data.spans import Spans
from pipeline.errors import UserError
from pipeline.params import Thinking
from pipeline.thought.layout import text_position_ids
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.objective import lookahead_targets, rewarded_positions
from pipeline.thought.places import likeliest, thinking
from pipeline.thought.sampler import uniforms

EVERY = "every"
LOOKED_AT = 200  # texts
GATE, EXPLORED = "gate", 0.5  # the share of the gate's positions that are chosen at random
ROUNDING = 1e-6
DRAW = -2  # the step in the draws of positions; those of thoughts are 0 .. K-1, of written text -1


@dataclass(frozen=True)
class Where:
    """Chooses positions. What it draws depends on the seed and on the text alone, not on the rest of the batch.

    It never looks at the tokens that a position predicts: a choice by the realised loss would have seen the target.
    """

    params: Thinking
    tokenizer: PreTrainedTokenizerBase
    _last: dict[int, bool] = field(default_factory=dict)  # whether a token may be the last of a marker

    def thinks(self, model: QuietStarForCausalLM, batch: dict[str, Tensor], seed: int) -> Tensor:
        """The positions (B, N) of a batch's texts at which the model thinks; only some that have a true next token."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        wanted = thinking(lookahead_targets(batch["labels"], model.lookahead), None)
        if self.params.where == "marker":
            return wanted & self._follow_marker(ids)
        if self.params.where == "entropy":
            scores = model.entropies(ids, mask)
        else:
            scores = uniforms(seed, batch["text_keys"], 1, text_position_ids(mask, ids), DRAW)[:, 0]
        if self.params.where == GATE:  # or it would never learn of positions that it has once rated low
            explored = scores < EXPLORED * self.params.share
            scores = model.gate_scores(ids, mask).masked_fill(explored, torch.inf)
        possible = wanted.sum(1)
        counts = possible.clamp(max=1) if self.params.where == "one" else share_of(possible, self.params.share)
        return likeliest(scores, wanted, counts)

    def check(self, texts: Spans, lookahead: int) -> None:
        """Raise UserError if no thought after the marker would be rewarded in the first ``texts``."""
        if self.params.where != "marker":
            return
        some = [texts[i] for i in range(min(len(texts), LOOKED_AT))]
        ids, labels = (torch.stack([text[name] for text in some]) for name in ("input_ids", "labels"))
        follow, told = self._follow_marker(ids), f"train.thinking.marker is {self.params.marker!r}, but"
        if not follow.any():
            raise UserError(
                f"{told} no token of the first {len(some)} training texts ends with it: choose another, or "
                "train.thinking.where random"
            )
        wanted = thinking(lookahead_targets(labels, lookahead), None) & follow
        if not wanted[:, : rewarded_positions(ids.shape[1], lookahead)].any():
            raise UserError(
                f"{told} in the first {len(some)} training texts always within the last {lookahead + 1} positions, "
                "where no thought is rewarded: make tokenize.span larger or train.lookahead smaller"
            )

    def _follow_marker(self, ids: Tensor) -> Tensor:
        return follow_marker(ids, self.params.marker, self.tokenizer, self._last)


def share_of(counts: Tensor, share: float) -> Tensor:
    """``share`` of the ``counts``, rounded up; what is above a whole number by the product's rounding alone is not."""
    return (share * counts.double() - ROUNDING).ceil()
