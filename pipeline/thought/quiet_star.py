"""What Quiet-STaR learns, in the paper's order (section 4.4): language modelling, rewards, advantages, REINFORCE."""

import torch
from torch import Tensor

from .head import IGNORED, HeadLosses, exact_dtype
from .objective import Counts, Objective, SliceLosses, SliceStates

POSITIVE, SIGNED = ADVANTAGES = ("positive", "signed")


class QuietStar(Objective):
    """loss = 1/2 base + 1/2 talk + beta policy (Zelikman et al. 2024, equation 5, and the authors' released code)."""

    base_share = talk_share = 0.5

    def forward(self, states: SliceStates, counts: Counts, head: HeadLosses) -> SliceLosses:
        """See `Objective.forward`. Gradients flow through all three terms; rewards and advantages are constants."""
        config, exact = self.config, exact_dtype(states.thinking)
        rationales = states.thinking.shape[1]

        # Talk: the mean over k of the mean cross-entropies of x_{i+1+k} with the thought.
        weights = 1 / (counts.distances * rationales * counts.targets.to(exact).clamp(min=1))
        talk_loss, talk = head.with_thoughts(
            "talk", states.mixed, states.text, states.at, states.targets, self.talk_share * weights
        )

        # Reward: how much likelier the thought made the next A tokens than they were without it.
        without = talk.without.unsqueeze(1)
        reward = (without - talk.nll).sum(-1) * states.rewarded.unsqueeze(1)
        advantage = self.advantages(self.worth(reward, states), states)

        # Policy: the mean over thoughts of the sum of their tokens' terms, over K: a thought that ended itself has
        # fewer terms (its other ids are IGNORED), so length is not rewarded as such.
        parts, policy = {"talk": talk_loss}, torch.zeros_like(talk_loss)
        log_probs = states.thinking.new_zeros(states.thinking.shape[:-1])
        terms = (counts.thoughts * rationales * config.thought_tokens).double().clamp(min=1)
        if states.ids is not None:
            parts["policy"], policy, log_probs = self.policy(advantage, states, terms, head)

        return SliceLosses(
            parts=parts,
            talk=(talk.nll * weights).sum(),
            policy=policy.to(exact),
            talk_nll=talk.nll,
            without_nll=without,
            weight=states.mixed.weight.detach() * (states.targets != IGNORED).unsqueeze(1),
            reward=reward,
            rounding=talk.rounding.sum(-1) * states.rewarded.unsqueeze(1),
            advantage=advantage,
            log_probs=log_probs,
        )

    @property
    def policy_weight(self) -> float:
        """Beta of the REINFORCE term."""
        return self.config.policy_weight

    def worth(self, rewards: Tensor, states: SliceStates) -> Tensor:
        """What a thought is worth (B, R, p): its reward less ``config.token_cost`` for each token, if it ends itself.

        Only advantages are made from it: the rewards that are reported are free of the cost.
        """
        return rewards - self.config.token_cost * states.lengths.to(rewards.dtype)

    def advantages(self, worth: Tensor, states: SliceStates) -> Tensor:
        """Advantages (B, R, p): how much more each thought is worth than the mean thought of its position.

        ``config.advantage`` positive: at least 0 (the paper's). signed: `leave_one_out`, unbiased. R = 1: the worth.
        """
        if self.config.advantage == SIGNED:
            return leave_one_out(worth)
        return (worth - worth.mean(1, keepdim=True) if worth.shape[1] > 1 else worth).clamp(min=0)

    def policy(
        self, advantage: Tensor, states: SliceStates, terms: Tensor, head: HeadLosses
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The part of the loss, the mean that it weighs, and the log-probabilities (B, R, p, K) of the tokens.

        Here REINFORCE: -advantage log p(token). ``terms``: what the mean over thoughts and tokens divides by.
        """
        by_token = (self.policy_weight / terms * advantage).unsqueeze(-1).expand(states.ids.shape)
        part, log_probs = self.score(by_token, states, head)
        return part, -((advantage.unsqueeze(-1) * log_probs).sum() / terms), log_probs

    def score(self, weights: Tensor, states: SliceStates, head: HeadLosses) -> tuple[Tensor, Tensor]:
        """The sum of -weight log p(token) over the tokens of the thoughts, and each log p (B, R, p, K), 0 after ends.

        Of thoughts sampled now, those without a weight are left out (0): they add nothing to the loss.
        """
        loss, nll = head.cross_entropy(
            "policy",
            states.thinking,
            states.ids,
            weights,
            temperature=self.config.policy_temperature,
            banned=self.config.banned_in_thoughts,
            complete=not (states.sampled and self.policy_weight),
        )
        return loss, -nll


def leave_one_out(worth: Tensor) -> Tensor:
    """R / (R - 1) times the difference from the mean of R thoughts (B, R, p); R = 1: ``worth`` itself.

    That is each one's worth less the mean of the *others* (Kool et al. 2019).
    """
    rationales = worth.shape[1]
    advantages = worth - worth.mean(1, keepdim=True) if rationales > 1 else worth
    return advantages * (rationales / max(1, rationales - 1))
