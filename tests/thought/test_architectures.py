"""Thoughts and pauses run in parallel equal the slow reference, on every architecture; what cannot think so says so."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.thought.decoder import Decoder, UnsupportedDecoderError, build_decoder, check_decoder
from pipeline.thought.head import IGNORED
from pipeline.thought.methods import PAUSE, QUIET_STAR
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.sampler import Sampling
from pipeline.thought.step import DEFAULT_ENGINE, Engine
from tests.thought.slow_reference import SlowQuietStar
from tests.thought.tiny import (
    ARCHITECTURES,
    GPT2,
    KINDS,
    LENGTHS,
    LLAMA,
    SIZES,
    TOKENS,
    base_model,
    compare_gradients,
    config_of,
    error,
    gradients,
    quiet_star,
    random_ids,
    rows_of,
    slow,
    texts,
    unpadded,
)

ENGINES = [Engine(attention, positions) for attention in ("reference", "blocked") for positions in (None, 1, 3, 100)]
ARCHITECTURE_AND_ENGINE = [(name, ENGINES[i % len(ENGINES)]) for i, name in enumerate(ARCHITECTURES)]
KINDS_OF_THOUGHTS = pytest.mark.parametrize("kind", [QUIET_STAR, PAUSE, "ending"])


def check_step(
    model: QuietStarForCausalLM, engines: list[Engine], tolerance: float = 1e-5, thinks: Tensor | None = None
) -> None:
    """A training step by each of ``engines`` equals the slow reference, gradients included."""
    ids, mask, labels = texts("right")
    pauses, reference, thoughts = model.config.method == PAUSE, slow(model), None
    rationales = 1 if pauses else model.config.rationales
    if not pauses:
        thoughts = random_ids(len(LENGTHS), rationales, TOKENS, model.config.thought_tokens, seed=2)
        if model.config.thoughts_end:
            kept = {len(reference.kept(thought)) for thought in thoughts.flatten(0, 2).tolist()}
            assert kept == set(range(model.config.thought_tokens + 1))
    expected = reference.losses(unpadded(ids, mask), TOKENS, thoughts, thinks)
    expected.total.backward()
    assert all(gradient.any() for gradient in reference.gradients().values())
    for engine in engines:
        output = model(ids, mask, labels=labels, thought_ids=thoughts, engine=engine, thinks=thinks)
        losses = output.losses
        for name in ("total", "base", "talk", "policy"):
            wanted = getattr(expected, name).item()
            assert getattr(losses, name).item() == pytest.approx(wanted, rel=tolerance), name
        assert output.weight.shape == losses.talk_nll.shape
        assert output.weight.shape == (len(LENGTHS), rationales, TOKENS, model.config.lookahead)
        # every rewarded position of a real token
        rewarded = losses.reward.shape[-1]
        keys = [key for key in expected.reward if key[2] < rewarded]
        if thinks is None:
            assert len(keys) == rationales * sum(min(length, rewarded) for length in LENGTHS)
        index = tuple(torch.tensor(keys).T)
        for name in ("reward", "advantage"):
            wanted = losses.reward.new_tensor([getattr(expected, name)[key] for key in keys])
            assert error(getattr(losses, name)[index], wanted) < tolerance, name
        if pauses:
            assert not losses.log_probs.any()
        else:
            keys = [key for key in keys if key[2] < LENGTHS[key[0]] - 1]  # the last token has nothing to think about
            log_probs = torch.stack([torch.stack(expected.log_probs[key]) for key in keys]).detach()
            assert error(losses.log_probs[tuple(torch.tensor(keys).T)], log_probs) < tolerance
        compare_gradients(gradients(model, output.loss), reference.gradients(), tolerance)


# of the two texts of `texts`, by what chooses them; the eighth and ninth tokens of the second are padding
CHOSEN = {
    "a share": [[0, 2, 3, 6, 7], [1, 2, 5]],
    "one": [[4], [2]],
    "after a marker": [[1, 2, 3], [0, 3, 5, 8]],
    "one text only": [[0, 1, 4, 6], []],
    "all": [list(range(9)), list(range(9))],
}


def mask_of(chosen: list[list[int]]) -> Tensor:
    """The positions (2, N) as True in a mask."""
    return torch.stack([torch.isin(torch.arange(TOKENS), torch.tensor(some, dtype=torch.long)) for some in chosen])


@KINDS_OF_THOUGHTS
@pytest.mark.parametrize("chosen", CHOSEN.values(), ids=CHOSEN.keys())
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_chosen_positions_think_and_no_others(name, chosen, kind):
    model = quiet_star(ARCHITECTURES[name], **KINDS[kind]).double()
    check_step(model, ENGINES[::3], tolerance=1e-5, thinks=mask_of(chosen))  # their norms are float32


@pytest.mark.parametrize("sampled", [True, False], ids=["sampled", "given"])
def test_what_does_not_think_costs_nothing(sampled, monkeypatch):
    """Padding, the last token and what is not chosen; for the text, what is padding in every text."""
    model = quiet_star(LLAMA)
    rows, texts_read = rows_of(Decoder, "run_rows", monkeypatch), rows_of(Decoder, "run", monkeypatch)
    row_tokens, rationales = model.layout.row_tokens, model.config.rationales
    ids, mask, labels = texts("right", tokens=12)
    mask[:, 9:], mask[1, 7:] = 0, 0
    labels = labels.masked_fill(mask == 0, IGNORED)
    thoughts = None if sampled else random_ids(2, rationales, 12, 3)
    for thinks, count in ((None, 8 + 6), (mask_of(CHOSEN["a share"]), 5 + 3), (mask_of(CHOSEN["one"]), 2)):
        thinks = thinks if thinks is None else F.pad(thinks, (0, 3), value=True)
        rows.clear(), texts_read.clear()
        losses = model(ids, mask, labels=labels, thought_ids=thoughts, thinks=thinks).losses
        assert rows == [*[rationales * count] * (3 if sampled else 0), rationales * count * row_tokens]
        assert texts_read == [2 * 9, *rows]
        assert losses.thinks.shape == (2, 12) and losses.thinks.sum() == count
        assert not losses.talk_nll[~losses.thinks.unsqueeze(1).expand(-1, rationales, -1)].any()


@KINDS_OF_THOUGHTS
@pytest.mark.parametrize(("name", "engine"), ARCHITECTURE_AND_ENGINE, ids=[name for name, _ in ARCHITECTURE_AND_ENGINE])
def test_parallel_thoughts_equal_thoughts_alone(name, engine, kind):
    check_step(quiet_star(ARCHITECTURES[name], **KINDS[kind]), [engine])


@KINDS_OF_THOUGHTS
@pytest.mark.parametrize("lookahead", [1, 3])
def test_every_engine_in_double_precision(lookahead, kind):
    """GPT-2, whose own attention and norms do not round to float32 on the way."""
    check_step(quiet_star(GPT2, lookahead=lookahead, **KINDS[kind]).double(), ENGINES, 1e-12)


@KINDS_OF_THOUGHTS
def test_one_thought_of_one_token_and_one_true_token(kind):
    """One thought's reward is compared with nothing."""
    for settings in ({"rationales": 1}, {"thought_tokens": 1, "lookahead": 1}):
        check_step(quiet_star(LLAMA, seed=1, **KINDS[kind], **settings), [DEFAULT_ENGINE])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("base", ["llama", "mistral, window", "gemma2", "gpt2"])
