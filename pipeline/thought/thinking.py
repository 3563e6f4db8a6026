"""Think and talk: thoughts after a text's positions, and the states at their ends (paper, sections 4.2 and 4.3)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .decoder import Decoder
from .gate import Gate
from .layout import Layout, ahead, at
from .mixing import MixingHead
from .rows import Packing
from .sampler import Sampling, Thoughts, sample
from .views import KeyValueCache, TextView


@dataclass(frozen=True)
class Text:
    """A batch of texts that the decoder has read.

    ``input_ids`` (B, N); ``hidden`` (B, N, D), the states of the text pass; ``view``, through which thoughts see the
    text; ``text_keys`` (B,), numbers that name the texts in their random draws, so that a draw does not depend on what
    else is in the batch.
    """

    input_ids: Tensor
    hidden: Tensor
    view: TextView
    text_keys: Tensor


@dataclass(frozen=True)
class Thinker:
    """A ``decoder``, a mixing head and the embeddings of [start], [end] and pauses, multiplied by meta_token_scale.

    ``mixing_head``, ``start`` and ``end`` (D,): None where nothing thinks. ``pauses`` (K, D): learned tokens in the
    place of sampled ones, None where thoughts are sampled. ``banned`` ids are never written, ``banned_in_thoughts``
    never sampled in a thought. ``endings``: ids that end a thought; none where each has K tokens. ``gate``: says where
    to think, None without one: where it expects a gain above ``threshold``. It owns no weights.
    """

    decoder: Decoder
    layout: Layout
    mixing_head: MixingHead | None
    start: Tensor | None
    end: Tensor | None
    pauses: Tensor | None
    banned: list[int]
    banned_in_thoughts: list[int]
    endings: list[int]
    gate: Gate | None = None
    threshold: float = 0.0

    def wants(self, gains: Tensor) -> Tensor:
        """Whether to think (...) where the gate expects these ``gains`` (...)."""
        return gains > self.threshold

    def read(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        text_keys: Tensor | None = None,
        attention: str = "auto",
    ) -> Text:
        """Read texts (B, N); ``text_keys`` are 0 .. B-1 unless given, ``attention`` is as in `Decoder.read`."""
        hidden, view = self.decoder.read(input_ids, attention_mask, attention)
        if text_keys is None:
            text_keys = torch.arange(len(input_ids), device=input_ids.device)
        return Text(input_ids, hidden, view, text_keys)

    def sample(
        self, text: Text, positions: Tensor, rationales: int, sampling: Sampling, real: Tensor | None = None
    ) -> Thoughts:
        """Sample ``rationales`` (R) thoughts after the text at each of ``positions``, one token a pass for all.

        ``positions``, here and below: (P,), those of every text, or (B, P), those of each. Nothing thinks at those that
        are not ``real`` (B, P): all is 0 there.
        """
        shape = len(text.input_ids), rationales, positions.shape[-1]
        packing = Packing(shape) if real is None else Packing.of(real, rationales)
        return self._think_after(text, positions, packing, sampling, talk=False)[0]

    def sample_and_talk(self, text: Text, positions: Tensor, sampling: Sampling) -> tuple[Thoughts, Tensor]:
        """A thought after each of ``positions``, and the states (B, P, D) at its end: K + 1 passes, no more."""
        packing = Packing((len(text.input_ids), 1, positions.shape[-1]))
        thoughts, talk = self._think_after(text, positions, packing, sampling, talk=True)
        return thoughts, talk[:, 0]

    @torch.no_grad()
    def _think_after(
        self, text: Text, positions: Tensor, packing: Packing, sampling: Sampling, talk: bool
    ) -> tuple[Thoughts, Tensor | None]:
        """`think` after the text at ``positions``, all packed thoughts in one pass a token."""
        places, own = at(text.view.position_ids, positions), KeyValueCache(self.layout.thought_tokens + 2 * talk)

        def run(embeddings: Tensor, first: int) -> Tensor:
            return self.decoder.run_rows(embeddings, text.view, positions, packing, first, own)

        def chances(step: int) -> Tensor:
            return packing.pack(sampling.chances(text.text_keys, packing.shape[1], places, step))

        state = run(packing.pack(self.start.expand(1, 1, 1, 1, -1)), 0)[:, 0]
        thoughts, end = self.think(state, run, chances, sampling, talk)
        return thoughts.each(packing.unpack), end if end is None else packing.unpack(end)

    def think(
        self,
        state: Tensor,
        run: Callable[[Tensor, int], Tensor],
        chances: Callable[[int], Tensor],
        sampling: Sampling,
        talk: bool = True,
    ) -> tuple[Thoughts, Tensor | None]:
        """Sample thoughts (...) a token at a time, from the ``state`` (..., D) at ``[start]``.

        Returns them and the states (..., D) at their ends, None unless they ``talk``. ``run`` reads the next S tokens
        of each row, from their embeddings (..., S, D) and the slot of the first, and gives their states (..., S, D).
        ``chances`` gives a step's uniform numbers (...). Rows of thoughts that have ended are read on, to no effect.
        """
        count, states, ids, entropies = self.layout.thought_tokens, [state], [], []
        for step in range(count):
            drawn, entropy = sample(self.decoder.head, states[-1], self.banned_in_thoughts, sampling, chances(step))
            ids.append(drawn)
            entropies.append(entropy)
            tokens = self.decoder.embed(drawn).unsqueeze(-2)
            if self.endings:  # [end] stands in the place of the draw that ends a thought
                tokens = torch.where(self._ends(drawn)[..., None, None], self.end, tokens)
            if step < count - 1:
                states += run(tokens, step + 1).unbind(-2)
            elif talk:
                states += run(torch.cat([tokens, self.end.expand_as(tokens)], dim=-2), step + 1).unbind(-2)
        drawn, entropy = torch.stack(ids, -1), torch.stack(entropies, -1)
        lengths = self.lengths(drawn)
        end = Layout(count, 1).talking(torch.stack(states, -2), lengths)[..., 0, :] if talk else None
        if lengths is None:
            return Thoughts(drawn, entropy, torch.full_like(drawn[..., 0], count)), end
        last = lengths.clamp(max=count - 1).unsqueeze(-1)
        after = torch.arange(count, device=drawn.device) > last
        return Thoughts(drawn.take_along_dim(last, -1).where(after, drawn), entropy.masked_fill(after, 0), lengths), end

    def lengths(self, ids: Tensor | None) -> Tensor | None:
        """The tokens (...) that thoughts ``ids`` (..., K) keep, those before the first that ends them.

        None where thoughts do not end themselves, or are pauses.
        """
        if ids is None or not self.endings:
            return None
        return (self._ends(ids).cumsum(-1) == 0).sum(-1)

    def _ends(self, ids: Tensor) -> Tensor:
        return torch.isin(ids, torch.tensor(self.endings, device=ids.device))

    def talk(self, text: Text, positions: Tensor, ids: Tensor | None) -> Tensor:
        """The states (B, P, D) at the ends of these thoughts, ``ids`` (B, 1, P, K), or of pauses where that is None."""
        layout = Layout(self.layout.thought_tokens, lookahead=1)
        rows = self.embed_rows(text.input_ids, positions, ids, layout)
        packing = Packing(tuple(rows.shape[:3]))
        states = packing.unpack(self.decoder.run_rows(packing.pack(rows), text.view, positions, packing))
        return layout.talking(states, self.lengths(ids))[:, 0, :, 0]

    def embed_rows(self, input_ids: Tensor, positions: Tensor, ids: Tensor | None, layout: Layout) -> Tensor:
        """Embeddings (B, R, P, T, D) of whole thought rows, true next tokens included.

        ``ids`` (B, R, P, K) are the thoughts' tokens; None: one row of pauses. Past the end of the text id 0 stands in;
        its targets are IGNORED.
        """
        # x_{i+1} .. x_{i+A-1}
        following = ahead(input_ids, layout.lookahead, 0, positions)[:, :, 1:].unsqueeze(1)
        if ids is None:
            following = self.decoder.embed(following)
            thought = self.pauses.expand(*following.shape[:3], -1, -1)
        else:
            both = torch.cat([ids, following.expand(-1, ids.shape[1], -1, -1)], dim=3)
            tokens = self.decoder.embed(both)  # at once: one gradient of the embedding table
            thought, following = tokens.split([layout.thought_tokens, layout.lookahead - 1], dim=3)
        start, end = (token.expand_as(thought[..., :1, :]) for token in (self.start, self.end))
        return layout.shorten(torch.cat([start, thought, end, following], dim=3), self.lengths(ids))
