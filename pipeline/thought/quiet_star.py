"""What Quiet-STaR learns, in the paper's order (section 4.4): language modelling, rewards, advantages, REINFORCE."""

from torch import Tensor

from .head import IGNORED, HeadLosses, exact_dtype
from .objective import Counts, Objective, SliceLosses, SliceStates

POSITIVE, SIGNED = ADVANTAGES = ("positive", "signed")


class QuietStar(Objective):
    """loss = 1/2 base + 1/2 talk + beta policy (Zelikman et al. 2024, equation 5, and the authors' released code)."""

    base_share = 0.5

    def forward(self, states: SliceStates, counts: Counts, head: HeadLosses) -> SliceLosses:
        """See `Objective.forward`. Gradients flow through all three terms; rewards and advantages are constants."""
        config, exact = self.config, exact_dtype(states.thinking)
        rationales, lookahead = states.thinking.shape[1], states.targets.shape[-1]

        # Talk: the mean over k of the mean cross-entropies of x_{i+1+k} with the thought.
        weights = 1 / (lookahead * rationales * counts.targets.to(exact).clamp(min=1))
        talk_loss, talk = head.with_thoughts(
            "talk", states.mixed, states.text, states.at, states.targets, 0.5 * weights
        )

        # Reward: how much likelier the thought made the next A tokens than they were without it.
        without = talk.without.unsqueeze(1)
        reward = (without - talk.nll).sum(-1) * states.rewarded.unsqueeze(1)
        advantage = self.advantages(reward, states)

        # Policy: REINFORCE, the mean over thoughts of the sum of -advantage log p(token), over K: a thought that ended
        # itself has fewer terms (its other ids are IGNORED), so length is not rewarded as such.
        parts = {"talk": talk_loss}
        log_probs = states.thinking.new_zeros(states.thinking.shape[:-1])
        terms = (counts.thoughts * rationales * config.thought_tokens).double().clamp(min=1)
        if states.ids is not None:
            by_token = (self.policy_weight / terms * advantage).unsqueeze(-1).expand(states.ids.shape)
            # of thoughts sampled now, those without an advantage are left out: they add nothing to the loss
            parts["policy"], nll = head.cross_entropy(
                "policy",
                states.thinking,
                states.ids,
                by_token,
                temperature=config.policy_temperature,
                banned=config.banned_in_thoughts,
                complete=not (states.sampled and self.policy_weight),
            )
            log_probs = -nll
        policy = -((advantage.unsqueeze(-1) * log_probs).sum() / terms).to(exact)

        return SliceLosses(
            parts=parts,
            talk=(talk.nll * weights).sum(),
            policy=policy,
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

    def advantages(self, rewards: Tensor, states: SliceStates) -> Tensor:
        """Advantages (B, R, p): how much more each thought is worth than the mean thought of its position.

        ``config.advantage`` positive: at least 0 (the paper's). signed: R / (R - 1) times the difference, which is the
        reward less the mean of the *other* thoughts (leave-one-out, Kool et al. 2019), unbiased. R = 1: the reward.
        """
        rationales = rewards.shape[1]
        advantages = rewards - rewards.mean(1, keepdim=True) if rationales > 1 else rewards
        if self.config.advantage == SIGNED:
            return advantages * (rationales / max(1, rationales - 1))
        return advantages.clamp(min=0)
