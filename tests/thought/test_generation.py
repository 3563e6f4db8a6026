"""Generation on cached keys and values equals recomputing the whole unpadded text for every token."""

import pytest
import torch
from torch import Tensor

from pipeline.thought.decoder import Decoder
from pipeline.thought.generation import GREEDY, SAMPLES_APART, TEXT_STEP, continue_texts
from pipeline.thought.methods import NO_THOUGHT, PAUSE, QUIET_STAR
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.sampler import Sampling, ban, draw, uniforms
from tests.thought.tiny import ARCHITECTURES, END, KINDS, LLAMA, START, left_padded, quiet_star, random_ids, slow

NEW = 6
LENGTHS = (5, 3, 6)
SAMPLED, SAMPLED_THOUGHTS = Sampling(0.8, seed=4), Sampling(1.0, seed=9)
# each architecture greedy and sampled; every method, with thoughts and without, by four architectures
CASES = [(name, [*KINDS][i % 4], i % 3 != 2) for i, name in enumerate(ARCHITECTURES)] + [
    (name, kind, think)
    for name in ("llama", "mistral, window", "gemma2", "gpt2")
    for kind in KINDS
    for think in (True, False)
]


def prompts() -> list[Tensor]:
    return [random_ids(length, seed=length) for length in LENGTHS]


@torch.no_grad()
def recomputed(
    model: QuietStarForCausalLM, text: Tensor, key: int, sampling: Sampling, thoughts: Sampling, think: bool = True
) -> Tensor:
    """The new tokens of one unpadded text, each from a forward pass over all of it."""
    keys, written = torch.tensor([key]), text[None]
    for _ in range(NEW):
        output = model(written, sampling=thoughts, text_keys=keys)
        logits = ban((output.logits if think else output.base_logits)[:, -1], model.config.banned)
        chance = uniforms(sampling.seed, keys, 1, torch.tensor([[written.shape[1] - 1]]), TEXT_STEP)[:, 0, 0]
        new = draw(logits, logits.softmax(-1), sampling, chance)
        written = torch.cat([written, new[:, None]], dim=1)
    return written[0, len(text) :]


def after_odd(ids: Tensor) -> Tensor:
    """A rule for where to think: after tokens of odd ids."""
    return ids[:, -1] % 2 == 1


@pytest.mark.parametrize("kind", [QUIET_STAR, PAUSE])
def test_a_rule_of_the_text_so_far_says_where_to_think(kind: str):
    """In a batch padded on the left, in which some texts think and others do not, and of several samples."""
    model, texts = quiet_star(LLAMA, **KINDS[kind]).eval(), prompts()
    ids, mask = left_padded(texts)
    expected, said = [], []
    for text in texts:
        written = text
        for _ in range(NEW):
            said.append(bool(written[-1] % 2))
            with torch.no_grad():
                output = model(written[None])
            logits = (output.logits if said[-1] else output.base_logits)[0, -1]
            written = torch.cat([written, ban(logits, model.config.banned).argmax()[None]])
        expected.append(written[len(text) :].tolist())
    assert {True, False} == {*said}
    options = {"max_new_tokens": NEW, "think": after_odd}
    output = model.generate(ids, attention_mask=mask, return_dict_in_generate=True, **options)
    assert output.sequences[:, ids.shape[1] :].tolist() == expected
    assert output.thought_share.item() == pytest.approx(sum(said) / len(said))
    several = continue_texts(model.thinker, ids, mask, samples=2, **options)
    assert several[::2].tolist() == several[1::2].tolist() == output.sequences.tolist()
    everywhere = model.generate(ids, attention_mask=mask, max_new_tokens=NEW)
    always = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, think=lambda ids: ids[:, -1] >= 0)
    assert torch.equal(always, everywhere) and not torch.equal(everywhere, output.sequences)


@pytest.fixture(scope="module")
def model() -> QuietStarForCausalLM:
    return quiet_star(LLAMA).eval()


