"""Quiet-STaR on any decoder: reading, thinking, talking and learning as one `PreTrainedModel`."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from . import generation, step
from .decoder import Decoder, build_decoder, check_decoder, embedding_of
from .layout import Layout, ahead
from .mixing import MixingHead
from .objective import Counts, Losses, counts_of
from .sampler import Sampling, Thoughts, sample_thoughts
from .step import DEFAULT_ENGINE, Engine
from .views import OwnTokens, TextView

QUIET_STAR, PAUSE, NO_THOUGHT = METHODS = ("quiet_star", "pause", "no_thought")

# of a base's configuration: where it was read from (a path of this machine), and the dtype, which is the whole model's
NOT_KEPT = ("_name_or_path", "dtype", "torch_dtype")


class QuietStarConfig(PretrainedConfig):
    """A base decoder's configuration and the thoughts it has.

    ``method``: what a thought is. quiet_star: K sampled tokens. pause: K learned tokens, always the same (Goyal et al.
    2023, arXiv 2310.02226; each has its own embedding), so nothing is sampled and no policy learned. no_thought: the
    base decoder alone, whose training is continued pretraining. The rest of these settings is then of no use.
    ``thought_tokens`` (K), ``lookahead`` (A), ``rationales`` (R): sizes of the thoughts it trains with.
    ``meta_token_scale``: what the meta-tokens (and pauses) are multiplied by where they are used; it multiplies the
    effective step size of these embeddings (paper, appendix A: 100 at learning rate 1e-6).
    ``policy_weight``, ``policy_temperature``: beta of the REINFORCE loss, and the temperature of its
    log-probabilities (3 in the released code).
    ``start_token_id``, ``end_token_id``: ids that stand for the meta-tokens in the vocabulary, never sampled; None
    where the vocabulary has none.
    Raises ValueError for a thought without tokens, without a true token after it, or none at a position, for a method
    that there is not, and for values of another kind.
    """

    model_type = "quiet_star"

    def __init__(
        self,
        base: dict | None = None,
        thought_tokens: int = 5,
        lookahead: int = 4,
        rationales: int = 2,
        meta_token_scale: float = 100.0,
        policy_weight: float = 1e6,
        policy_temperature: float = 3.0,
        start_token_id: int | None = None,
        end_token_id: int | None = None,
        method: str = QUIET_STAR,
        **kwargs: object,
    ):
        if method not in METHODS:
            raise ValueError(f"method is {method!r}, but must be one of {', '.join(METHODS)}")
        for name, value in (("thought_tokens", thought_tokens), ("lookahead", lookahead), ("rationales", rationales)):
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}, but must be a whole number of at least 1")
        if not all(isinstance(value, int | float) for value in (meta_token_scale, policy_weight, policy_temperature)):
            raise ValueError("meta_token_scale, policy_weight and policy_temperature must be numbers")
        if not all(isinstance(token, int | None) for token in (start_token_id, end_token_id)):
            raise ValueError("start_token_id and end_token_id must be whole numbers or nothing")
        base = base or {"model_type": "llama"}
        if not isinstance(base, dict) or "model_type" not in base:
            raise ValueError("base must be the configuration of a decoder, with its model_type")
        self.base = {name: value for name, value in base.items() if name not in NOT_KEPT}
        self.thought_tokens = thought_tokens
        self.lookahead = lookahead
        self.rationales = rationales
        self.meta_token_scale = meta_token_scale
        self.policy_weight = policy_weight
        self.policy_temperature = policy_temperature
        self.method = method
        self.start_token_id = start_token_id
        self.end_token_id = end_token_id
        super().__init__(**kwargs)

    def base_config(self) -> PretrainedConfig:
        """The base decoder's configuration, as transformers' own class."""
        values = dict(self.base)
        return AutoConfig.for_model(values.pop("model_type"), **values)


@dataclass
class QuietStarOutput(ModelOutput):
    """Of a training step ``loss`` and its parts ``losses``; of any other pass ``logits`` (B, P, V).

    ``thoughts`` are the sampled ones; ``weight`` is the mixing weight, (B, R, N, A) or (B, P), R being 1 for pauses.
    Both are None in a training step that has none.
    ``base_logits`` (B, P, V) are the prediction without thoughts, from the same pass.
    """

    loss: Tensor | None = None
    losses: Losses | None = None
    logits: Tensor | None = None
    base_logits: Tensor | None = None
    weight: Tensor | None = None
    thoughts: Thoughts | None = None


class QuietStarForCausalLM(PreTrainedModel):
    """A decoder that thinks after every token before it predicts the next one."""

    config_class = QuietStarConfig
    base_model_prefix = "base"
    supports_gradient_checkpointing = True
    _supports_attention_backend = True
    _supports_sdpa = True

    def __init__(self, config: QuietStarConfig):
        super().__init__(config)
        base = build_decoder(config.base_config())
        hidden_size = base.get_input_embeddings().embedding_dim
        self.base = base
        if self.has_thoughts:
            self.start_embedding = nn.Parameter(torch.zeros(hidden_size))
            self.end_embedding = nn.Parameter(torch.zeros(hidden_size))
            self.mixing_head = MixingHead(hidden_size)
        if config.method == PAUSE:
            self.pause_embeddings = nn.Parameter(torch.zeros(config.thought_tokens, hidden_size))
        self.post_init()
        if self.has_thoughts:
            nn.init.zeros_(self.mixing_head[-1].weight)

    @classmethod
    def from_base(cls, base: PreTrainedModel, meta_token_ids: list[int], **settings: object) -> "QuietStarForCausalLM":
        """Quiet-STaR on a pretrained ``base``; its own tokens start as the mean embedding of ``meta_token_ids``.

        ``settings`` are `QuietStarConfig`'s. Raises UnsupportedDecoderError for one that cannot think in parallel.
        """
        config = QuietStarConfig(base=base.config.to_dict(), **settings)
        model = cls._from_config(config, dtype=base.dtype)  # not .to(dtype), which rounds the rotary frequencies too
        model.base.load_state_dict(base.state_dict())
        check_decoder(model.base)
        meta_token = embedding_of(model.base, meta_token_ids) / config.meta_token_scale
        for parameter in model.meta_tokens():
            parameter.data.copy_(meta_token.expand_as(parameter))
        return model

    def meta_tokens(self) -> list[nn.Parameter]:
        """The learned tokens that this method adds: [start] (D,) and [end] (D,), and pauses (K, D)."""
        names = ("start_embedding", "end_embedding", "pause_embeddings")
        return [getattr(self, name) for name in names if hasattr(self, name)]

    @property
    def layout(self) -> Layout:
        return Layout(self.config.thought_tokens, self.config.lookahead)

    @property
    def lookahead(self) -> int:
        """A; 1 without thoughts, which predicts the next token only."""
        return self.config.lookahead if self.has_thoughts else 1

    @property
    def decoder(self) -> Decoder:
        return Decoder(self.base)

    @property
    def vocabulary(self) -> int:
        return self.base.get_input_embeddings().num_embeddings

    @property
    def samples_thoughts(self) -> bool:
        return self.config.method == QUIET_STAR

    @property
    def has_thoughts(self) -> bool:
        """Whether anything, sampled or learned, stands between a token and its prediction."""
        return self.config.method != NO_THOUGHT

    @property
    def banned(self) -> list[int]:
        """Ids that are never sampled."""
        return [i for i in (self.config.start_token_id, self.config.end_token_id) if i is not None]

    def get_input_embeddings(self) -> nn.Module:
        return self.base.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.base.get_output_embeddings()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        thought_ids: Tensor | None = None,
        sampling: Sampling | None = None,
        text_keys: Tensor | None = None,
        positions: Tensor | None = None,
        counts: Counts | None = None,
        engine: Engine = DEFAULT_ENGINE,
    ) -> QuietStarOutput:
        """Train on ``labels`` (B, N; -100 is ignored), or predict the next token at every position without them.

        ``positions`` (P,): predict after these only; what others think would not matter to them.
        ``thought_ids`` (B, R, N, K) replaces sampling. ``sampling`` is at temperature 1 when training and greedy
        otherwise, unless given; ``text_keys`` (B,) name the texts in its draws (0 .. B-1 unless given).
        ``counts``: what the loss's means are taken over, where these texts are only some of a step's (`counts_of` them
        unless given): the losses of all of a step's texts then add up to the step's.
        ``engine``: how it is computed, which changes speed and memory and nothing else.
        Raises ValueError for ``thought_ids`` where the method samples none.
        """
        if thought_ids is not None and not self.samples_thoughts:
            raise ValueError(f"method {self.config.method} has no sampled thoughts to replace by thought_ids")
        sampling = sampling or Sampling(temperature=0.0 if labels is None else 1.0)
        hidden, text = self.decoder.read(input_ids, attention_mask, engine.attention)
        if labels is None:
            return self._predict(hidden, text, input_ids, thought_ids, sampling, text_keys, positions)
        if counts is None:
            counts = counts_of(labels, self.lookahead)
        if not self.has_thoughts:
            losses = step.learn_text(self, hidden, labels, counts)
            return QuietStarOutput(losses.total, losses)
        learned = step.learn(self, hidden, text, input_ids, labels, thought_ids, sampling, text_keys, counts, engine)
        return QuietStarOutput(learned.losses.total, learned.losses, weight=learned.weight, thoughts=learned.thoughts)

    def _predict(
        self,
        hidden: Tensor,
        text: TextView,
        input_ids: Tensor,
        thought_ids: Tensor | None,
        sampling: Sampling,
        text_keys: Tensor | None,
        positions: Tensor | None,
    ) -> QuietStarOutput:
        """The next token's logits after each of ``positions``, with one thought there and without."""
        if positions is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        base_logits = self.decoder.head.logits(hidden[:, positions])
        if not self.has_thoughts:
            weight = hidden.new_zeros(len(hidden), len(positions))
            return QuietStarOutput(logits=base_logits, base_logits=base_logits, weight=weight)
        thoughts, talk = self._talk(text, input_ids, thought_ids, sampling, text_keys, positions)
        mixed, weight = self.mixing_head.mix(hidden[:, positions], talk)
        logits = self.decoder.head.logits(mixed)
        return QuietStarOutput(logits=logits, base_logits=base_logits, weight=weight, thoughts=thoughts)

    def _talk(
        self,
        text: TextView,
        input_ids: Tensor,
        thought_ids: Tensor | None,
        sampling: Sampling,
        text_keys: Tensor | None,
        positions: Tensor,
    ) -> tuple[Thoughts | None, Tensor]:
        """The states (B, P, D) at the end of the thoughts, and these where they were sampled."""
        thoughts = None
        if thought_ids is None and self.samples_thoughts:
            if not torch.is_grad_enabled():
                return self.think_and_talk(text, positions, sampling, text_keys)
            thoughts = self.think(text, positions, 1, sampling, text_keys)
            thought_ids = thoughts.ids
        rows = self.embed_thoughts(positions, thought_ids, input_ids, Layout(self.config.thought_tokens, lookahead=1))
        return thoughts, self.decoder.run_rows(rows, text, positions)[:, 0, :, -1]

    def think(
        self,
        text: TextView,
        positions: Tensor,
        rationales: int,
        sampling: Sampling,
        text_keys: Tensor | None = None,
        own: OwnTokens | None = None,
    ) -> Thoughts:
        """Sample ``rationales`` (R) thoughts after the text at each of ``positions`` (P,)."""
        if text_keys is None:
            text_keys = torch.arange(text.position_ids.shape[0], device=positions.device)
        return sample_thoughts(
            self.decoder,
            text,
            positions,
            self.config.meta_token_scale * self.start_embedding,
            rationales,
            self.config.thought_tokens,
            self.banned,
            sampling,
            text_keys,
            own,
        )

    @torch.no_grad()
    def think_and_talk(
        self, text: TextView, positions: Tensor, sampling: Sampling, text_keys: Tensor | None = None
    ) -> tuple[Thoughts, Tensor]:
        """A thought after each of ``positions`` (P,), and the states (B, P, D) at its end: K + 1 passes, no more."""
        count = self.config.thought_tokens
        own = OwnTokens(count + 2)
        thoughts = self.think(text, positions, 1, sampling, text_keys, own)
        last = self.decoder.embed(thoughts.ids[..., -1:])
        end = (self.config.meta_token_scale * self.end_embedding).expand(last.shape)
        states = self.decoder.run_rows(torch.cat([last, end], dim=3), text, positions, first=count, own=own)
        return thoughts, states[:, 0, :, -1]

    def embed_thoughts(
        self, positions: Tensor, thought_ids: Tensor | None, input_ids: Tensor, layout: Layout
    ) -> Tensor:
        """Embeddings (B, R, P, T, D) of whole thought rows, true next tokens included; None: one row of pauses."""
        following = ahead(input_ids, layout.lookahead, fill=0)[:, positions, 1:].unsqueeze(1)  # x_{i+1} .. x_{i+A-1}
        scale = self.config.meta_token_scale
        if thought_ids is None:
            following = self.decoder.embed(following)
            thought = (scale * self.pause_embeddings).expand(*following.shape[:3], -1, -1)
        else:
            following = following.expand(-1, thought_ids.shape[1], -1, -1)
            both = torch.cat([thought_ids, following], dim=3)
            tokens = self.decoder.embed(both)  # at once: one gradient of the table
            thought, following = tokens.split([layout.thought_tokens, layout.lookahead - 1], dim=3)
        start, end = (scale * e.expand_as(thought[..., :1, :]) for e in (self.start_embedding, self.end_embedding))
        return torch.cat([start, thought, end, following], dim=3)

    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **settings: object) -> Tensor:
        """Continue texts with a thought before each token: see `generation.generate`."""
        return generation.generate(self, input_ids, attention_mask, **settings)


AutoConfig.register(QuietStarConfig.model_type, QuietStarConfig)
AutoModelForCausalLM.register(QuietStarConfig, QuietStarForCausalLM)
