"""transformers' `generate` on a model that thinks: what it writes equals recomputing the whole text for every token."""

import peft
import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast, TextIteratorStreamer, pipeline

from pipeline.thought.decoder import Decoder
from pipeline.thought.generation import continue_texts
from pipeline.thought.methods import NO_THOUGHT, PAUSE
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.sampler import Sampling, ban
from tests.local_hub import word_tokenizer
from tests.thought.tiny import END, KINDS, LLAMA, START, base_model, left_padded, quiet_star, random_ids

NEW = 6
LENGTHS = (5, 3, 6)


@pytest.fixture(scope="module")
def model() -> QuietStarForCausalLM:
    return quiet_star(LLAMA).eval()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer()


@pytest.fixture(scope="module")
def writes(tokenizer: PreTrainedTokenizerFast) -> QuietStarForCausalLM:
    """A model with the tokenizer's vocabulary, whose last two ids are the meta-tokens."""
    size = len(tokenizer)
    return quiet_star(LLAMA | {"vocab_size": size}, start_token_id=size - 2, end_token_id=size - 1).eval()


def prompts() -> list[Tensor]:
    return [random_ids(length, seed=length) for length in LENGTHS]


@torch.no_grad()
def logits_after(model: QuietStarForCausalLM, written: Tensor, think: bool = True) -> Tensor:
    """The next token's logits after one text (N,), from a pass over all of it."""
    output = model(written[None])
    return ban((output.logits if think else output.base_logits)[0, -1], model.config.banned)


def recomputed(model: QuietStarForCausalLM, text: Tensor, think: bool = True, new: int = NEW) -> list[int]:
    written = text
    for _ in range(new):
        written = torch.cat([written, logits_after(model, written, think).argmax()[None]])
    return written[len(text) :].tolist()


@pytest.mark.parametrize("think", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_text_equals_recomputation_in_a_padded_batch_and_alone(kind: str, think: bool):
    model, texts = quiet_star(LLAMA, **KINDS[kind]).eval(), prompts()
    expected = [recomputed(model, text, think) for text in texts]
    ids, mask = left_padded(texts)
    written = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=NEW, think=think)
    assert written[:, ids.shape[1] :].tolist() == expected
    assert model.generate(texts[1][None], max_new_tokens=NEW, think=think)[0, 3:].tolist() == expected[1]
    assert torch.equal(written, continue_texts(model.thinker, ids, mask, max_new_tokens=NEW, think=think))


def test_sampled_text_is_drawn_from_the_models_own_distribution(model: QuietStarForCausalLM):
    """Scores are those of a pass over the whole text, tempered and cut; what is drawn is among the k likeliest."""
    text = prompts()[0]
    options = {"do_sample": True, "temperature": 0.7, "top_k": 4, "max_new_tokens": NEW}
    torch.manual_seed(3)
    output = model.generate(text[None], **options, return_dict_in_generate=True, output_scores=True, output_logits=True)
    for i, (scores, logits) in enumerate(zip(output.scores, output.logits, strict=True)):
        expected = logits_after(model, output.sequences[0, : len(text) + i])
        torch.testing.assert_close(logits[0], expected, rtol=1e-5, atol=1e-5)  # as far as processors' roundings differ
        best = expected.topk(4)
        torch.testing.assert_close(scores[0, best.indices], best.values / 0.7, rtol=1e-5, atol=1e-5)
        assert scores[0].isfinite().sum() == 4 and output.sequences[0, len(text) + i] in best.indices


def test_thought_sampling_may_be_a_temperature(model: QuietStarForCausalLM):
    """The class `Sampling` is hard to import from a release alone."""
    texts = []
    for thought_sampling in (0, 1.0, Sampling(1.0)):
        torch.manual_seed(3)
        texts.append(model.generate(random_ids(1, 5), max_new_tokens=NEW, thought_sampling=thought_sampling).tolist())
    assert texts[0] != texts[1] == texts[2]


def test_an_offloaded_head_is_refused(model: QuietStarForCausalLM):
    """accelerate would load its weights in the layer's own forward pass, which is never run."""
    offloaded = quiet_star(LLAMA, gate=True).eval()
    offloaded.gate.to("meta")
    with pytest.raises(ValueError, match="the gate is offloaded"):
        offloaded.generate(random_ids(1, 5), max_new_tokens=1, think="gate")
    offloaded.base.lm_head.to("meta")
    with pytest.raises(ValueError, match="the LM head is offloaded"):
        offloaded(random_ids(1, 5))


