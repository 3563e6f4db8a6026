"""Think and talk: thoughts after a text's positions, and the states at their ends (paper, sections 4.2 and 4.3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .decoder import Decoder
from .layout import Layout, ahead
from .mixing import MixingHead
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
    place of sampled ones, None where thoughts are sampled. ``banned`` ids are never sampled. It owns no weights.
    """

    decoder: Decoder
    layout: Layout
    mixing_head: MixingHead | None
    start: Tensor | None
    end: Tensor | None
    pauses: Tensor | None
    banned: list[int]

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

    @torch.no_grad()
    def sample(
        self, text: Text, positions: Tensor, rationales: int, sampling: Sampling, own: KeyValueCache | None = None
    ) -> Thoughts:
        """Sample ``rationales`` (R) thoughts after the text at each of ``positions`` (P,), one token a pass for all.

        Afterwards ``own`` holds the keys and values of ``[start]`` and t_1 .. t_{K-1}.
        """
        decoder, places = self.decoder, text.view.position_ids[:, positions]
        own = own or KeyValueCache(self.layout.thought_tokens)
        embeddings = self.start.expand(len(places), rationales, len(positions), 1, -1)
        ids, entropies = [], []
        for step in range(self.layout.thought_tokens):
            hidden = decoder.run_rows(embeddings, text.view, positions, first=step, own=own)[..., 0, :]
            chances = sampling.chances(text.text_keys, rationales, places, step)
            drawn, entropy = sample(decoder.head, hidden, self.banned, sampling, chances)
            ids.append(drawn)
            entropies.append(entropy)
            embeddings = decoder.embed(drawn).unsqueeze(-2)
        return Thoughts(torch.stack(ids, -1), torch.stack(entropies, -1))

    @torch.no_grad()
    def sample_and_talk(self, text: Text, positions: Tensor, sampling: Sampling) -> tuple[Thoughts, Tensor]:
        """A thought after each of ``positions`` (P,), and the states (B, P, D) at its end: K + 1 passes, no more."""
        count = self.layout.thought_tokens
        own = KeyValueCache(count + 2)
        thoughts = self.sample(text, positions, 1, sampling, own)
        last = self.decoder.embed(thoughts.ids[..., -1:])
        row = torch.cat([last, self.end.expand(last.shape)], dim=3)
        return thoughts, self.decoder.run_rows(row, text.view, positions, first=count, own=own)[:, 0, :, -1]

    def talk(self, text: Text, positions: Tensor, ids: Tensor | None) -> Tensor:
        """The states (B, P, D) at the ends of these thoughts, ``ids`` (B, 1, P, K), or of pauses where that is None."""
        rows = self.embed_rows(text.input_ids, positions, ids, Layout(self.layout.thought_tokens, lookahead=1))
        return self.decoder.run_rows(rows, text.view, positions)[:, 0, :, -1]

    def embed_rows(self, input_ids: Tensor, positions: Tensor, ids: Tensor | None, layout: Layout) -> Tensor:
        """Embeddings (B, R, P, T, D) of whole thought rows, true next tokens included.

        ``ids`` (B, R, P, K) are the thoughts' tokens; None: one row of pauses. Past the end of the text id 0 stands in;
        its targets are IGNORED.
        """
        following = ahead(input_ids, layout.lookahead, fill=0)[:, positions, 1:].unsqueeze(1)  # x_{i+1} .. x_{i+A-1}
        if ids is None:
            following = self.decoder.embed(following)
            thought = self.pauses.expand(*following.shape[:3], -1, -1)
        else:
            both = torch.cat([ids, following.expand(-1, ids.shape[1], -1, -1)], dim=3)
            tokens = self.decoder.embed(both)  # at once: one gradient of the embedding table
            thought, following = tokens.split([layout.thought_tokens, layout.lookahead - 1], dim=3)
        start, end = (token.expand_as(thought[..., :1, :]) for token in (self.start, self.end))
        return torch.cat([start, thought, end, following], dim=3)
