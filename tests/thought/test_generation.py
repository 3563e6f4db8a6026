"""Generation on cached keys and values equals recomputing the whole unpadded text for every token."""

import pytest
import torch
from torch import Tensor

from pipeline.thought.decoder import Decoder
from pipeline.thought.generation import SAMPLES_APART, TEXT_STEP
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.sampler import Sampling, ban, draw, uniforms
from tests.thought.tiny import ARCHITECTURES, END, LLAMA, START, quiet_star, random_ids, slow

GREEDY = Sampling(temperature=0.0)
NEW = 7
LENGTHS = (5, 3, 6)


def left_padded(texts: list[Tensor]) -> tuple[Tensor, Tensor]:
    width = max(len(text) for text in texts)
    ids = torch.stack([torch.cat([text.new_zeros(width - len(text)), text]) for text in texts])
    mask = torch.stack([torch.arange(width) >= width - len(text) for text in texts]).long()
    return ids, mask


def prompts() -> list[Tensor]:
    return [random_ids(length, seed=length) for length in LENGTHS]


@torch.no_grad()
def recomputed(
    model: QuietStarForCausalLM, text: Tensor, new: int, sampling: Sampling, thoughts: Sampling, key: int
) -> Tensor:
    """The new tokens of one unpadded text, each from a forward pass over all of it."""
    keys, written = torch.tensor([key]), text[None]
    for _ in range(new):
        logits = model(written, sampling=thoughts, text_keys=keys).logits[:, -1]
        chance = uniforms(sampling.seed, keys, 1, torch.tensor([[written.shape[1] - 1]]), TEXT_STEP)[:, 0, 0]
        written = torch.cat(
            [written, draw(logits := ban(logits, model.banned), logits.softmax(-1), sampling, chance)[:, None]], dim=1
        )
    return written[0, len(text) :]


@pytest.fixture(scope="module")
def model():
    return quiet_star(LLAMA).eval()