@pytest.mark.parametrize("thought_sampling", [Sampling(0.0), Sampling(1.0), Sampling(1.0, seed=5)])
def test_torchs_seed_decides_text_and_thoughts(model: QuietStarForCausalLM, thought_sampling: Sampling):
    def write(seed: int, **options: object) -> list[list[int]]:
        torch.manual_seed(seed)
        settings = {"max_new_tokens": 8, "thought_sampling": thought_sampling} | options
        return model.generate(prompts()[0][None], **settings).tolist()

    several = {"do_sample": True, "num_return_sequences": 3}
    assert write(1, **several) == write(1, **several) != write(2, **several)
    assert len({tuple(row) for row in write(1, **several)}) == 3
    greedy = [write(seed) for seed in range(4)]
    assert (len({str(rows) for rows in greedy}) > 1) == (thought_sampling.temperature > 0)
    if thought_sampling.seed:
        assert write(1, thought_sampling=Sampling(1.0), do_sample=True) != write(1, do_sample=True)


@pytest.mark.parametrize("options", [{"use_cache": False}, {"cache_implementation": "static"}])
def test_caches_that_are_asked_for_change_nothing(model: QuietStarForCausalLM, options: dict):
    ids = random_ids(2, 5)
    written = model.generate(ids, max_new_tokens=NEW, return_dict_in_generate=True, **options)
    assert torch.equal(written.sequences, model.generate(ids, max_new_tokens=NEW)) and written.past_key_values is None


def test_a_mask_with_a_hole_hides_the_token(model: QuietStarForCausalLM):
    """As transformers makes one, where none is given and a prompt has its padding token."""
    ids, mask = random_ids(1, 7), torch.tensor([[0, 1, 1, 0, 1, 1, 1]])
    expected = model.generate(ids[mask.bool()][None], max_new_tokens=NEW)[0, 5:]
    for given in (mask, mask.bool()):
        assert torch.equal(model.generate(ids, attention_mask=given, max_new_tokens=NEW)[0, 7:], expected)


def test_passes_that_a_token_costs(model: QuietStarForCausalLM, monkeypatch: pytest.MonkeyPatch):
    passes, run = [], Decoder.run
    monkeypatch.setattr(Decoder, "run", lambda self, x, *rest: passes.append(x.shape[1]) or run(self, x, *rest))
    model.generate(random_ids(1, 5), max_new_tokens=3)
    assert passes == [6, 1, 1, 2] + 2 * [2, 1, 1, 2]  # the text and [start]; t_1; t_2; t_3 and [end]


@pytest.mark.parametrize("ends", [1, 2])
def test_it_ends_by_any_of_the_end_tokens_of_call_and_configuration(model: QuietStarForCausalLM, ends: int):
    text = prompts()[2]
    free = recomputed(model, text)
    eos = [free[3], free[1]][:ends]
    stop = min(map(free.index, eos)) + 1
    for config, options in (
        (None, {"eos_token_id": eos}),
        (GenerationConfig(eos_token_id=eos, pad_token_id=START), {}),
    ):
        settings = {"generation_config": config} if config else {}
        model.generation_config.max_new_tokens = NEW
        try:
            written = model.generate(text[None], **settings, **options)
        finally:
            model.generation_config.max_new_tokens = None
        assert written[0, len(text) :].tolist() == free[:stop]
    longer = model.generate(text[None], eos_token_id=eos, min_new_tokens=NEW, max_length=len(text) + NEW)
    assert longer.shape[1] == len(text) + NEW and not set(longer[0, len(text) : -1].tolist()) & set(eos)


def test_the_bases_end_token_is_the_models():
    base = base_model(LLAMA | {"eos_token_id": 3})
    base.generation_config.eos_token_id = [3, 7]
    options = {"thought_tokens": 3, "lookahead": 2}
    assert QuietStarForCausalLM.from_base(base, [5], **options).generation_config.eos_token_id == [3, 7]
    own = QuietStarForCausalLM.from_base(base, [5], eos_token_id=4, **options)
    assert own.generation_config.eos_token_id == 4 and own.generation_config.pad_token_id is None


