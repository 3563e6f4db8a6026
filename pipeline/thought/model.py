"""Quiet-STaR on any decoder: reading, thinking, talking and learning as one `PreTrainedModel`."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .decoder import Decoder, build_decoder, check_decoder
from .distilled import FORMS, KL
from .gate import Gate
from .generation import ThoughtGenerationMixin, Writer, new_seed
from .head import IGNORED
from .layout import Layout, at
from .methods import METHODS, QUIET_STAR
from .mixing import MixingHead
from .objective import NOTHING, PAUSES, SAMPLED, Counts, Losses, counts_of
from .quiet_star import ADVANTAGES, POSITIVE
from .sampler import Sampling, Thoughts, entropies
from .step import DEFAULT_ENGINE, Engine, Learner
from .thinking import Text, Thinker
from .views import NAME

# not kept of the base's configuration: the path that it was read from, and the dtype, which is the whole model's
NOT_KEPT = ("_name_or_path", "dtype", "torch_dtype")
# what `generate` takes from the base model unless it is told otherwise
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


class QuietStarConfig(PretrainedConfig):
    """A base decoder's configuration and the thoughts it has.

    ``method``: what is learned, one of `methods.METHODS`. quiet_star: thoughts of K sampled tokens; no_policy,
    shuffled_reward and untrained are its controls; rlp and value learn from its rewards in other ways. pause: K learned
    tokens in their place, each with its own embedding (Goyal et al. 2023, arXiv 2310.02226); pause_same_compute: the
    same, trained for longer. no_thought: the base decoder alone, whose training is continued pretraining (before: no
    training); it has no use for the settings below.
    ``thought_tokens`` (K), ``lookahead`` (A), ``rationales`` (R): sizes of the thoughts it trains with.
    ``meta_token_scale``: what the meta-tokens (and pauses) are multiplied by where they are used; it multiplies the
    effective step size of these embeddings (paper, appendix A: 100 at learning rate 1e-6).
    ``policy_weight``, ``policy_temperature``: beta of the REINFORCE loss, and the temperature of its
    log-probabilities (3 in the released code). ``advantage``: positive (paper) or signed (`QuietStar.advantages`).
    ``distill_form``, ``distill_weight``: of method distilled, what its student learns by, and the weight (`Distilled`).
    ``token_cost``: what each token takes off the reward of a thought that ends itself (`QuietStar.worth`), in nats.
    ``ratio_clip``: how far from 1 the ratio of probabilities may be in rlp.
    ``start_token_id``, ``end_token_id``: ids that stand for the meta-tokens in the vocabulary, never sampled; None
    where the vocabulary has none.
    ``thoughts_end``: a thought ends before K tokens where it samples one of ``ending_token_ids``; ``[end]`` then stands
    in that token's place (the end_token_id may be one, and so sampled in thoughts; it is never written).
    ``gate``: whether a `Gate` learns where to think; ``gate_threshold``: it wants a thought where it expects a gain
    above this, in nats.
    Raises ValueError for an unknown method, sizes below 1, values of another type, and thoughts that no id could end.
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
        advantage: str = POSITIVE,
        distill_form: str = KL,
        distill_weight: float = 1.0,
        token_cost: float = 0.0,
        ratio_clip: float = 0.2,
        start_token_id: int | None = None,
        end_token_id: int | None = None,
        thoughts_end: bool = False,
        ending_token_ids: list[int] | None = None,
        gate: bool = False,
        gate_threshold: float = 0.0,
        method: str = QUIET_STAR,
        **kwargs: object,
    ):
        base = base or {"model_type": "llama"}
        if not isinstance(base, dict) or "model_type" not in base:
            raise ValueError("base must be the configuration of a decoder, with its model_type")
        self.base = {name: value for name, value in base.items() if name not in NOT_KEPT}
        self.method = method
        self.thought_tokens = thought_tokens
        self.lookahead = lookahead
        self.rationales = rationales
        self.meta_token_scale = meta_token_scale
        self.policy_weight = policy_weight
        self.policy_temperature = policy_temperature
        self.advantage = advantage
        self.distill_form = distill_form
        self.distill_weight = distill_weight
        self.token_cost = token_cost
        self.ratio_clip = ratio_clip
        self.start_token_id = start_token_id
        self.end_token_id = end_token_id
        self.thoughts_end = thoughts_end
        self.ending_token_ids = list(ending_token_ids or [])
        self.gate = gate
        self.gate_threshold = gate_threshold
        self._check()
        super().__init__(**kwargs)

    def _check(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}, but must be one of {', '.join(METHODS)}")
        if self.advantage not in ADVANTAGES:
            raise ValueError(f"advantage is {self.advantage!r}, but must be one of {', '.join(ADVANTAGES)}")
        for name in ("thought_tokens", "lookahead", "rationales"):
            if type(value := getattr(self, name)) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}, but must be a whole number of at least 1")
        if self.distill_form not in FORMS:
            raise ValueError(f"distill_form is {self.distill_form!r}, but must be one of {', '.join(FORMS)}")
        numbers = ("meta_token_scale", "policy_weight", "policy_temperature", "distill_weight")
        for name in (*numbers, "token_cost", "ratio_clip"):
            if not isinstance(value := getattr(self, name), int | float):
                raise ValueError(f"{name} is {value!r}, but must be a number")
        for name in ("gate", "thoughts_end"):
            if not isinstance(value := getattr(self, name), bool):
                raise ValueError(f"{name} is {value!r}, but must be true or false")
        if not all(isinstance(token, int | None) for token in (self.start_token_id, self.end_token_id)):
            raise ValueError("start_token_id and end_token_id must be whole numbers or nothing")
        if not all(isinstance(token, int) for token in self.ending_token_ids):
            raise ValueError("ending_token_ids must be whole numbers")
        if self.thoughts_end and not self.endings:
            raise ValueError("thoughts_end needs ending_token_ids, of which the start_token_id is none")

    @property
    def banned(self) -> list[int]:
        """The ids that are never written."""
        return [i for i in (self.start_token_id, self.end_token_id) if i is not None]

    @property
    def endings(self) -> list[int]:
        """The ids that end a thought; none where every thought has K tokens."""
        return [i for i in self.ending_token_ids if i != self.start_token_id] if self.thoughts_end else []

    @property
    def banned_in_thoughts(self) -> list[int]:
        """The ids that are never sampled in a thought."""
        return [i for i in self.banned if i not in self.endings]

    @property
    def vocab_size(self) -> int:
        return self.base_config().get_text_config().vocab_size

    @property
    def hidden_size(self) -> int:
        return self.base_config().get_text_config().hidden_size

    @property
    def thought_room(self) -> int:
        """The positions that a thought takes with its [start] and [end]; 0 in a model without thoughts."""
        return self.thought_tokens + 2 if METHODS[self.method].thoughts != NOTHING else 0

    @property
    def max_position_embeddings(self) -> int | None:
        """How many tokens a text may have: the base's positions, less those of the last thought."""
        known = getattr(self.base_config().get_text_config(), "max_position_embeddings", None)
        return known and known - self.thought_room

    def base_config(self) -> PretrainedConfig:
        """The base decoder's configuration, as transformers' own class."""
        values = dict(self.base)
        return AutoConfig.for_model(values.pop("model_type"), **values)


