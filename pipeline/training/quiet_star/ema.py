"""The absolute information gain of RLP (2025, arXiv 2510.01265): thoughts against averaged weights without thoughts."""

from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback

from pipeline.thought.head import HeadLosses
from pipeline.thought.layout import ahead
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.objective import Losses, lookahead_targets

FILE = "ema.pt"  # in a checkpoint


class Ema(TrainerCallback):
    """The weights of ``model`` averaged over optimizer steps, with this ``decay``; nothing that is trained reads them.

    A checkpoint holds those that are trained.
    """

    def __init__(self, model: QuietStarForCausalLM, decay: float):
        self._model = model
        self._averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)).eval()
        self._averaged.update_parameters(model)  # the first time it copies them

    def on_optimizer_step(self, args, state, control, **kwargs) -> None:
        self._averaged.update_parameters(self._model)

    @torch.no_grad()
    def gains(self, inputs: dict[str, Tensor], losses: Losses, attention: str) -> Tensor:
        """log p(x | thought) - log p_ema(x) in nats, over the A tokens after each rewarded position: (B, R, N-1-A)."""
        averaged: QuietStarForCausalLM = self._averaged.module
        rewarded, lookahead = losses.reward.shape[2], self._model.lookahead  # the stage's
        text = averaged.thinker.read(inputs["input_ids"], inputs["attention_mask"], attention=attention)
        targets = lookahead_targets(inputs["labels"], 1)[..., 0]
        weights = torch.zeros_like(targets, dtype=losses.reward.dtype)
        _, nll = HeadLosses(averaged.decoder.head).cross_entropy("base", text.hidden, targets, weights)
        without = ahead(nll, lookahead, 0)[:, :rewarded].sum(-1)
        return without.unsqueeze(1) - losses.talk_nll[:, :, :rewarded].sum(-1)

    def save(self, checkpoint: Path) -> None:
        trained = {name for name, parameter in self._model.named_parameters() if parameter.requires_grad}
        averaged = self._averaged.module.named_parameters()
        torch.save({name: p.detach() for name, p in averaged if name in trained}, checkpoint / FILE)

    def load(self, checkpoint: Path) -> None:
        weights = torch.load(checkpoint / FILE, map_location="cpu", weights_only=True)
        self._averaged.module.load_state_dict(weights, strict=False)