@pytest.mark.parametrize("base", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_greedy_text_equals_recomputation(base):
    model, texts = quiet_star(base).eval(), prompts()
    written = model.generate(*left_padded(texts), max_new_tokens=NEW)
    assert written.shape == (len(texts), max(LENGTHS) + NEW)
    for b, text in enumerate(texts):
        assert torch.equal(written[b, -NEW:], recomputed(model, text, NEW, GREEDY, GREEDY, b))


def test_greedy_text_equals_the_slow_reference(model):
    text = random_ids(4)
    written = model.generate(text[None], max_new_tokens=4)[0].tolist()
    reference = slow(model)
    for length in range(4, 8):
        so_far = written[:length]
        thought = reference.greedy_thought(so_far, length - 1)
        logits = reference.mixed_logits(so_far, length - 1, thought)
        assert written[length] == reference.without_banned(logits).argmax().item()


def test_sampled_text_equals_recomputation(model):
    texts, keys = prompts(), [11, 3, 8]
    sampling, thoughts = Sampling(1.0, seed=4), Sampling(1.0, seed=9)
    written = model.generate(
        *left_padded(texts),
        max_new_tokens=NEW,
        sampling=sampling,
        thought_sampling=thoughts,
        text_keys=torch.tensor(keys),
    )
    for b, (text, key) in enumerate(zip(texts, keys, strict=True)):
        assert torch.equal(written[b, -NEW:], recomputed(model, text, NEW, sampling, thoughts, key))


def test_a_named_text_is_continued_alike_in_any_batch(model):
    texts, sampling = prompts(), Sampling(1.0, seed=4)

    def write(some: list[Tensor], keys: list[int]) -> Tensor:
        options = {"sampling": sampling, "thought_sampling": sampling, "max_new_tokens": NEW}
        return model.generate(*left_padded(some), text_keys=torch.tensor(keys), **options)[:, -NEW:]

    together = write(texts, [5, 6, 7])
    assert torch.equal(write(texts[1:2], [6])[0], together[1])
    assert torch.equal(write(texts[::-1], [7, 6, 5]), together.flip(0))
    assert not torch.equal(write(texts[1:2], [7])[0], together[1])


def test_thoughts_change_what_is_written(model):
    """Otherwise the tests above would not see them."""
    text = random_ids(6)[None]
    with torch.no_grad():
        output = model(text)
    assert (output.logits - output.base_logits).abs().max() > 0.1


def test_nothing_is_written_after_the_end_token(model):
    ids, mask = left_padded(prompts())
    free = model.generate(ids, mask, max_new_tokens=NEW)
    eos = int(free[0, ids.shape[1] + 2])
    pad = next(i for i in range(START) if i not in free)
    ended = model.generate(ids, mask, max_new_tokens=NEW, eos_token_id=eos, pad_token_id=pad)
    for b in range(len(ids)):
        expected = free[b].tolist()
        stop = next((i for i in range(ids.shape[1], len(expected)) if expected[i] == eos), len(expected))
        expected = expected[: stop + 1] + [pad] * len(expected)
        assert ended[b].tolist() == expected[: ended.shape[1]]
    assert (ended == pad).any()


def test_it_stops_once_every_text_has_ended(model):
    text = random_ids(4)[None]
    free = model.generate(text, max_new_tokens=NEW)[0, 4:].tolist()
    ended = model.generate(text, max_new_tokens=NEW, eos_token_id=free[1])
    assert ended[0, 4:].tolist() == free[: free.index(free[1]) + 1]


def test_meta_tokens_are_never_written():
    model = quiet_star({**LLAMA, "tie_word_embeddings": False}).eval()
    ids, banned = random_ids(2, 5), torch.tensor([START, END])
    with torch.no_grad():
        model.base.lm_head.weight[banned] = 50 * model.decoder.read(ids)[0].flatten(0, 1).mean(0)
        assert torch.isin(model(ids).logits.argmax(-1), banned).any()
    for temperature in (0.0, 1.0, 30.0):
        written = model.generate(ids, max_new_tokens=20, sampling=Sampling(temperature, seed=2))
        assert not torch.isin(written, banned).any()


def test_no_new_tokens_return_the_prompt(model):
    ids = random_ids(2, 5)
    assert torch.equal(model.generate(ids, max_new_tokens=0), ids)


def test_an_empty_prompt_is_refused(model):
    with pytest.raises(ValueError, match="at least one token"):
        model.generate(torch.zeros(2, 0, dtype=torch.long))


def test_padding_on_the_right_is_refused(model):
    ids = random_ids(2, 5)
    mask = torch.ones_like(ids)
    mask[1, -1] = 0
    with pytest.raises(ValueError, match="left side only"):
        model.generate(ids, mask)


def test_samples_of_a_prompt_stand_together_and_the_first_is_the_only_one(model):
    ids, mask = left_padded(prompts())
    sampling = Sampling(1.0, seed=4)
    options = {"max_new_tokens": NEW, "sampling": sampling, "thought_sampling": sampling}
    several = model.generate(ids, mask, samples=3, **options).view(len(ids), 3, -1)
    assert torch.equal(several[:, 0], model.generate(ids, mask, **options))
    assert torch.equal(several[:, :, : ids.shape[1]], ids[:, None].expand(-1, 3, -1))
    new = several[:, :, -NEW:]
    assert all(not torch.equal(new[b, r], new[b, s]) for b in range(len(ids)) for r in range(3) for s in range(r))


def test_a_sample_equals_recomputation_under_its_own_name(model):
    text, sampling, thoughts = prompts()[0], Sampling(1.0, seed=4), Sampling(1.0, seed=9)
    written = model.generate(
        text[None],
        max_new_tokens=NEW,
        sampling=sampling,
        thought_sampling=thoughts,
        samples=2,
        text_keys=torch.tensor([5]),
    )
    expected = recomputed(model, text, NEW, sampling, thoughts, 5 + SAMPLES_APART)
    assert torch.equal(written[1, -NEW:], expected)


def test_greedy_samples_are_all_alike(model):
    written = model.generate(prompts()[0][None], max_new_tokens=4, samples=3)
    assert torch.equal(written, written[:1].expand(3, -1))


def letters(ids: list[int]) -> str:
    return "".join(chr(ord("a") + i) for i in ids)


def test_nothing_is_written_after_a_stop_string(model):
    ids, mask = left_padded(prompts())
    free = model.generate(ids, mask, max_new_tokens=NEW, sampling=Sampling(1.0, seed=4))
    stop = letters(free[1, -NEW + 1 : -NEW + 3].tolist())  # the second and third token of the second text
    written = model.generate(
        ids,
        mask,
        max_new_tokens=NEW,
        sampling=Sampling(1.0, seed=4),
        stop_strings=[stop],
        decode=letters,
        pad_token_id=1,
    )
    for row, expected in zip(written[:, ids.shape[1] :].tolist(), free[:, ids.shape[1] :].tolist(), strict=True):
        at = letters(expected).find(stop)
        end = len(expected) if at < 0 else at + len(stop)
        assert row == (expected[:end] + [1] * len(expected))[: len(row)]
    assert letters(free[1, ids.shape[1] :].tolist()).find(stop) in (0, 1)


def test_a_stop_string_in_the_prompt_or_across_its_end_does_not_stop(model):
    text = prompts()[0]
    free = model.generate(text[None], max_new_tokens=NEW)[0].tolist()
    across = letters(free[len(text) - 1 : len(text) + 1])
    for stop in (letters(text.tolist()), across):
        if stop not in letters(free[len(text) :]):
            written = model.generate(text[None], max_new_tokens=NEW, stop_strings=[stop], decode=letters)
            assert written[0].tolist() == free


def test_a_long_stop_string_is_found(model):
    """Longer than what the last few tokens hold."""
    text = prompts()[0]
    free = model.generate(text[None], max_new_tokens=NEW)[0].tolist()
    stop = letters(free[len(text) : len(text) + NEW - 1])
    written = model.generate(text[None], max_new_tokens=NEW + 5, stop_strings=[stop], decode=letters)
    assert written[0].tolist() == free[:-1]


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({"stop_strings": ["a"]}, "stop strings need decode"),
        ({"stop_strings": [""], "decode": letters}, "a stop string is empty"),
        ({"samples": 0}, "samples is 0"),
    ],
)
def test_what_cannot_be_is_refused(model, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        model.generate(prompts()[0][None], **options)


def test_logits_that_overflow_are_told_of():
    model = quiet_star(LLAMA)
    model.mixing_head.requires_grad_(False).apply(lambda layer: [p.mul_(1e25) for p in layer.parameters(recurse=False)])
    ids = prompts()[0][None]
    model.generate(ids, think=False)
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        model.generate(ids)


def test_a_token_costs_k_plus_one_passes(model, monkeypatch):
    passes = []
    run = Decoder.run
    monkeypatch.setattr(Decoder, "run", lambda self, x, *rest: passes.append(x.shape[1]) or run(self, x, *rest))
    model.generate(prompts()[0][None], max_new_tokens=3)
    first = [len(prompts()[0]) + 1, 1, 1, 2]  # the prompt and [start]; t_1; t_2; t_3 and [end]
    assert passes == [*first, 2, 1, 1, 2, 2, 1, 1, 2]


@pytest.mark.parametrize("think", [True, False], ids=["think", "do not"])
def test_texts_that_have_ended_are_taken_out_of_the_batch(model, monkeypatch, think):
    """What is left goes on as it would alone: each draw is its own text's, and so is its cache."""
    texts, sampling, sizes = [*prompts(), *prompts()], Sampling(1.5, seed=2), []
    keys, options = torch.arange(len(texts)), {"sampling": sampling, "thought_sampling": sampling, "think": think}
    whole = model.generate(*left_padded(texts), max_new_tokens=NEW, samples=2, text_keys=keys, **options)
    end = int(whole[:, max(LENGTHS) : -2].flatten().mode().values)  # some end here, some there, some not at all
    run = Decoder.run
    monkeypatch.setattr(Decoder, "run", lambda *args: sizes.append(len(args[1])) or run(*args))
    options |= {"eos_token_id": end, "pad_token_id": START}
    cut = model.generate(*left_padded(texts), max_new_tokens=NEW, samples=2, text_keys=keys, **options)
    for row, free in zip(cut[:, max(LENGTHS) :].tolist(), whole[:, max(LENGTHS) :].tolist(), strict=True):
        kept = free[: free.index(end) + 1] if end in free else free
        assert row == (kept + [START] * NEW)[: len(row)]
    assert sizes[0] == len(texts) and max(sizes) == 2 * len(texts) > min(sizes[1:])