@dataclass
class QuietStarOutput(ModelOutput):
    """The result of a pass: of a training step ``loss`` and ``losses``, of any other ``logits`` (B, P, V).

    ``base_logits`` (B, P, V): the prediction without thoughts, from the same pass. ``weight``: the mixing weight,
    (B, R, N, A) in a training step and else (B, P). ``thoughts``: those that were sampled, else None. ``gate`` (B, P):
    what the gate expects a thought to gain, in nats; None in a training step and without a gate.
    """

    loss: Tensor | None = None
    losses: Losses | None = None
    logits: Tensor | None = None
    base_logits: Tensor | None = None
    weight: Tensor | None = None
    thoughts: Thoughts | None = None
    gate: Tensor | None = None


class QuietStarForCausalLM(PreTrainedModel, ThoughtGenerationMixin):
    """A decoder that thinks after every token before it predicts the next one."""

    config_class = QuietStarConfig
    base_model_prefix = "base"
    supports_gradient_checkpointing = True
    _supports_attention_backend = True

    def __init__(self, config: QuietStarConfig):
        if config._attn_implementation is not None:  # from_pretrained's option, or another model's configuration
            self.set_attn_implementation(config._attn_implementation)
        config._attn_implementation = NAME
        super().__init__(config)
        self.base = build_decoder(config.base_config())
        self._take_special_tokens(self.base)
        hidden_size = self.base.get_input_embeddings().embedding_dim
        self.objective = METHODS[config.method](config)
        self.start_embedding = self.end_embedding = self.mixing_head = self.pause_embeddings = self.gate = None
        if self.has_thoughts:
            self.start_embedding = nn.Parameter(torch.zeros(hidden_size))
            self.end_embedding = nn.Parameter(torch.zeros(hidden_size))
            self.mixing_head = MixingHead(hidden_size)
        if self.objective.thoughts == PAUSES:
            self.pause_embeddings = nn.Parameter(torch.zeros(config.thought_tokens, hidden_size))
        self.post_init()
        if config.gate and self.has_thoughts:
            with torch.random.fork_rng(devices=[]):  # all else is initialised as it is without a gate
                self.gate = Gate(hidden_size)
        if self.has_thoughts:
            self.mixing_head.start_at(self.objective.mixing)
            # a weight that is not 0 stays: else weight decay would change it where nothing else does
            self.mixing_head.requires_grad_(self.objective.mixing == 0)

    @classmethod
    def from_base(cls, base: PreTrainedModel, meta_token_ids: list[int], **settings: object) -> "QuietStarForCausalLM":
        """Quiet-STaR on a pretrained ``base``; its own tokens start as the mean embedding of ``meta_token_ids``.

        ``settings`` are `QuietStarConfig`'s. Unless they say otherwise, the last of ``meta_token_ids`` and the
        end_token_id can end a thought. Raises UnsupportedDecoderError for a base that cannot think in parallel.
        """
        endings = [i for i in (meta_token_ids[-1], settings.get("end_token_id")) if i is not None]
        config = QuietStarConfig(base=base.config.to_dict(), **{"ending_token_ids": endings} | settings)
        model = cls._from_config(config, dtype=base.dtype)  # not .to(dtype), which rounds the rotary frequencies too
        model.base.load_state_dict(base.state_dict())
        model._take_special_tokens(base)
        check_decoder(model.base)
        with torch.no_grad():
            # the embedding as the model uses it: Gemma scales its table
            meta_token = model.decoder.embed(torch.tensor(meta_token_ids, device=base.device)).mean(0)
            for parameter in model.meta_tokens():
                parameter.copy_((meta_token / config.meta_token_scale).expand_as(parameter))
        return model

    def _take_special_tokens(self, base: PreTrainedModel) -> None:
        """Let `generate` know the ids of the base's special tokens, where the configuration does not name its own."""
        for name in SPECIAL:
            if getattr(self.config, name, None) is None:
                setattr(self.generation_config, name, getattr(base.generation_config, name))

    def meta_tokens(self) -> list[nn.Parameter]:
        """The learned tokens that this method adds: [start] (D,) and [end] (D,), and pauses (K, D)."""
        tokens = (self.start_embedding, self.end_embedding, self.pause_embeddings)
        return [token for token in tokens if token is not None]

    @property
    def lookahead(self) -> int:
        """A; 1 without thoughts, which predicts the next token only."""
        return self.config.lookahead if self.has_thoughts else 1

    @property
    def layout(self) -> Layout:
        return Layout(self.config.thought_tokens, self.lookahead)

    @property
    def decoder(self) -> Decoder:
        return Decoder(self.base)

    @property
    def thinker(self) -> Thinker:
        """The machinery that thinks, with the meta-tokens as they are now."""
        tokens = (self.start_embedding, self.end_embedding, self.pause_embeddings)
        scaled = (token if token is None else self.config.meta_token_scale * token for token in tokens)
        banned, in_thoughts = self.config.banned, self.config.banned_in_thoughts
        endings, gate = self.config.endings, (self.gate, self.config.gate_threshold)
        return Thinker(self.decoder, self.layout, self.mixing_head, *scaled, banned, in_thoughts, endings, *gate)

    @property
    def vocabulary(self) -> int:
        return self.base.get_input_embeddings().num_embeddings

    @property
    def samples_thoughts(self) -> bool:
        return self.objective.thoughts == SAMPLED

    @property
    def has_thoughts(self) -> bool:
        """Whether anything, sampled or learned, stands between a token and its prediction."""
        return self.objective.thoughts != NOTHING

    def get_output_embeddings(self) -> nn.Module:
        return self.base.get_output_embeddings()

    def resize_token_embeddings(self, new_num_tokens: int | None = None, **settings: object) -> nn.Embedding:
        """transformers' own, of the base model. Raises ValueError where an id of the configuration would be lost."""
        named = [*self.config.banned, *self.config.ending_token_ids]
        if new_num_tokens is not None and new_num_tokens <= max(named, default=-1):
            raise ValueError(f"new_num_tokens is {new_num_tokens}, but the configuration names token {max(named)}")
        embeddings = self.base.resize_token_embeddings(new_num_tokens, **settings)
        self.config.base = self.config.base | {"vocab_size": self.vocabulary}
        return embeddings

    def set_attn_implementation(self, attn_implementation: str | dict, allow_all_kernels: bool = False) -> None:
        """Raise ValueError for any attention but the one registered here: with another, predictions would be wrong."""
        if attn_implementation != NAME:
            told = f"attn_implementation is {attn_implementation!r}, but thoughts see their text through {NAME!r} only"
            raise ValueError(f"{told}: leave it out (an Engine chooses how that is computed)")

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        thought_ids: Tensor | None = None,
        sampling: Sampling | None = None,
        text_keys: Tensor | None = None,
        positions: Tensor | None = None,
        thinks: Tensor | None = None,
        counts: Counts | None = None,
        engine: Engine = DEFAULT_ENGINE,
        old: Losses | None = None,
        writer: Writer | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        use_cache: bool | None = None,
    ) -> QuietStarOutput:
        """Train on ``labels`` (B, N; -100 is ignored), or predict the next token at every position without them.

        ``positions``, (P,) or (B, P): predict after these only; what others think would not matter to them. ``thinks``
        (B, N): think there only when training; None: everywhere. Padding and what has no true token after it never do.
        ``thought_ids`` (B, R, N, K) replaces sampling. ``sampling`` is at temperature 1 when training and greedy
        otherwise, unless given; its seed is then drawn from torch's generator where there are gradients, so that every
        step has new thoughts, and 0 elsewhere. ``text_keys`` (B,) name the texts in its draws (0 .. B-1 unless given).
        ``counts``: what the means of the loss are taken over, where these texts are a micro-batch of a step: the losses
        of all micro-batches then add up to the step's. Unless given, the texts' own (`counts_of`).
        ``engine``: how it is computed, which changes speed and memory and nothing else.
        ``old``: the losses of an earlier pass over the same ``thought_ids``, for objectives with inner epochs.
        ``writer``: `generate`'s, which has read what is before ``input_ids``; only the next token is predicted then.
        The rest are names that callers of other models use: token types, which decoders have not, ``return_dict`` and
        ``use_cache`` change nothing (keys and values are never returned). Raises ValueError for others of them, and for
        ``thought_ids`` where the method samples none.
        """
        if inputs_embeds is not None or output_attentions or output_hidden_states:
            raise ValueError("inputs_embeds, output_attentions and output_hidden_states: a model that thinks has none")
        if writer is not None:
            return QuietStarOutput(logits=writer.predict(input_ids))
        if thought_ids is not None and not self.samples_thoughts:
            raise ValueError(f"method {self.config.method} has no sampled thoughts to replace by thought_ids")
        if sampling is None:
            learns = labels is not None and torch.is_grad_enabled()
            sampling = Sampling(0.0 if labels is None else 1.0, new_seed() if learns else 0)
        if labels is not None and attention_mask is not None:
            real = attention_mask.bool()
            if not real[:, 0].all():  # padded on the left: no padding thinks or is followed by a text
                thinks = real if thinks is None else thinks & real
                labels = torch.cat([labels[:, :1], labels[:, 1:].masked_fill(~real[:, :-1], IGNORED)], dim=1)
            longest = max(real.any(0).nonzero().flatten().tolist(), default=0) + 1  # read no further
            input_ids, attention_mask = input_ids[:, :longest], attention_mask[:, :longest]
        text = self.thinker.read(input_ids, attention_mask, text_keys, engine.attention)
        if labels is None:
            return self._predict(text, thought_ids, sampling, positions)
        learner = Learner(self.thinker, self.objective, self.config.rationales, list(self.parameters()))
        counts = counts_of(labels, self.lookahead, thinks) if counts is None else counts
        losses, thoughts = learner.learn(text, labels, counts, sampling, engine, thinks, thought_ids, old)
        weight = losses.weight if self.has_thoughts else None
        return QuietStarOutput(losses.total, losses, weight=weight, thoughts=thoughts)

    def _predict(
        self, text: Text, thought_ids: Tensor | None, sampling: Sampling, positions: Tensor | None
    ) -> QuietStarOutput:
        """The next token's logits after each of ``positions``, with one thought there and without."""
        if positions is None:
            positions = torch.arange(text.input_ids.shape[1], device=text.input_ids.device)
        head, hidden, thinker, thoughts = self.decoder.head, at(text.hidden, positions), self.thinker, None
        base_logits = head.logits(hidden)
        if not self.has_thoughts:
            weight = hidden.new_zeros(hidden.shape[:2])
            return QuietStarOutput(logits=base_logits, base_logits=base_logits, weight=weight)
        if thought_ids is None and self.samples_thoughts and not torch.is_grad_enabled():
            thoughts, talk = thinker.sample_and_talk(text, positions, sampling)
        else:
            if thought_ids is None and self.samples_thoughts:
                thoughts = thinker.sample(text, positions, 1, sampling)
                thought_ids = thoughts.ids
            talk = thinker.talk(text, positions, thought_ids)
        mixed, weight = self.mixing_head.mix(hidden, talk)
        gate = None if self.gate is None else self.gate(hidden)
        return QuietStarOutput(None, None, head.logits(mixed), base_logits, weight, thoughts, gate)

    @torch.no_grad()
    def entropies(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The entropy (B, N) in nats of the next token's prediction at every position, without thoughts."""
        return entropies(self.decoder.head, self.thinker.read(input_ids, attention_mask).hidden)

    @torch.no_grad()
    def gate_scores(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The gain in nats that the gate expects at every position (B, N), from a pass over texts without thoughts."""
        return self.gate(self.thinker.read(input_ids, attention_mask).hidden)
