"""Quiet-STaR as the paper states it, slow and obvious: every thought is a text of its own for the base model.

Nothing of pipeline.thought is used. Hidden states come from the base model's own forward pass with eager attention, one
sequence at a time; everything else is Python loops over positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel


@dataclass
class SlowResult:
    """Losses, and per text, thought and position the rewards, advantages and log-probabilities behind them."""

    total: Tensor
    base: Tensor
    talk: Tensor
    policy: Tensor
    reward: dict[tuple[int, int, int], float] = field(default_factory=dict)
    worth: dict[tuple[int, int, int], float] = field(default_factory=dict)  # the reward less the cost of tokens
    advantage: dict[tuple[int, int, int], float] = field(default_factory=dict)
    log_probs: dict[tuple[int, int, int], list[Tensor]] = field(default_factory=dict)


class SlowQuietStar:
    """Weights of a Quiet-STaR model, by the names of its state dict, run one thought at a time.

    ``config`` has the numbers of `QuietStarConfig` and the base model's configuration.
    """

    def __init__(self, state: dict[str, Tensor], config: PretrainedConfig):
        self.config, self.endings = config, config.ending_token_ids if config.thoughts_end else []
        self.banned = [config.start_token_id, config.end_token_id]
        self.base = eager_model(config.base, state["start_embedding"].dtype)
        self.base.load_state_dict({name[5:]: value for name, value in state.items() if name.startswith("base.")})
        own = {name: value for name, value in state.items() if not name.startswith("base.")}
        self.own = {name: value.detach().clone().requires_grad_() for name, value in own.items()}

    def gradients(self) -> dict[str, Tensor]:
        """The gradient of every parameter, by its name in the Quiet-STaR model."""
        named = {f"base.{name}": value for name, value in self.base.named_parameters()} | self.own
        return {name: value.grad for name, value in named.items()}

    def embed(self, ids: list[int]) -> Tensor:
        return self.base.get_input_embeddings()(torch.tensor(ids, dtype=torch.long))

    def meta_token(self, name: str) -> Tensor:
        return (self.config.meta_token_scale * self.own[name])[None]

    def kept(self, thought: list[int]) -> list[int]:
        """A thought's tokens before the first that ends it."""
        ends = [j for j, token in enumerate(thought) if token in self.endings]
        return thought[: ends[0]] if ends else thought

    def embed_thought(self, thought: list[int]) -> Tensor:
        return self.embed(self.kept(thought))

    def states(self, embeddings: Tensor) -> Tensor:
        """Last hidden states (L, D) of one sequence of embeddings (L, D)."""
        return self.base.base_model(inputs_embeds=embeddings[None], use_cache=False).last_hidden_state[0]

    def logits(self, state: Tensor) -> Tensor:
        logits, config = self.base.get_output_embeddings()(state), self.base.config
        logits = logits * getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
        cap = getattr(config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def mix(self, base: Tensor, talk: Tensor) -> Tensor:
        own = self.own
        inner = torch.cat([base, talk])
        for layer in ("0", "2"):
            inner = torch.relu(own[f"mixing_head.{layer}.weight"] @ inner + own[f"mixing_head.{layer}.bias"])
        weight = (own["mixing_head.4.weight"] @ inner)[0]
        return (1 - weight) * base + weight * talk

    def without_banned(self, logits: Tensor, allowed: Sequence[int] = ()) -> Tensor:
        return logits.index_fill(0, torch.tensor([i for i in self.banned if i not in allowed]), -1e10)

    def thought_states(self, text: list[int], position: int, thought: list[int]) -> Tensor:
        """States (L, D) of ``[start] t_1 .. t_k [end] x_{i+1} .. x_{i+A-1}``, as far as the text goes.

        k is K, or what is left of a thought that ended itself.
        """
        following = text[position + 1 : position + self.config.lookahead]
        embeddings = [
            self.embed(text[: position + 1]),
            self.meta_token("start_embedding"),
            self.embed_thought(thought),
            self.meta_token("end_embedding"),
            self.embed(following),
        ]
        return self.states(torch.cat(embeddings))[position + 1 :]

    def next_thought_token(self, text: list[int], position: int, thought: list[int]) -> Tensor:
        """The logits of the thought's next token, recomputed from the start of the text."""
        embeddings = [self.embed(text[: position + 1]), self.meta_token("start_embedding"), self.embed(thought)]
        return self.without_banned(self.logits(self.states(torch.cat(embeddings))[-1]), self.endings)

    def greedy_thought(self, text: list[int], position: int) -> list[int]:
        """Its tokens, the one that ended it included."""
        thought: list[int] = []
        while len(thought) < self.config.thought_tokens and self.kept(thought) == thought:
            thought.append(int(self.next_thought_token(text, position, thought).argmax()))
        return thought

    def mixed_logits(self, text: list[int], position: int, thought: list[int]) -> Tensor:
        """What the model predicts after ``position`` with this thought."""
        talk = self.thought_states(text[: position + 1], position, thought)[-1]
        base = self.states(self.embed(text[: position + 1]))[position]
        return self.logits(self.mix(base, talk))

    def talk_losses(self, text: list[int], position: int, base: Tensor, states: Tensor) -> list[Tensor]:
        """Of x_{i+1}, .., x_{i+A}, as far as the text goes, from the text's states and those from ``[end]`` on."""
        losses = []
        for k in range(self.config.lookahead):
            if position + 1 + k < len(text):
                mixed = self.mix(base[position + k], states[k])
                losses.append(cross_entropy(self.logits(mixed), text[position + 1 + k]))
        return losses

    def losses(
        self, texts: list[list[int]], tokens: int, thoughts: Tensor | None, thinks: Tensor | None = None
    ) -> SlowResult:
        """The loss of ``texts`` (real tokens; padded on the right to ``tokens``) with ``thoughts`` (B, R, N, K).

        ``thinks`` (B, N): the positions that think; None: all.
        """
        if thoughts is None:  # pauses have no ids
            thoughts = torch.zeros(len(texts), 1, tokens, 0, dtype=torch.long)
        all_base: list[Tensor] = []
        all_talk: list[list[Tensor]] = [[] for _ in range(self.config.lookahead)]
        result = SlowResult(*torch.zeros(4))
        for b, text in enumerate(texts):
            base_states = self.states(self.embed(text))
            base_logits = self.base(input_ids=torch.tensor([text]), use_cache=False).logits[0]  # by its own head
            base = [cross_entropy(base_logits[i], text[i + 1]) for i in range(len(text) - 1)]
            all_base += base
            for i in range(len(text)) if thinks is None else thinks[b, : len(text) - 1].nonzero().flatten().tolist():
                for r in range(thoughts.shape[1]):
                    thought = thoughts[b, r, i].tolist()
                    states = self.thought_states(text, i, thought)
                    talk = self.talk_losses(text, i, base_states, states[len(self.embed_thought(thought)) + 1 :])
                    for k, loss in enumerate(talk):
                        all_talk[k].append(loss)
                    result.reward[b, r, i] = sum(base[i + k].item() - loss.item() for k, loss in enumerate(talk))
                    cost = self.config.token_cost * len(self.kept(thought)) if self.endings else 0.0
                    result.worth[b, r, i] = result.reward[b, r, i] - cost
                    result.log_probs[b, r, i] = self.log_probabilities(states, thought)
        result.base = mean(all_base)
        result.talk = mean([mean(losses) for losses in all_talk])
        last = tokens - 2 - self.config.lookahead
        rewarded = (
            len(texts) * (last + 1) if thinks is None else len({(b, i) for b, _, i in result.reward if i <= last})
        )
        self.add_policy(result, rewarded, thoughts.shape[1], last)
        result.total = 0.5 * result.base + 0.5 * result.talk + self.config.policy_weight * result.policy
        return result

    def add_policy(self, result: SlowResult, rewarded: int, rationales: int, last: int) -> None:
        """REINFORCE, from the rewards: ``rewarded`` positions up to ``last``, those of padding with reward 0."""
        terms: list[list[Tensor]] = [[] for _ in range(self.config.thought_tokens)]
        for (b, r, i), worth in result.worth.items():
            siblings = [result.worth[b, other, i] for other in range(rationales)]
            result.advantage[b, r, i] = max(worth - (fmean(siblings) if rationales > 1 else 0.0), 0.0)
            if i <= last:
                for j, log_prob in enumerate(result.log_probs[b, r, i]):
                    terms[j].append(-result.advantage[b, r, i] * log_prob)
        result.policy = mean([torch.stack(of_token).sum() / (rewarded * rationales) for of_token in terms])

    def log_probabilities(self, states: Tensor, thought: list[int]) -> list[Tensor]:
        """Of each of a thought's tokens, from the output before it, at REINFORCE's temperature; 0 after its end."""
        found = []
        for j, token in enumerate(thought):
            if j > len(self.kept(thought)):
                found.append(torch.zeros(()))
                continue
            logits = self.without_banned(self.logits(states[j]), self.endings) / self.config.policy_temperature
            found.append(torch.log_softmax(logits, dim=0)[token])
        return found


class SlowPause(SlowQuietStar):
    """The same with K learned pauses where a thought's tokens stand: one row a position, no sampled ids, no policy."""

    def embed_thought(self, thought: list[int]) -> Tensor:
        return self.config.meta_token_scale * self.own["pause_embeddings"]

    def add_policy(self, result: SlowResult, rewarded: int, rationales: int, last: int) -> None:
        """None: what a pause is worth teaches nothing."""
        result.advantage = {key: max(reward, 0.0) for key, reward in result.reward.items()}


def eager_model(config: dict, dtype: torch.dtype) -> PreTrainedModel:
    values = dict(config)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype).eval()


def cross_entropy(logits: Tensor, target: int) -> Tensor:
    return -torch.log_softmax(logits, dim=0)[target]


def mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()
