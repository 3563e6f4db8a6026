"""One training step after the text has been read: think, talk and learn, a slice of positions at a time.

The other methods are this one with something left out: pauses are rows that nobody samples, and have no policy; without
thoughts there is the base loss alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .head import Group, HeadLosses, exact_dtype
from .layout import ahead
from .objective import (
    Counts,
    Losses,
    advantages,
    base_weights,
    lookahead_targets,
    rewarded_positions,
    talk_weights,
    thought_rewards,
)
from .sampler import Sampling, Thoughts
from .slices import slices_of, sum_over
from .views import TextView

if TYPE_CHECKING:
    from .model import QuietStarForCausalLM


@dataclass(frozen=True)
class Engine:
    """How a step is computed. Whatever it says, the results are the same but for rounding.

    ``attention``: auto, reference, blocked or flex (`attention.pick`). ``positions``: how many positions of every text
    think at a time, their gradients accumulated; None: all. Fewer take less memory.
    """

    attention: str = "auto"
    positions: int | None = None


DEFAULT_ENGINE = Engine()


@dataclass(frozen=True)
class Learned:
    """The losses, the mixing weights (B, R, N, A), and the thoughts where they were sampled."""

    losses: Losses
    weight: Tensor
    thoughts: Thoughts | None


@dataclass(frozen=True)
class Report:
    """Of a slice of p positions, q of them rewarded, without gradients: ``base_nll`` (B, 1, p); ``talk_nll`` and
    ``weight`` (B, R, p, A); ``reward`` and ``advantage`` (B, R, q), ``log_probs`` (B, R, q, K)."""

    base_nll: Tensor
    talk_nll: Tensor
    weight: Tensor
    reward: Tensor
    advantage: Tensor
    log_probs: Tensor


def learn(
    model: "QuietStarForCausalLM",
    hidden: Tensor,
    text: TextView,
    input_ids: Tensor,
    labels: Tensor,
    thought_ids: Tensor | None,
    sampling: Sampling,
    text_keys: Tensor | None,
    counts: Counts,
    engine: Engine,
) -> Learned:
    """The loss of ``labels`` (B, N) given the text's states ``hidden`` (B, N, D); as `QuietStarForCausalLM.forward`."""
    slices = slices_of(input_ids.shape[1], engine.positions)
    thoughts = None
    if thought_ids is None and model.samples_thoughts:
        some = [
            model.think(text, _range(hidden, part), model.config.rationales, sampling, text_keys) for part in slices
        ]
        thoughts = Thoughts(torch.cat([t.ids for t in some], 2), torch.cat([t.entropy for t in some], 2))
    ids = thought_ids if thoughts is None else thoughts.ids
    rows = model.embed_thoughts(_range(hidden, slice(0, input_ids.shape[1])), ids, input_ids, model.layout)
    losses = _SliceLosses(model, text, labels, ids, rows.shape[1], counts, sampled=thoughts is not None)
    total, reports = sum_over(slices, losses.run, rows, [hidden, *text.tensors()], list(model.parameters()))
    report = Report(**{f.name: torch.cat([getattr(r, f.name) for r in reports], dim=2) for f in fields(Report)})
    return Learned(losses.summary(losses.head.attach(total), report), report.weight, thoughts)


def learn_text(model: "QuietStarForCausalLM", hidden: Tensor, labels: Tensor, counts: Counts) -> Losses:
    """Continued pretraining: the base loss of ``labels`` (B, N) given the text's states ``hidden`` (B, N, D).

    The talk loss, that of the method's own prediction, is the same; what belongs to thoughts is empty (R = 0).
    """
    targets, head = lookahead_targets(labels, 1)[..., 0], HeadLosses(model.decoder.head)
    weights = base_weights(targets.unsqueeze(-1), counts, exact_dtype(hidden))
    loss, (nll,) = head.losses([Group(hidden, targets, lambda _: weights)])
    base, none = (nll * weights).sum(), nll.new_zeros(len(labels), 0, 0, 0)
    return Losses(
        total=head.attach(loss),
        base=base,
        talk=base,
        policy=torch.zeros_like(base),
        base_nll=nll,
        talk_nll=none,
        reward=none.flatten(2),
        advantage=none.flatten(2),
        log_probs=none,
    )


def _range(like: Tensor, part: slice) -> Tensor:
    return torch.arange(part.start, part.stop, device=like.device)


