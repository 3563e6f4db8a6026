"""Tiny random models for the tests of the thought engine, with weights large enough for differences to show."""

import weakref
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from pipeline.thought.methods import NO_THOUGHT, PAUSE, QUIET_STAR
from pipeline.thought.model import QuietStarConfig, QuietStarForCausalLM
from pipeline.thought.objective import IGNORED
from tests.thought.slow_reference import SlowPause, SlowQuietStar

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
GPT2 = {
    "model_type": "gpt2",
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
GEMMA2 = {
    "model_type": "gemma2",
    **SIZES,
    "sliding_window": 5,
    "query_pre_attn_scalar": 4,
    "attn_logit_softcapping": 2.0,  # low enough to bend these scores and logits
    "final_logit_softcapping": 3.0,
}
ARCHITECTURES = {
    "llama": LLAMA,
    "mistral": {"model_type": "mistral", **SIZES, "sliding_window": None},
    "mistral, window": {"model_type": "mistral", **SIZES, "sliding_window": 4},
    # a window in the second layer only
    "qwen2": {"model_type": "qwen2", **SIZES, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {"model_type": "qwen3", **SIZES},
    "gemma": {"model_type": "gemma", **SIZES},
    "gemma2": GEMMA2,
    "gpt2": GPT2,
    "gpt_neox": {"model_type": "gpt_neox", **SIZES, "rotary_pct": 0.5},
    # logits that are multiplied, and divided
    "cohere": {"model_type": "cohere", **SIZES, "pad_token_id": 0, "logit_scale": 0.25},
    "granite": {"model_type": "granite", **SIZES, "logits_scaling": 3.0},
}
FOUR_BASES = pytest.mark.parametrize("name", ["llama", "mistral, window", "gemma2", "gpt2"])
METHODS = [QUIET_STAR, PAUSE, NO_THOUGHT]  # the others are controls of the first and last
ALL_METHODS = pytest.mark.parametrize("method", METHODS)
ENDING = {"thoughts_end": True, "ending_token_ids": [1, 4, 7, 10, 13, END]}  # random thoughts end anywhere, or not
# by what stands before a prediction
KINDS = {method: {"method": method} for method in METHODS} | {"ending": ENDING}
LENGTHS = (9, 7)  # of the two texts of `texts`
TOKENS = max(LENGTHS)


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
    return (SlowPause if model.config.method == PAUSE else SlowQuietStar)(model.state_dict(), model.config)


def random_ids(*shape: int, seed: int = 1, below: int = START) -> Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed))


def some_ignored(*shape: int, seed: int = 1, below: int = 7) -> Tensor:
    """Random ids, about a third of them ignored."""
    return random_ids(*shape, seed=seed, below=below).masked_fill(normal(*shape, seed=seed + 1) < -0.5, IGNORED)


def given_thoughts(rationales: int = 2, tokens: int = TOKENS) -> Tensor:
    return random_ids(2, rationales, tokens, 3, seed=2)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over norm of the reference."""
    assert actual.shape == expected.shape
    return ((actual - expected).norm() / expected.norm()).item()


class Texts(NamedTuple):
    """``mask``: None where nothing is padded."""

    ids: Tensor
    mask: Tensor | None
    labels: Tensor


def texts(padding: str | None = None, tokens: int = TOKENS, seed: int = 1) -> Texts:
    """Two texts, the second two tokens shorter where there is padding (random ids), on the left or right."""
    ids = random_ids(2, tokens, seed=seed)
    if padding is None:
        return Texts(ids, None, ids)
    mask = torch.ones_like(ids)
    mask[1, slice(0, 2) if padding == "left" else slice(-2, None)] = 0
    return Texts(ids, mask, ids.masked_fill(mask == 0, IGNORED))


def unpadded(ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[real.bool()].tolist() for row, real in zip(ids, mask, strict=True)]


def left_padded(prompts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Ids and mask of texts of several lengths, with an id where nobody should look."""
    width = max(map(len, prompts))
    ids = torch.stack([torch.cat([text.new_full((width - len(text),), 9), text]) for text in prompts])
    return ids, torch.stack([torch.arange(width) >= width - len(text) for text in prompts]).long()


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad()
    loss.backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def compare_gradients(actual: dict[str, Tensor | None], expected: dict[str, Tensor | None], tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    scale = torch.stack([g.norm() for g in expected.values() if g is not None]).norm()
    assert scale > 0
    for name, gradient in expected.items():
        assert (actual[name] is None) == (gradient is None), name
        if gradient is not None:
            # a gradient that cancels to nearly nothing is as exact as its parts
            assert (actual[name] - gradient).norm() <= tolerance * (gradient.norm() + 1e-2 * scale), name


def rows_of(owner: type, method: str, patch: pytest.MonkeyPatch) -> list[int]:
    """How many rows (..., D) each call of this method has from now on, calls without a row aside."""
    counts, call = [], getattr(owner, method)

    def record(self: object, states: Tensor, *rest: object) -> object:
        if states.numel():
            counts.append(states.shape[:-1].numel())
        return call(self, states, *rest)

    patch.setattr(owner, method, record)
    return counts


def peak(step: Callable[[], object]) -> int:
    """The most elements that wait for a backward pass at once while ``step`` runs."""
    now = most = 0

    def add(elements: int) -> None:
        nonlocal now, most
        now += elements
        most = max(most, now)

    class Held:
        def __init__(self, tensor: Tensor):
            self.tensor = tensor
            add(tensor.numel())
            weakref.finalize(self, add, -tensor.numel())

    with saved_tensors_hooks(Held, lambda held: held.tensor):
        step()
    return most


class Largest(TorchDispatchMode):
    """The most elements of a tensor that an operator makes (views are not made), of those that end in ``width``."""

    def __init__(self, width: int | None = None) -> None:
        super().__init__()
        self.elements, self._width = 0, width

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        for result in results if isinstance(results, tuple | list) else (results,):
            if isinstance(result, Tensor) and not func.is_view and self._width in (None, *result.shape[-1:]):
                self.elements = max(self.elements, result.numel())
        return results
