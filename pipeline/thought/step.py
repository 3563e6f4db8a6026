"""One training step after the text has been read: think, talk and learn, a slice of positions at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .head import IGNORED, HeadLosses, Mixed
from .layout import ahead, ahead_at
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
class Slots:
    """What is known of the P slots of each text before their rows are run: as in `SliceStates`, with P for p.

    ``lengths`` (B, R, P): the tokens that thoughts keep; None where all are whole.
    """

    places: Places
    at: Tensor
    targets: Tensor
    rewarded: Tensor
    ids: Tensor | None
    lengths: Tensor | None
    old_log_probs: Tensor | None

    def __getitem__(self, part: slice) -> "Slots":
        by_text = [self.places[part], *(values[:, part] for values in (self.at, self.targets, self.rewarded))]
        by_thought = (self.ids, self.lengths, self.old_log_probs)
        return Slots(*by_text, *(values if values is None else values[:, :, part] for values in by_thought))


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
            some = [self.thinker.sample(text, places[part].positions, self.rationales, sampling) for part in slices]
            thoughts = Thoughts(*(torch.cat([getattr(t, f.name) for t in some], 2) for f in fields(Thoughts)))
            thought_ids = self.objective.exchange(thoughts.ids, places.real)
        rewarded = rewarded_positions(tokens, lookahead)
        slots = self._slots(places, targets, rewarded, thought_ids, old)
        rows = self.thinker.embed_rows(text.input_ids, places.positions, thought_ids, self.thinker.layout)

        def losses_of(part: slice, rows: Tensor, shared: Sequence[Tensor]) -> tuple[Tensor, SliceLosses]:
            """A slice's losses, from its rows' embeddings and the text's states (B, N, D), keys and values."""
            hidden, *cache = shared
            here = replace(text, hidden=hidden, view=text.view.with_tensors(cache))
            losses = self.objective(self._states(here, slots[part], part, rows, thoughts is not None), counts, head)
            if len(slices) == 1:
                return losses.total, losses
            parts = {name: loss.detach() for name, loss in losses.parts.items()}  # lets go of the slice's activations
            return losses.total, replace(losses, parts=parts)

        total, some = sum_over(slices, losses_of, rows, [text.hidden, *text.view.tensors()], self.parameters)
        parts = {"base": loss} | {name: sum(losses.parts[name] for losses in some) for name in some[0].parts}
        losses = join(some, places, tokens, rewarded, *head.attach(loss + total, parts), **known)
        if thoughts is not None:
            thoughts = Thoughts(*(places.spread(getattr(thoughts, f.name), tokens) for f in fields(Thoughts)))
        return losses, thoughts

    def _slots(
        self,
        places: Places,
        targets: Tensor,
        rewarded: int,
        thought_ids: Tensor | None,
        old: Losses | None,
    ) -> Slots:
        """The slots of texts with these targets (B, N, A), whose thoughts are ``thought_ids`` (B, R, P, K).

        Its positions before ``rewarded`` have a reward.
        """
        gets, lengths, ids = places.real & (places.positions < rewarded), self.thinker.lengths(thought_ids), thought_ids
        if ids is not None:
            ids = ids.masked_fill(~gets[:, None, :, None], IGNORED)
        if lengths is not None:  # a thought's policy term ends with the draw that ended it
            after = torch.arange(ids.shape[-1], device=ids.device) > lengths.unsqueeze(-1)
            ids = ids.masked_fill(after, IGNORED)
        everywhere = torch.arange(targets[..., 0].numel(), device=targets.device).view(targets.shape[:2])
        if old is not None:
            log_probs = places.of(F.pad(old.log_probs, (0, 0, 0, targets.shape[1] - rewarded)))
        return Slots(
            places=places,
            at=ahead_at(everywhere, places.positions, targets.shape[-1], fill=0),
            targets=places.of(targets.unsqueeze(1))[:, 0].masked_fill(~places.real.unsqueeze(-1), IGNORED),
            rewarded=gets,
            ids=ids,
            lengths=lengths,
            old_log_probs=None if old is None else log_probs,
        )

    def _states(self, text: Text, slots: Slots, part: slice, rows: Tensor, sampled: bool) -> SliceStates:
        """Run a slice's ``rows``, from their embeddings (B, R, p, T, D)."""
        layout, here = self.thinker.layout, slots.places.positions
        rows = self.thinker.decoder.run_rows(rows, text.view, here)
        if here.ndim == 1:  # positions of all texts are a range, and the gradient of a slice is fast
            base = ahead(text.hidden, layout.lookahead, fill=0.0)[:, part]
        else:
            base = ahead_at(text.hidden, here, layout.lookahead, fill=0.0)
        talk = layout.talking(rows, slots.lengths)
        mixed, weight = self.thinker.mixing_head.mix(base.unsqueeze(1), talk)
        return SliceStates(
            text=text.hidden.flatten(0, 1).detach(),
            at=slots.at,
            targets=slots.targets,
            mixed=Mixed(mixed, talk.detach(), weight),
            rewarded=slots.rewarded,
            thinking=rows[:, :, :, layout.sampling_outputs],
            ids=slots.ids,
            sampled=sampled,
            old_log_probs=slots.old_log_probs,
        )
