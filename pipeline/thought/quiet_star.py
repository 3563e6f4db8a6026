"""What Quiet-STaR learns, in the paper's order (section 4.4): language modelling, rewards, advantages, REINFORCE."""

from torch import Tensor

from .head import IGNORED, HeadLosses, exact_dtype
from .layout import ahead
from .objective import Counts, Losses, Objective, SliceStates

POSITIVE, SIGNED = ADVANTAGES = ("positive", "signed")


class QuietStar(Objective):
    """loss = 1/2 base + 1/2 talk + beta policy (Zelikman et al. 2024, equation 5, and the authors' released code)."""

    def forward(self, states: SliceStates, counts: Counts, head: HeadLosses) -> Losses:
        """See `Objective.forward`. Gradients flow through all three terms; rewards and advantages are constants."""
        config, exact = self.config, exact_dtype(states.mixed)
        rationales, positions, lookahead = states.mixed.shape[1:4]
        targets_of_step = counts.targets.to(exact).clamp(min=1)

        # Base: the mean cross-entropy of x_{i+1} without a thought. Positions past the slice count in another one.
        targets = states.targets[..., 0]
        base_weights = (targets != IGNORED).to(exact) / targets_of_step[0]
        base_weights[:, positions:] = 0
        base_loss, base_nll = head.cross_entropy("base", states.base, targets, 0.5 * base_weights)

        # Talk: the mean over k of the mean cross-entropies of x_{i+1+k} with the thought.
        targets = states.targets[:, None, :positions].expand(-1, rationales, -1, -1)
        talk_weights = (targets != IGNORED).to(exact) / (lookahead * rationales * targets_of_step)
        talk_loss, talk_nll = head.cross_entropy("talk", states.mixed, targets, 0.5 * talk_weights)

        # Reward: how much likelier the thought made the next A tokens than they were without it.
        without = ahead(base_nll, lookahead, fill=0.0)[:, None, :positions]
        reward = (without - talk_nll).sum(-1)[:, :, : states.thinking.shape[2]]
        advantage = self.advantages(reward, states)

        # Policy: REINFORCE, the mean over thoughts of the sum of -advantage log p(token), over K: a thought that ended
        # itself has fewer terms (its other ids are IGNORED), so length is not rewarded as such.
        parts = {"base": base_loss, "talk": talk_loss}
        log_probs = states.thinking.new_zeros(states.thinking.shape[:-1])
        terms = (counts.thoughts * rationales * config.thought_tokens).double().clamp(min=1)
        if states.ids is not None:
            weights = (self.policy_weight / terms * advantage).unsqueeze(-1).expand(states.ids.shape)
            # of thoughts sampled now, those without an advantage are left out: they add nothing to the loss
            parts["policy"], nll = head.cross_entropy(
                "policy",
                states.thinking,
                states.ids,
                weights,
                temperature=config.policy_temperature,
                banned=config.banned_in_thoughts,
                complete=not (states.sampled and self.policy_weight),
            )
            log_probs = -nll
        policy = -((advantage.unsqueeze(-1) * log_probs).sum() / terms).to(exact)

        return Losses(
            total=sum(parts.values()),
            parts=parts,
            base=(base_nll * base_weights)[:, :positions].sum(),
            talk=(talk_nll * talk_weights).sum(),
            policy=policy,
            base_nll=base_nll[:, :positions],
            talk_nll=talk_nll,
            weight=states.weight.detach(),
            reward=reward,
            advantage=advantage,
            log_probs=log_probs,
        )

    @property
    def policy_weight(self) -> float:
        """Beta of the REINFORCE term."""
        return self.config.policy_weight

    def advantages(self, rewards: Tensor, states: SliceStates) -> Tensor:
        """Advantages (B, R, q): how much more each thought is worth than the mean thought of its position.

        ``config.advantage`` positive: at least 0 (the paper's). signed: R / (R - 1) times the difference, which is the
        reward less the mean of the *other* thoughts (leave-one-out, Kool et al. 2019), unbiased. R = 1: the reward.
        """
        rationales = rewards.shape[1]
        advantages = rewards - rewards.mean(1, keepdim=True) if rationales > 1 else rewards
        if self.config.advantage == SIGNED:
            return advantages * (rationales / max(1, rationales - 1))
        return advantages.clamp(min=0)