@pytest.mark.parametrize("kind", [PAUSE, "ending"])
@torch.no_grad()
def test_thoughts_predict_what_they_predict_alone(base, side, kind):
    """Mixed and base logits, and so the mixing weight, of every real token of padded texts."""
    model = quiet_star(ARCHITECTURES[base], **KINDS[kind]).eval()
    ids, mask, _ = texts(side)
    reference, rows, real = slow(model), unpadded(ids, mask), mask.bool()
    places = [(row, i) for row in rows for i in range(len(row))]
    given = None if kind == PAUSE else random_ids(2, 1, TOKENS, 3, seed=2)
    output = model(ids, mask, thought_ids=given)
    thoughts = [[]] * len(places) if given is None else given[:, 0][real].tolist()
    expected = [reference.mixed_logits(row, i, thought) for (row, i), thought in zip(places, thoughts, strict=True)]
    base_logits = [reference.logits(reference.states(reference.embed(row))) for row in rows]
    assert error(output.logits[real], torch.stack(expected)) < 1e-5
    assert error(output.base_logits[real], torch.cat(base_logits)) < 1e-5
    assert error(output.weight[real], mixing_weights(reference, places, thoughts)) < 1e-5
    assert error(output.logits[real], output.base_logits[real]) > 0.1  # or the mixture would not show
    if given is not None:  # sampled token by token, or given as whole rows
        sampled = model(ids, mask, sampling=Sampling(1.0, seed=3))
        assert len(sampled.thoughts.lengths.unique()) > 1
        assert error(model(ids, mask, thought_ids=sampled.thoughts.ids).logits[real], sampled.logits[real]) < 1e-5


