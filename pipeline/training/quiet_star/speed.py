"""How fast a step is beside what the device could do; for the log only, no output depends on it."""

import torch

from pipeline.errors import UserError
from pipeline.models.shape import shape_from
from pipeline.models.work import Step, learned_rank, pass_flops, peak_of, thinking_share
from pipeline.params import Train
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.training.processes import processes
from pipeline.training.trainer import Speed


def speed_of(params: Train, model: QuietStarForCausalLM, text_tokens: float) -> Speed:
    """The speed of training steps on texts of ``text_tokens`` tokens on average.

    MFU is known for a model whose sampled thoughts are trained in bfloat16 on a GPU that `peak_of` knows: it is the
    useful work of `pipeline.models.work` over what the devices could do.
    """
    texts = params.batch_size * params.accumulation
    speed = Speed(texts * text_tokens)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() and params.device != "cpu" else ""
    peak = peak_of(name)
    if peak is None or params.precision != "bfloat16" or not model.samples_thoughts:
        return speed
    share = thinking_share(params.thinking, text_tokens)
    if share is None:
        return speed
    sizes = (params.rationales, params.thought_tokens, params.lookahead)
    try:
        shape, step = shape_from(model.config.base_config()), Step(texts, round(text_tokens), *sizes, share)
        work = pass_flops(shape, step, learned_rank(params))
    except UserError:  # a mixture of experts
        return speed
    return Speed(speed.tokens, work / (peak * processes()))