@pytest.mark.parametrize(("name", "kind", "think"), sorted(set(CASES)))
def test_text_equals_recomputation(name, kind, think):
    """In a batch padded on the left, each sample under its own key, and alone, where no mask is needed."""
    model, texts, keys = quiet_star(ARCHITECTURES[name], **KINDS[kind]).eval(), prompts(), [11, 3, 8]
    ids, mask = left_padded(texts)
    for sampling, thoughts, samples in ((GREEDY, GREEDY, 1), (SAMPLED, SAMPLED_THOUGHTS, 2 if name == "llama" else 1)):
        options = {"max_new_tokens": NEW, "sampling": sampling, "thought_sampling": thoughts, "think": think}
        own = [(t, k + i * SAMPLES_APART) for t, k in zip(texts, keys, strict=True) for i in range(samples)]
        expected = torch.stack([recomputed(model, *each, sampling, thoughts, think) for each in own])
        together = continue_texts(model.thinker, ids, mask, text_keys=torch.tensor(keys), samples=samples, **options)
        assert torch.equal(together, torch.cat([ids.repeat_interleave(samples, 0), expected], 1))
        assert samples == 1 or not torch.equal(expected[::2], expected[1::2])
        alone = continue_texts(model.thinker, texts[1][None], text_keys=torch.tensor(keys[1:2]), **options)
        assert torch.equal(alone[0, -NEW:], expected[samples])


@pytest.mark.parametrize("kind", [QUIET_STAR, PAUSE, "ending"])
def test_greedy_text_equals_the_slow_reference(kind):
    model, text = quiet_star(LLAMA, **KINDS[kind]).eval(), random_ids(4)
    written, reference = continue_texts(model.thinker, text[None], max_new_tokens=4)[0].tolist(), slow(model)
    for length in range(4, 8):
        so_far = written[:length]
        thought = reference.greedy_thought(so_far, length - 1) if kind != PAUSE else []
        logits = reference.mixed_logits(so_far, length - 1, thought)
        assert written[length] == reference.without_banned(logits).argmax().item()


@pytest.mark.parametrize(
    "method, think, first, later",
    [
        (QUIET_STAR, True, [6, 1, 1, 2], [2, 1, 1, 2]),  # the text and [start]; t_1; t_2; t_3 and [end]
        (PAUSE, True, [6, 4], [2, 4]),  # the text and [start], then all pauses and [end]
        (PAUSE, False, [5], [1]),
        (QUIET_STAR, False, [5], [1]),
        (NO_THOUGHT, True, [5], [1]),
    ],
)
def test_passes_that_a_token_costs(method, think, first, later, monkeypatch):
    model, passes, run = quiet_star(LLAMA, method=method).eval(), [], Decoder.run
    monkeypatch.setattr(Decoder, "run", lambda self, x, *rest: passes.append(x.shape[1]) or run(self, x, *rest))
    continue_texts(model.thinker, random_ids(1, 5), max_new_tokens=3, think=think)
    assert passes == first + later + later


@pytest.mark.parametrize("kind", KINDS)
def test_meta_tokens_are_never_written_nor_thought(kind):
    """But for the end token, in thoughts that end by it."""
    model = quiet_star({**LLAMA, "tie_word_embeddings": False}, **KINDS[kind]).eval()
    ids, banned = random_ids(2, 5), torch.tensor([START, END])
    with torch.no_grad():
        model.base.lm_head.weight[banned] = 50 * model.decoder.read(ids)[0].flatten(0, 1).mean(0)
        output = model(ids)
    for think, logits in ((True, output.logits), (False, output.base_logits)):
        assert torch.isin(logits.argmax(-1), banned).any()
        for temperature in (0.0, 1.0, 30.0):
            sampling = Sampling(temperature, seed=2)
            assert not torch.isin(continue_texts(model.thinker, ids, sampling=sampling, think=think), banned).any()
            thoughts = model(ids, sampling=sampling).thoughts
            if kind == "ending" and temperature == 0:
                assert (thoughts.ids == END).any()
            never = START if kind == "ending" else banned
            assert thoughts is None or not torch.isin(thoughts.ids, never).any()


def letters(ids: list[int]) -> str:
    return "".join(chr(ord("a") + i) for i in ids)