def mixing_weights(reference: SlowQuietStar, places: list[tuple[list[int], int]], thoughts: list[list[int]]) -> Tensor:
    """How far from the base state to the state after the thought the mixture lies, at each token."""
    weights = []
    for (row, i), thought in zip(places, thoughts, strict=True):
        base = reference.states(reference.embed(row))[i]
        lead = reference.thought_states(row[: i + 1], i, thought)[-1] - base
        weights.append((reference.mix(base, base + lead) - base) @ lead / lead.norm() ** 2)
    return torch.stack(weights)


BART = {"d_model": 16, "decoder_layers": 1, "encoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 16}
WINDOW = {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}  # longer than the check's texts
QWEN2_MOE = {"model_type": "qwen2_moe", **SIZES, "num_experts": 2, "num_experts_per_tok": 1, **WINDOW}
UNSUPPORTED = {
    "state space": {"model_type": "mamba", "vocab_size": 23, "hidden_size": 16, "num_hidden_layers": 2},
    "alibi": {"model_type": "bloom", "vocab_size": 23, "hidden_size": 16, "n_layer": 2, "n_head": 4},
    "encoder-decoder": {"model_type": "t5", "vocab_size": 23, "d_model": 16, "num_layers": 1, "num_heads": 4},
    "encoder-decoder with a decoder of its own": {"model_type": "bart", "vocab_size": 23, **BART},
    "encoder": {"model_type": "bert", **SIZES, "pad_token_id": 0},
    "attention sinks": {"model_type": "gpt_oss", **SIZES, "num_local_experts": 2, "num_experts_per_tok": 1},
    "a table of attention classes": {**GPT2, "model_type": "gptj", "rotary_dim": 2},
    "too few learned positions": {**GPT2, "n_positions": 8},
}


@pytest.mark.parametrize("base", UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_unsupported(base):
    with pytest.raises(UnsupportedDecoderError) as caught:
        check_decoder(build_decoder(config_of(base)))
    message = str(caught.value)
    assert message.startswith(f"{base['model_type']}: ")
    assert "\n" not in message and len(message) < 200


def test_a_window_that_layers_keep_from_attention_is_noticed():
    """Qwen2-MoE's is in its masks alone. It can think without one."""
    check_decoder(build_decoder(config_of({**QWEN2_MOE, "use_sliding_window": False})))
    with pytest.raises(UnsupportedDecoderError, match=r"qwen2_moe: a thought run in parallel differs by"):
        check_decoder(build_decoder(config_of(QWEN2_MOE)))


@pytest.mark.parametrize("weights", [0.02, 0.3])
def test_small_weights_hide_no_layer_that_is_not_attention(weights: float):
    """Of new weights as small as usual a convolution changes a hundred-thousandth of the logits."""
    layers = {"layer_types": ["conv", "full_attention"], "initializer_range": weights}
    check_decoder(base_model({**LLAMA, "initializer_range": weights}))
    with pytest.raises(UnsupportedDecoderError, match="lfm2: a thought run in parallel differs by"):
        check_decoder(base_model({"model_type": "lfm2", **SIZES, **layers}))


def test_a_model_of_an_attention_of_its_own_is_noticed_before_it_is_trained():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    with pytest.raises(UnsupportedDecoderError, match="biogpt: it does not use transformers' attention interface"):
        check_decoder(base_model({"model_type": "biogpt", "vocab_size": 23, **sizes}))


def test_the_check_leaves_windows_as_they_are():
    model = build_decoder(config_of({**ARCHITECTURES["mistral, window"], "sliding_window": 32}))
    check_decoder(model)
    assert model.config.sliding_window == 32


def test_from_base_checks_the_decoder():
    base = base_model(UNSUPPORTED["a table of attention classes"])
    with pytest.raises(UnsupportedDecoderError, match="gptj: it does not use transformers' attention interface"):
        QuietStarForCausalLM.from_base(base, [3])