@pytest.mark.parametrize("kind", KINDS)
def test_meta_tokens_are_never_written(kind: str):
    model = quiet_star({**LLAMA, "tie_word_embeddings": False}, **KINDS[kind]).eval()
    ids, banned = random_ids(2, 5), torch.tensor([START, END])
    with torch.no_grad():
        model.base.lm_head.weight[banned] = 50 * model.decoder.read(ids)[0].flatten(0, 1).mean(0)
    for options in ({}, {"do_sample": True, "temperature": 30.0}, {"repetition_penalty": 5.0}, {"think": False}):
        assert not torch.isin(model.generate(ids, max_new_tokens=NEW, **options), banned).any()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"num_beams": 2}, "only supports .* 'GenerationMode.BEAM_SEARCH'"),
        ({"prompt_lookup_num_tokens": 2}, "only supports .* 'GenerationMode.ASSISTED_GENERATION'"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "trust_remote_code"),
        ({"return_dict_in_generate": True, "output_hidden_states": True}, "no attentions and no hidden states"),
        ({"sampling": Sampling()}, r"not used by the model: \['sampling'\]"),
        ({"past_key_values": 3}, r"not used by the model: \['past_key_values'\]"),
        ({"inputs_embeds": torch.zeros(1, 5, 16)}, r"not used by the model: \['inputs_embeds'\]"),
        ({"position_ids": torch.arange(5)[None]}, "takes no position_ids"),
        ({"guidance_scale": 1.5}, "guidance_scale needs a prediction"),
        ({"guidance_scale": 1.5, "negative_prompt_ids": torch.ones(1, 2).long()}, "guidance_scale needs a prediction"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 1, 0]])}, "left side only"),
        ({"thought_sampling": -0.5}, "thought_sampling is -0.5, but must be a temperature of at least 0"),
        ({"thought_sampling": None}, "thought_sampling is None, but must be a temperature of at least 0"),
    ],
)
def test_what_it_cannot_do_is_refused_in_one_line(model: QuietStarForCausalLM, options: dict, complaint: str):
    with pytest.raises(ValueError, match=complaint) as error:
        model.generate(random_ids(1, 5), max_new_tokens=2, **options)
    assert "\n" not in str(error.value)


def test_a_tokenizers_output_stop_strings_and_a_streamer(writes: QuietStarForCausalLM, tokenizer):
    asked = tokenizer("What is 12 and 4?", return_tensors="pt")
    asked["token_type_ids"] = torch.zeros_like(asked.input_ids)  # as some tokenizers give them
    whole = writes.generate(**asked, max_new_tokens=8)
    new = tokenizer.decode(whole[0, asked.input_ids.shape[1] :])
    stop = new[2:4]
    stopped = writes.generate(**asked, max_new_tokens=8, stop_strings=[stop], tokenizer=tokenizer)
    assert tokenizer.decode(stopped[0, asked.input_ids.shape[1] :]).endswith(stop)
    assert stopped.shape[1] < whole.shape[1] and torch.equal(whole[:, : stopped.shape[1]], stopped)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    writes.generate(**asked, max_new_tokens=8, streamer=streamer)
    assert "".join(streamer).strip() == new.strip()
    assert torch.equal(writes(**asked, use_cache=True, return_dict=True).logits, writes(asked.input_ids).logits)


def test_the_text_generation_pipeline(writes: QuietStarForCausalLM, tokenizer):
    write = pipeline("text-generation", model=writes, tokenizer=tokenizer, return_full_text=False, do_sample=False)
    texts = ["What is 12 and 4?", "the 42"]
    for think in (True, False):
        found = write(texts, max_new_tokens=5, batch_size=2, think=think)
        for text, [row] in zip(texts, found, strict=True):
            ids = tokenizer(text, return_tensors="pt").input_ids[0]
            new = recomputed(writes, ids, think, 5)
            assert row["generated_text"] == tokenizer.decode(new, skip_special_tokens=True)


def test_pefts_causal_lm(model: QuietStarForCausalLM):
    """An adapter that starts as zero changes nothing; it is learned by an ordinary loss, and then text changes."""
    ids = random_ids(2, 5)
    expected = model.generate(ids, max_new_tokens=NEW)
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=2)
    adapted = peft.get_peft_model(quiet_star(LLAMA), config).eval()
    assert torch.equal(adapted.generate(input_ids=ids, max_new_tokens=NEW), expected)
    adapted(input_ids=ids, labels=ids).loss.backward()
    learned = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert learned and all("lora_" in name and p.grad is not None for name, p in learned.items())


def test_the_configuration_has_the_bases_sizes_and_embeddings_can_grow(tmp_path):
    model = quiet_star(LLAMA, method=PAUSE).eval()
    ids = random_ids(2, 5)
    expected = model(ids).logits
    assert (model.config.vocab_size, model.config.hidden_size) == (23, 16)
    # a text's last thought needs positions too, by which others (lm-eval) cut what is too long
    room = 64 - model.config.thought_tokens - 2
    assert model.config.max_position_embeddings == room
    assert quiet_star(LLAMA, method=NO_THOUGHT).config.max_position_embeddings == 64
    model.resize_token_embeddings(30)
    assert model.config.vocab_size == model.vocabulary == 30
    torch.testing.assert_close(model(ids).logits[..., :23], expected)
    model.save_pretrained(tmp_path)
    again = QuietStarForCausalLM.from_pretrained(tmp_path)
    assert again.vocabulary == 30
    torch.testing.assert_close(again.eval()(ids).logits, model(ids).logits)
    with pytest.raises(ValueError, match=f"new_num_tokens is 22, but the configuration names token {END}"):
        model.resize_token_embeddings(22)
