"""Thoughts distilled away: what the model predicts without thoughts also learns from what it predicts with them.

The teacher is the same model in the same step, so nothing is kept on disk; the student costs what the base model does.
"""

from dataclasses import replace

from .head import IGNORED, HeadLosses
from .objective import Counts, SliceLosses, SliceStates
from .quiet_star import QuietStar

KL, REINFORCE = FORMS = ("kl", "reinforce")


class Distilled(QuietStar):
    """Quiet-STaR's loss + w * distill, a mean over the positions that think and have a next token to learn.

    kl: KL(teacher || student) of the next token, the teacher being the mean over R thoughts of the mixed prediction, a
    constant, and the student the text pass. reinforce: -r log p(x) of the student with the constant r = CE_teacher(x) -
    CE_student(x), CE_teacher the mean over thoughts (Fast Quiet-STaR, Huang et al. 2025, arXiv 2505.17746, NTP stage).
    The latter's gradient is minus that of (CE_teacher - CE_student)^2 / 2: as stated there, a step moves the student
    *away* from its teacher, at a student's own tokens up KL(student || teacher). A negative weight moves it closer.
    """

    def forward(self, states: SliceStates, counts: Counts, head: HeadLosses) -> SliceLosses:
        """See `Objective.forward`. The student's states have a gradient, the teacher's have not."""
        quiet, targets = super().forward(states, counts, head), states.targets[..., 0]
        student = states.live[states.at[..., 0]]  # (B, p, D)
        weights = (targets != IGNORED) * (self.config.distill_weight / counts.targets[0].to(quiet.talk).clamp(min=1))
        if self.config.distill_form == KL:
            talk, mixing = states.mixed.talk[..., 0, :], states.mixed.weight[..., 0].detach()
            loss, _ = head.divergence("distill", student, talk, mixing, weights)
        else:
            reward = quiet.talk_nll[..., 0].mean(1) - quiet.without_nll[:, 0, :, 0]
            loss, _ = head.cross_entropy("distill", student, targets, weights * reward, complete=False)
        return replace(quiet, parts=quiet.parts | {"distill": loss})