@pytest.mark.parametrize(
    "ids, options, complaint",
    [
        (random_ids(1, 5), {"stop_strings": ["a"]}, "stop strings need decode"),
        (random_ids(1, 5), {"stop_strings": [""], "decode": letters}, "a stop string is empty"),
        (random_ids(1, 5), {"samples": 0}, "samples is 0"),
        (random_ids(1, 0), {}, "at least one token"),
        (random_ids(1, 2), {"attention_mask": torch.tensor([[1, 0]])}, "left side only"),
    ],
)
def test_what_cannot_be_continued_is_refused(model, ids, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        continue_texts(model.thinker, ids, **options)


def test_logits_that_overflow_are_told_of():
    model = quiet_star(LLAMA)
    model.mixing_head.requires_grad_(False).apply(lambda layer: [p.mul_(1e25) for p in layer.parameters(recurse=False)])
    ids = prompts()[0][None]
    continue_texts(model.thinker, ids, think=False)
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        continue_texts(model.thinker, ids)


def test_it_stops_once_every_text_has_ended_or_at_once(model):
    text = random_ids(4)[None]
    assert torch.equal(continue_texts(model.thinker, text, max_new_tokens=0), text)
    free = continue_texts(model.thinker, text, max_new_tokens=NEW)[0, 4:].tolist()
    ended = continue_texts(model.thinker, text, max_new_tokens=NEW, eos_token_id=free[1])
    assert ended[0, 4:].tolist() == free[: free.index(free[1]) + 1]


def test_nothing_is_written_after_a_stop_string(model):
    ids, mask = left_padded(prompts())
    options = {"max_new_tokens": NEW, "sampling": Sampling(1.0, seed=4)}
    free = continue_texts(model.thinker, ids, mask, **options)
    stop = letters(free[1, -NEW + 1 : -NEW + 3].tolist())  # the second and third token of the second text
    written = continue_texts(model.thinker, ids, mask, stop_strings=[stop], decode=letters, pad_token_id=1, **options)
    for row, expected in zip(written[:, ids.shape[1] :].tolist(), free[:, ids.shape[1] :].tolist(), strict=True):
        at = letters(expected).find(stop)
        end = len(expected) if at < 0 else at + len(stop)
        assert row == (expected[:end] + [1] * len(expected))[: len(row)]
    assert letters(free[1, ids.shape[1] :].tolist()).find(stop) in (0, 1)


def test_a_stop_string_is_found_in_new_text_only_and_however_long_it_is(model):
    """Not in the prompt or across its end; and one longer than what the last few tokens hold."""
    text = prompts()[0]
    free = continue_texts(model.thinker, text[None], max_new_tokens=NEW)[0].tolist()
    stops = [letters(text.tolist()), letters(free[len(text) - 1 : len(text) + 1])]
    stops = [stop for stop in stops if stop not in letters(free[len(text) :])]
    assert stops
    written = continue_texts(model.thinker, text[None], max_new_tokens=NEW, stop_strings=stops, decode=letters)
    assert written[0].tolist() == free
    stop = letters(free[len(text) : len(text) + NEW - 1])
    written = continue_texts(model.thinker, text[None], max_new_tokens=NEW + 5, stop_strings=[stop], decode=letters)
    assert written[0].tolist() == free[:-1]


@pytest.mark.parametrize("think", [True, False])
def test_texts_that_have_ended_are_taken_out_of_the_batch(model, monkeypatch, think):
    """What is left goes on as it would alone: each draw is its own text's, and so is its cache."""
    texts, sampling, sizes = [*prompts(), *prompts()], Sampling(1.5, seed=2), []
    options = {"max_new_tokens": NEW + 1, "samples": 2, "text_keys": torch.arange(len(texts)), "think": think}
    options |= {"sampling": sampling, "thought_sampling": sampling}
    whole = continue_texts(model.thinker, *left_padded(texts), **options)
    end = int(whole[:, max(LENGTHS) : -2].flatten().mode().values)  # some end here, some there, some not at all
    run = Decoder.run
    monkeypatch.setattr(Decoder, "run", lambda *args: sizes.append(len(args[1])) or run(*args))
    cut = continue_texts(model.thinker, *left_padded(texts), eos_token_id=end, pad_token_id=START, **options)
    for row, free in zip(cut[:, max(LENGTHS) :].tolist(), whole[:, max(LENGTHS) :].tolist(), strict=True):
        kept = free[: free.index(end) + 1] if end in free else free
        assert row == (kept + [START] * NEW)[: len(row)]
    assert sizes[0] == len(texts) and max(sizes) == 2 * len(texts) > min(sizes[1:])
