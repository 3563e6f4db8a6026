"""One training step after the text has been read: think, talk and learn, a slice of positions at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from .head import IGNORED, HeadLosses
from .layout import ahead
from .objective import (
    NOTHING,
    SAMPLED,
    Counts,
    Losses,
    Objective,
    SliceStates,
    join,
    lookahead_targets,
    rewarded_positions,
)
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
        thought_ids: Tensor | None = None,
        old: Losses | None = None,
    ) -> tuple[Losses, Thoughts | None]:
        """The losses of ``labels`` (B, N) given a ``text``, and the thoughts where they were sampled.

        ``thought_ids`` (B, R, N, K) replaces sampling; ``old``: the losses of an earlier pass over the same thoughts.
        Raises ValueError for an engine that cannot do what it is asked to.
        """
        slices = slices_of(labels.shape[1], engine.positions)
        if engine.apart and len(slices) > 1:
            raise ValueError("the parts of the loss can be kept apart only where all positions think at once")
        head = HeadLosses(self.thinker.decoder.head, engine.apart)
        targets = lookahead_targets(labels, self.thinker.layout.lookahead)
        if self.objective.thoughts == NOTHING:
            losses = self.objective(SliceStates(text.hidden, targets), counts, head)
            total, parts = head.attach(losses.total, losses.parts)
            return replace(losses, total=total, parts=parts), None

        thoughts, places = None, torch.arange(labels.shape[1], device=labels.device)
        if thought_ids is None and self.objective.thoughts == SAMPLED:
            some = [self.thinker.sample(text, places[part], self.rationales, sampling) for part in slices]
            thoughts = Thoughts(*(torch.cat([getattr(t, f.name) for t in some], 2) for f in fields(Thoughts)))
            thought_ids = thoughts.ids
        layout, lookahead = self.thinker.layout, self.thinker.layout.lookahead
        rows = self.thinker.embed_rows(text.input_ids, places, thought_ids, layout)
        lengths = self.thinker.lengths(thought_ids)
        if lengths is not None:  # a thought's policy term ends with the draw that ended it
            after = torch.arange(layout.thought_tokens, device=labels.device) > lengths.unsqueeze(-1)
            thought_ids = thought_ids.masked_fill(after, IGNORED)

        def losses_of(part: slice, rows: Tensor, shared: Sequence[Tensor]) -> tuple[Tensor, Losses]:
            """A slice's losses, from its rows' embeddings and the text's states (B, N, D), keys and values."""
            hidden, *cache = shared
            rows = self.thinker.decoder.run_rows(rows, text.view.with_tensors(cache), places[part])
            talking = layout.talking(rows, None if lengths is None else lengths[:, :, part])
            base = ahead(hidden, lookahead, fill=0.0)[:, part].unsqueeze(1)
            mixed, weight = self.thinker.mixing_head.mix(base, talking)
            rewarded = min(part.stop, rewarded_positions(labels.shape[1], lookahead)) - part.start
            rewarded = slice(0, max(0, rewarded))
            seen = slice(part.start, part.stop + lookahead - 1)
            states = SliceStates(
                base=hidden[:, seen],
                targets=targets[:, seen],
                mixed=mixed,
                weight=weight,
                thinking=rows[:, :, rewarded, layout.sampling_outputs],
                ids=None if thought_ids is None else thought_ids[:, :, part][:, :, rewarded],
                sampled=thoughts is not None,
                old_log_probs=None if old is None else old.log_probs[:, :, part],
            )
            losses = self.objective(states, counts, head)
            if len(slices) == 1:
                return losses.total, losses
            parts = {name: loss.detach() for name, loss in losses.parts.items()}  # lets go of the slice's activations
            return losses.total, replace(losses, total=losses.total.detach(), parts=parts)

        total, some = sum_over(slices, losses_of, rows, [text.hidden, *text.view.tensors()], self.parameters)
        parts = {name: sum(losses.parts[name] for losses in some) for name in some[0].parts}
        return join(some, *head.attach(total, parts)), thoughts
