"""Tiny random models for the tests of the thought engine, with weights large enough for differences to show."""

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from pipeline.thought.methods import PAUSE
from pipeline.thought.model import QuietStarConfig, QuietStarForCausalLM
from tests.thought.slow_reference import Setting, SlowPause, SlowQuietStar

VOCABULARY = 23
START, END = 21, 22
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
GPT2_SIZES = {
    "vocab_size": VOCABULARY,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA = {"model_type": "llama", **SIZES}
MISTRAL_WINDOW = {"model_type": "mistral", **SIZES, "sliding_window": 4}
GEMMA2 = {
    "model_type": "gemma2",
    **SIZES,
    "sliding_window": 5,
    "query_pre_attn_scalar": 4,
    "attn_logit_softcapping": 2.0,  # low enough to bend these scores and logits
    "final_logit_softcapping": 3.0,
}
GPT2 = {"model_type": "gpt2", **GPT2_SIZES}
ARCHITECTURES = {
    "llama": LLAMA,
    "mistral": {"model_type": "mistral", **SIZES, "sliding_window": None},
    "mistral, window": MISTRAL_WINDOW,
    # a window in the second layer only
    "qwen2": {"model_type": "qwen2", **SIZES, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {"model_type": "qwen3", **SIZES},
    "gemma": {"model_type": "gemma", **SIZES},
    "gemma2": GEMMA2,
    "gpt2": GPT2,
    "gpt_neox": {"model_type": "gpt_neox", **SIZES, "rotary_pct": 0.5},
}


def config_of(base: dict) -> PretrainedConfig:
    values = dict(base)
    return AutoConfig.for_model(values.pop("model_type"), **values)


def base_model(base: dict, seed: int = 0, **options: object) -> PreTrainedModel:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config_of(base), **options)


def quiet_star(base: dict, seed: int = 0, **settings: object) -> QuietStarForCausalLM:
    """A model whose meta-tokens and mixing head are not at their start, where they would show nothing."""
    settings = {
        "thought_tokens": 3,
        "lookahead": 3,
        "meta_token_scale": 10.0,
        "policy_weight": 5.0,
        "start_token_id": START,
        "end_token_id": END,
    } | settings
    torch.manual_seed(seed)
    model = QuietStarForCausalLM(QuietStarConfig(base=base, **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("mixing_head"):
                parameter.normal_(std=0.4)
            elif name.endswith(("_embedding", "pause_embeddings")):
                parameter.normal_(std=0.05)
            elif parameter.dim() == 1:  # norms start at a constant and biases at 0
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def slow(model: QuietStarForCausalLM) -> SlowQuietStar:
    config = model.config
    setting = Setting(
        thought_tokens=config.thought_tokens,
        lookahead=config.lookahead,
        meta_token_scale=config.meta_token_scale,
        policy_weight=config.policy_weight,
        policy_temperature=config.policy_temperature,
        banned=(START, END),
    )
    kind = SlowPause if config.method == PAUSE else SlowQuietStar
    return kind(model.state_dict(), config.base, setting)


def random_ids(*shape: int, seed: int = 1, below: int = START) -> Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed))


def error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over norm of the reference."""
    assert actual.shape == expected.shape
    return ((actual - expected).norm() / expected.norm()).item()
