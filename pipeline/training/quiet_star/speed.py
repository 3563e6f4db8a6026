"""How fast a step is beside what the device could do; for the log only, no output depends on it."""

import torch

from pipeline.errors import UserError
from pipeline.params import Train
from pipeline.plan.shape import shape_from
from pipeline.plan.work import Step, pass_flops, thinking_share
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.training.processes import processes
from pipeline.training.trainer import Speed

# dense operations a second in bfloat16, by a part of the device's name; the first that fits (NVIDIA's data sheets)
PEAKS = {
    "B200": 2.25e15,
    "H200": 9.89e14,
    "H100 PCIe": 7.56e14,
    "H100": 9.89e14,
    "A100": 3.12e14,
    "L40S": 3.62e14,
    "L4": 1.21e14,
    "RTX 4090": 1.65e14,
    "RTX 3090": 7.1e13,
}


def speed_of(params: Train, model: QuietStarForCausalLM, text_tokens: float) -> Speed:
    """The speed of training steps on texts of ``text_tokens`` tokens on average.

    MFU is known for a model whose sampled thoughts are trained in bfloat16 on a GPU of `PEAKS`: it is the useful work
    of `pipeline.plan.work` over what the devices could do.
    """
    texts = params.batch_size * params.accumulation
    speed = Speed(texts * text_tokens)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() and params.device != "cpu" else ""
    peak = next((value for part, value in PEAKS.items() if part in name), None)
    if peak is None or params.precision != "bfloat16" or not model.samples_thoughts:
        return speed
    share = thinking_share(params.thinking, text_tokens)
    if share is None:
        return speed
    sizes = (params.rationales, params.thought_tokens, params.lookahead)
    rank = {"whole": None, "lora": params.lora.rank, "frozen": 0}[params.adapt]
    try:
        work = pass_flops(shape_from(model.config.base_config()), Step(texts, round(text_tokens), *sizes, share), rank)
    except UserError:  # a mixture of experts
        return speed
    return Speed(speed.tokens, work / (peak * processes()))
