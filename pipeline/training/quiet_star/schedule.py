"""Stages of training (`train.stages`), each from the weights of the one before it, in one run.

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
