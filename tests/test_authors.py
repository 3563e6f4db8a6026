"""Reading the authors' checkpoints (their numbers are compared in thought/test_reference.py)."""

import pytest
import torch

from pipeline.authors import from_authors, from_their_counts

CONFIG = {
    "vocab_size": 17,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rope_theta": 123.0,
    "rms_norm_eps": 1e-3,
    "max_thoughts": 11,
    "use_complex_talk_head": True,
}


def their_state(settings: dict) -> dict[str, torch.Tensor]:
    """A state dict under their names, made from a model of ours."""
    ours = from_authors_untrained(settings).state_dict()
    state = {name.removeprefix("base.").replace("mixing_head.", "talk_head.0."): value for name, value in ours.items()}
    for name in ("start_embedding", "end_embedding"):
        state[name] = torch.stack([torch.randn(8), torch.full((8,), 99.0)])
    return state


def from_authors_untrained(settings: dict):
    from transformers import MistralConfig

    from pipeline.thought.model import QuietStarConfig, QuietStarForCausalLM

    base = MistralConfig(**{k: v for k, v in CONFIG.items() if not k.startswith(("max_thoughts", "use_"))})
    return QuietStarForCausalLM(QuietStarConfig(base=base.to_dict(), **settings))


def test_names_shapes_and_the_mean_row():
    settings = from_their_counts(n_ahead=8, n_ahead_talk=4, n_passes=2)
    assert settings == {"thought_tokens": 5, "lookahead": 4, "rationales": 2}
    state = their_state(settings)
    model = from_authors(state, CONFIG, **settings)
    assert torch.equal(model.start_embedding, state["start_embedding"][0])
    assert torch.equal(model.mixing_head[2].weight, state["talk_head.0.2.weight"])
    assert torch.equal(model.base.lm_head.weight, state["lm_head.weight"])


def test_the_configuration_is_kept_under_its_old_names_too():
    settings = from_their_counts(8, 4, 2)
    config = from_authors(their_state(settings), CONFIG, **settings).base.config
    assert config.rope_parameters["rope_theta"] == 123.0
    assert config.rms_norm_eps == 1e-3


def test_another_state_dict_is_refused():
    settings = from_their_counts(8, 4, 2)
    state = their_state(settings)
    del state["talk_head.0.0.weight"]
    with pytest.raises(ValueError, match="not a checkpoint"):
        from_authors(state, CONFIG, **settings)
