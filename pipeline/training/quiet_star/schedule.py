"""The settings that a method runs with, and stages of training (`train.stages`), each from the weights of the last.

What a step is computed with follows from its number alone, so a resumed run goes on as the uninterrupted one does.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import accumulate

from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from pipeline.params import Train
from pipeline.thought.layout import Layout
from pipeline.thought.methods import METHODS, PAUSE_SAME_COMPUTE, RLP
from pipeline.training.processes import SINGLE

# the settings of a method that takes no step: all that is measured is held-out text, and the base model is not copied
STEPLESS = {
    "steps": 0,
    "stages": [],
    "launcher": SINGLE,
    "adapt": "frozen",
    "saved": "learned",
    "precision": "float32",
    "trackers": [],
    "ema": None,
}


def ends_of(params: Train) -> list[int]:
    """How many steps of the run are finished at each stage's end."""
    return list(accumulate(stage.steps for stage in params.every_stage))


def stage_at(params: Train, finished: int) -> int:
    """The stage, from 0, of the step that comes after ``finished`` ones."""
    return bisect_right(ends_of(params), finished)


def in_all(params: Train) -> Train:
    """The settings of the whole run: all its steps, the first stage's learning rate, and the last one's K and A.

    The trained model keeps these, and evaluation thinks with them.
    """
    first, last = params.every_stage[0], params.every_stage[-1]
    sizes = {"thought_tokens": last.thought_tokens, "lookahead": last.lookahead}
    return replace(params, steps=ends_of(params)[-1], learning_rate=first.learning_rate, **sizes)


def settings_of(params: Train, method: str) -> Train:
    """The settings that ``method`` runs with; of stages, those of the whole run (`in_all`).

    pause_same_compute takes as many steps as make the tokens that pass through the decoder, backward passes counted
    twice, those of quiet_star: at each position that thinks R rows instead of one, and K tokens of each to sample it.
    They are a multiple of train.log_steps, so that the last one has a row in the log.
    """
    params = in_all(params)
    if not METHODS[method].trains:
        return replace(params, **STEPLESS)
    if method != PAUSE_SAME_COMPUTE:
        return params
    rows, row_tokens = params.rationales, Layout(params.thought_tokens, params.lookahead).row_tokens
    share = 1.0 if params.thinking.where == "every" else params.thinking.share
    thinking = 3 * (1 + share * rows * row_tokens) + share * rows * params.thought_tokens
    pausing = 3 * (1 + share * row_tokens)
    rows_of_log = round(params.steps * thinking / pausing / params.log_steps)
    return replace(params, steps=rows_of_log * params.log_steps)


def inner_epochs(params: Train, method: str) -> int:
    """How many optimizer steps are taken on a step's texts and thoughts."""
    return params.rlp.epochs if method == RLP else 1


def scale_rates(scheduler: LambdaLR, params: Train) -> None:
    """Multiply the rates that a scheduler gives by that of each step's stage over the first stage's."""
    stages = params.every_stage

    def scaled(rate: Callable[[int], float], step: int) -> float:
        stage = stages[min(stage_at(params, step), len(stages) - 1)]
        return rate(step) * (stage.learning_rate / stages[0].learning_rate)

    scheduler.lr_lambdas = [partial(scaled, rate) for rate in scheduler.lr_lambdas]


class StageEnds(TrainerCallback):
    """Asks for the held-out losses at the end of each stage."""

    def __init__(self, params: Train):
        self._ends = set(ends_of(params))

    def on_step_end(self, args, state, control, **kwargs) -> None:
        control.should_evaluate |= state.global_step in self._ends