class _SliceLosses:
    """The losses of a slice of positions: base and talk loss, and REINFORCE on the thoughts there."""

    def __init__(
        self,
        model: "QuietStarForCausalLM",
        text: TextView,
        labels: Tensor,
        ids: Tensor | None,
        rationales: int,
        counts: Counts,
        sampled: bool,
    ):
        config, dtype = model.config, exact_dtype(model.start_embedding)
        self._model, self._text, self._ids, self._sampled = model, text, ids, sampled
        self.head = HeadLosses(model.decoder.head)
        self._targets = lookahead_targets(labels, config.lookahead)
        self._rewarded = rewarded_positions(labels.shape[1], config.lookahead)
        self._base_weights = base_weights(self._targets, counts, dtype)
        self._talk_weights = talk_weights(self._targets, rationales, counts, dtype)
        self._policy_terms = (counts.thoughts * rationales * config.thought_tokens).double().clamp(min=1)

    def run(self, part: slice, rows: Tensor, shared: Sequence[Tensor]) -> tuple[Tensor, Report]:
        """The slice's share of the loss, from its rows' embeddings (B, R, p, T, D).

        ``shared``: the text's states (B, N, D), keys and values.
        """
        model, (hidden, *tensors) = self._model, shared
        layout = model.layout
        rows = model.decoder.run_rows(rows, self._text.holding(tensors), _range(hidden, part))
        base = ahead(hidden, layout.lookahead, fill=0.0)[:, part].unsqueeze(1)
        mixed, weight = model.mixing_head.mix(base, rows[..., layout.talking_outputs, :])
        rewarded = slice(0, max(0, min(part.stop, self._rewarded) - part.start))
        thinking = rows[:, :, rewarded, layout.sampling_outputs]
        groups = [self._base(part, hidden), self._talk(part, mixed)]
        if self._ids is not None:
            groups.append(self._policy(part, thinking))
        loss, (base_nll, talk_nll, *policy_nll) = self.head.losses(groups)
        reward = self._rewards(part, base_nll, talk_nll)[:, :, rewarded]
        base_nll = base_nll[:, None, : part.stop - part.start]
        log_probs = -policy_nll[0] if policy_nll else thinking.new_zeros(thinking.shape[:-1])
        return loss, Report(base_nll, talk_nll, weight.detach(), reward, advantages(reward), log_probs)

    def summary(self, total: Tensor, report: Report) -> Losses:
        """The whole loss and its parts."""
        base_nll = report.base_nll[:, 0]
        gain = (report.advantage.unsqueeze(-1) * report.log_probs).sum()
        return Losses(
            total=total,
            base=(base_nll * self._base_weights).sum(),
            talk=(report.talk_nll * self._talk_weights).sum(),
            policy=-(gain / self._policy_terms).to(gain.dtype),
            base_nll=base_nll,
            talk_nll=report.talk_nll,
            reward=report.reward,
            advantage=report.advantage,
            log_probs=report.log_probs,
        )

    def _base(self, part: slice, hidden: Tensor) -> Group:
        """The slice's positions and, for its last rewards, the A-1 after them, which another slice learns from."""
        seen = slice(part.start, part.stop + self._model.config.lookahead - 1)
        weights = 0.5 * self._base_weights[:, seen]
        weights[:, part.stop - part.start :] = 0
        return Group(hidden[:, seen], self._targets[:, seen, 0], lambda _: weights)

    def _talk(self, part: slice, mixed: Tensor) -> Group:
        targets = self._targets[:, part].unsqueeze(1).expand(mixed.shape[:-1])
        return Group(mixed, targets, lambda _: 0.5 * self._talk_weights[:, :, part])

    def _policy(self, part: slice, thinking: Tensor) -> Group:
        """REINFORCE on the thoughts' tokens, from the states (B, R, q, K, D) that gave them.

        Of sampled thoughts, those without an advantage are left out: they add nothing to the loss.
        """
        config, ids = self._model.config, self._ids[:, :, part][:, :, : thinking.shape[2]]

        def weigh(nlls: Sequence[Tensor]) -> Tensor:
            advantage = advantages(self._rewards(part, *nlls)[:, :, : thinking.shape[2]])
            return (config.policy_weight / self._policy_terms * advantage).unsqueeze(-1).expand(ids.shape)

        temperature, banned = config.policy_temperature, self._model.banned
        return Group(thinking, ids, weigh, temperature, banned, complete=not self._sampled)

    def _rewards(self, part: slice, base_nll: Tensor, talk_nll: Tensor) -> Tensor:
        base = ahead(base_nll, talk_nll.shape[-1], fill=0.0)[:, : part.stop - part.start]
        return thought_rewards(base, talk_nll)
