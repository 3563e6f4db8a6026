"""One training step after the text has been read: think, talk and learn, a slice of positions at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .head import IGNORED, HeadLosses, Mixed
from .layout import ahead, at
from .objective import (
    NOTHING,
    SAMPLED,
    Counts,
    Losses,
    Objective,
    SliceLosses,
    SliceStates,
    join,
    lookahead_targets,
    rewarded_positions,
    without_thoughts,
)
from .places import Places, places_of
from .rows import Packing
from .sampler import Sampling, Thoughts
from .slices import slices_of, sum_over
from .thinking import Text, Thinker


@dataclass(frozen=True)
class Engine:
    """How a step is computed; results differ by rounding only.

    ``attention``: auto, reference, blocked or flex (`attention.pick`). ``positions``: how many positions of every text
    think at a time, their gradients accumulated; None: all. Fewer take less memory. ``apart``: each part of the loss
    gets its own gradient, to be weighed or clipped apart from the others, at the price of one more gradient of the LM
    head for each part; it needs all positions at a time.
    """

    attention: str = "auto"
    positions: int | None = None
    apart: bool = False


DEFAULT_ENGINE = Engine()


@dataclass(frozen=True)
class Batch:
    """What is known of a batch before the rows of its thoughts are run: its ``text`` and where it thinks, ``places``.

    ``targets`` (B, N, A); the first ``rewarded`` positions have a reward. ``ids`` (B, R, P, K): the thoughts in the
    slots, None for pauses; ``sampled``: whether they were drawn just now. ``old``: an earlier pass, or None.
    """

    text: Text
    places: Places
    targets: Tensor
    rewarded: int
    ids: Tensor | None
    sampled: bool
    old: Losses | None

    def states(self, thinker: Thinker, part: slice, rows: Tensor, shared: Sequence[Tensor]) -> SliceStates:
        """Run a slice's ``rows``, from their embeddings (B, R, p, T, D) and the text's states (B, N, D), keys, values.

        Only slots that think are run, packed; the rest of the result is 0.
        """
        (hidden, *cache), layout, places = shared, thinker.layout, self.places[part]
        packing, view = Packing.of(places.real, rows.shape[1]), self.text.view.with_tensors(cache)
        ids = None if self.ids is None else self.ids[:, :, part]
        lengths = thinker.lengths(ids)
        rows = thinker.decoder.run_rows(packing.pack(rows), view, places.positions, packing)
        talk = layout.talking(rows, None if lengths is None else packing.pack(lengths))
        base = packing.pack(ahead(hidden, layout.lookahead, 0.0, places.positions).unsqueeze(1))
        mixed, weight = map(packing.unpack, thinker.mixing_head.mix(base, talk))

        rewarded = places.real & (places.positions < self.rewarded)
        if ids is not None:
            ids = ids.masked_fill(~rewarded[:, None, :, None], IGNORED)
        if lengths is not None:  # a thought's policy term ends with the draw that ended it
            after = torch.arange(ids.shape[-1], device=ids.device) > lengths.unsqueeze(-1)
            ids = ids.masked_fill(after, IGNORED)
        old, (texts, tokens, lookahead) = self.old, self.targets.shape
        everywhere = torch.arange(texts * tokens, device=hidden.device).view(texts, tokens)
        return SliceStates(
            text=hidden.flatten(0, 1).detach(),
            live=hidden.flatten(0, 1),
            at=ahead(everywhere, lookahead, 0, places.positions),
            targets=at(self.targets, places.positions).masked_fill(~places.real.unsqueeze(-1), IGNORED),
            mixed=Mixed(mixed, packing.unpack(talk.detach()), weight),
            rewarded=rewarded,
            thinking=packing.unpack(rows[:, layout.sampling_outputs]),
            ids=ids,
            lengths=torch.zeros_like(weight[..., 0]) if lengths is None else lengths * rewarded.unsqueeze(1),
            sampled=self.sampled,
            old_log_probs=old and places.of(F.pad(old.log_probs, (0, 0, 0, tokens - self.rewarded))),
            old_advantage=old and places.of(F.pad(old.advantage, (0, tokens - self.rewarded))),
        )


@dataclass(frozen=True)
class Learner:
    """Computes the losses of a training step. ``parameters`` are all that may receive gradients."""

    thinker: Thinker
    objective: Objective
    rationales: int
    parameters: Sequence[nn.Parameter]

    def learn(
        self,
        text: Text,
        labels: Tensor,
        counts: Counts,
        sampling: Sampling,
        engine: Engine,
        thinks: Tensor | None = None,
        thought_ids: Tensor | None = None,
        old: Losses | None = None,
    ) -> tuple[Losses, Thoughts | None]:
        """The losses of ``labels`` (B, N) given a ``text``, and the thoughts where they were sampled.

        The text may have fewer tokens than there are labels: those left out are padding. ``thinks`` (B, N): where to
        think; None: everywhere. ``thought_ids`` (B, R, N, K) replaces sampling; ``old``: the losses of an earlier pass
        over the same thoughts. Raises ValueError for an engine that cannot do what it is asked to.
        """
        tokens, read, lookahead = labels.shape[1], text.hidden.shape[1], self.thinker.layout.lookahead
        head = HeadLosses(self.thinker.decoder.head, engine.apart)
        targets = lookahead_targets(labels[:, :read], lookahead)
        loss, base, base_nll = self.objective.language_modelling(text.hidden, targets[..., 0], counts, head)
        known = {"base": base, "base_nll": F.pad(base_nll, (0, tokens - read))}
        if self.objective.thoughts == NOTHING:
            return without_thoughts(*head.attach(loss, {"base": loss}), **known), None

        places = places_of(targets, None if thinks is None else thinks[:, :read])
        slices = slices_of(places.real.shape[1], engine.positions)
        if engine.apart and len(slices) > 1:
            raise ValueError("the parts of the loss can be kept apart only where all positions think at once")
        thoughts = None
        if thought_ids is not None:
            thought_ids = places.of(thought_ids)
        elif self.objective.thoughts == SAMPLED:
            thoughts = self._sampled(text, [places[part] for part in slices], sampling)
            thought_ids = self.objective.exchange(thoughts.ids, places.real)
        rewarded = rewarded_positions(tokens, lookahead)
        batch = Batch(text, places, targets, rewarded, thought_ids, thoughts is not None, old)
        rows = self.thinker.embed_rows(text.input_ids, places.positions, thought_ids, self.thinker.layout)

        def losses_of(part: slice, rows: Tensor, shared: Sequence[Tensor]) -> tuple[Tensor, SliceLosses]:
            losses = self.objective(batch.states(self.thinker, part, rows, shared), counts, head)
            if len(slices) == 1:
                return losses.total, losses
            parts = {name: loss.detach() for name, loss in losses.parts.items()}  # lets go of the slice's activations
            return losses.total, replace(losses, parts=parts)

        total, some = sum_over(slices, losses_of, rows, [text.hidden, *text.view.tensors()], self.parameters)
        parts = {"base": loss} | {name: sum(losses.parts[name] for losses in some) for name in some[0].parts}
        losses = join(some, places, tokens, rewarded, *head.attach(loss + total, parts), **known)
        if self.thinker.gate is not None:
            losses = losses.plus("gate", self.thinker.gate.loss(text.hidden, targets, losses, counts), engine.apart)
        if thoughts is not None:
            thoughts = thoughts.each(lambda values: places.spread(values, tokens))
        return losses, thoughts

    def _sampled(self, text: Text, slices: Sequence[Places], sampling: Sampling) -> Thoughts:
        """Thoughts drawn at the places of all ``slices``, a slice at a time."""
        some = [self.thinker.sample(text, part.positions, self.rationales, sampling, part.real) for part in slices]
        return Thoughts(*(torch.cat([getattr(thoughts, f.name) for thoughts in some], 2) for f in fields(Thoughts)))
