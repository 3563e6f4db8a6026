"""The protocol equals one question, way and sample at a time, without cached keys; whatever the batch size."""

import pytest
import torch

from pipeline.data.tasks import spec
from pipeline.errors import UserError
from pipeline.evaluation.chain_of_thought import samples
from pipeline.resume import Scratch
from pipeline.thought.model import QuietStarForCausalLM
from tests.evaluation.chain_of_thought.asking import HOW, TOKENIZERS, ask, choices, numbers, slow_samples, tiny_model
from tests.local_hub import word_tokenizer
from tests.thought.tiny import GPT2

QUESTIONS = 3


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_model(tokenizer).double()


def every(rows: list[dict], name: str) -> list[str]:
    return [value for row in rows for value in row[name]]


@pytest.mark.parametrize("thought_temperature", [0.0, 1.0])
def test_samples_and_votes_equal_the_slow_protocol(model, tokenizer, tmp_path, thought_temperature):
    options = {"thought_temperature": thought_temperature}
    rows = ask(model, tokenizer, numbers(QUESTIONS), tmp_path / "rows", **options)
    assert rows == slow_samples(model, tokenizer, numbers(QUESTIONS), **options)
    votes = every(rows, "votes")
    assert sum(map(bool, votes)) > 3 and "" in votes and len(set(every(rows, "texts"))) > 15


def test_choices_equal_the_slow_protocol(model, tokenizer, tmp_path):
    rows = ask(model, tokenizer, choices(2), tmp_path / "rows", answer_tokens=12)
    assert rows == slow_samples(model, tokenizer, choices(2), answer_tokens=12)
    assert sum(map(bool, every(rows, "votes"))) > 3


def test_pauses_equal_the_slow_protocol(tokenizer, tmp_path):
    model = tiny_model(tokenizer, method="pause").double()
    assert ask(model, tokenizer, numbers(2), tmp_path / "rows") == slow_samples(model, tokenizer, numbers(2))


def test_the_two_ways_differ(model, tokenizer, tmp_path):
    """Otherwise the tests above would not see a way that is ignored."""
    rows = ask(model, tokenizer, numbers(QUESTIONS), tmp_path / "rows")
    by_way = [[row["texts"] for row in rows if row["way"] == way] for way in ("thought", "no_thought")]
    assert by_way[0] != by_way[1]


def test_a_model_without_thoughts_has_one_way(tokenizer, tmp_path):
    model = tiny_model(tokenizer, method="no_thought").double()
    rows = ask(model, tokenizer, numbers(2), tmp_path / "rows")
    assert rows == [row for row in slow_samples(model, tokenizer, numbers(2)) if row["way"] == "no_thought"]


@pytest.mark.parametrize("thought_temperature", [0.0, 1.0])
def test_any_batch_size_gives_the_same_in_float64(model, tokenizer, tmp_path, thought_temperature):
    options = {"samples": 5, "thought_temperature": thought_temperature}
    one, three, eight = (
        ask(model, tokenizer, numbers(8), tmp_path / f"{size}", batch_size=size, **options) for size in (1, 3, 8)
    )
    assert one == three == eight


def test_any_batch_size_gives_nearly_the_same_in_float32(tokenizer, tmp_path):
    model = tiny_model(tokenizer)
    one, three, eight = (
        ask(model, tokenizer, numbers(8), tmp_path / f"{size}", batch_size=size, samples=8) for size in (1, 3, 8)
    )
    for other in (three, eight):
        for name in ("texts", "votes"):
            pairs = list(zip(every(one, name), every(other, name), strict=True))
            assert sum(a != b for a, b in pairs) <= len(pairs) // 20


def test_another_seed_gives_other_samples(model, tokenizer, tmp_path):
    first, second = (ask(model, tokenizer, numbers(3), tmp_path / str(s), seed=s) for s in (1, 2))
    assert every(first, "texts") != every(second, "texts")


def test_reasoning_ends_before_a_stop_string_and_the_end_token(tmp_path):
    """All three ends occur: a stop string, the end token, the last of the new tokens."""
    tokenizer = word_tokenizer()
    model, questions = tiny_model(tokenizer).double(), numbers(8)
    free = spec.ChainOfThought(prompt="{{ q }}", stop=[], answer_prompt=HOW.answer_prompt)
    options = {"samples": 8, "new_tokens": 24}
    stopped = every(ask(model, tokenizer, questions, tmp_path / "stopped", **options), "texts")
    whole = every(ask(model, tokenizer, questions, tmp_path / "free", how=free, **options), "texts")
    expected = [text.partition("e")[0].partition("7+")[0] for text in whole]
    assert stopped == expected and stopped != whole
    assert not any("</s>" in text for text in whole)
    lengths = {len(tokenizer.tokenize(text)) for text in whole}
    assert min(lengths) < 20, "no text was ended by the end token"
    assert "e" in "".join(whole) and any(
        text == kept and len(text) > 20 for text, kept in zip(whole, stopped, strict=True)
    )


def canned(monkeypatch, tokenizer, reasoning: str, answer: str) -> list[str]:
    """Have every generation write this; returns the prompts that it is given."""
    prompts: list[str] = []

    def generate(self, input_ids, attention_mask, samples=1, max_new_tokens=0, **_: object):
        kept = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)]
        prompts.extend(tokenizer.decode(ids) for ids in kept)
        new = tokenizer(reasoning if max_new_tokens == 12 else answer, add_special_tokens=False)["input_ids"]
        written = torch.tensor([new] * len(input_ids) * samples)
        return torch.cat([input_ids.repeat_interleave(samples, 0), written], dim=1)

    monkeypatch.setattr(QuietStarForCausalLM, "generate", generate)
    return prompts


@pytest.mark.parametrize(
    "reasoning, answer, text, vote",
    [
        (" 1 + 1 is 2.", " 2.", " 1 + 1 is 2.", "2"),
        (" So 4.\nQ: What is 5?", " is $1,234.50", " So 4.\n", "1234.5"),
        (" So 4.<|end|> and 5", " six Q: 7", " So 4.", ""),
        ("\n\n\n6", " 3<|end|>4", "", "3"),
        ("Q: 3\n\n\n", "\n9", "", "9"),
        ("\n\n", "-0.50 or 8", "\n\n", "-0.5"),
    ],
)
def test_what_is_kept_and_asked(monkeypatch, tmp_path, reasoning, answer, text, vote):
    tokenizer = TOKENIZERS["bytes"]()
    prompts = canned(monkeypatch, tokenizer, reasoning, answer)
    how = spec.ChainOfThought(prompt="{{ q }}", stop=["Q:", "\n\n\n"], answer_prompt="\nTherefore,")
    question = numbers(3)[2]
    rows = ask(tiny_model(tokenizer, method="no_thought"), tokenizer, [question], tmp_path / "rows", how=how, samples=2)
    assert rows[0]["texts"] == [text] * 2 and rows[0]["votes"] == [vote] * 2
    assert prompts == [question.reasoning_prompt, *[question.reasoning_prompt + text + "\nTherefore,"] * 2]


def test_a_text_of_a_sentencepiece_tokenizer_keeps_its_first_space(monkeypatch, tmp_path):
    tokenizer = word_tokenizer()
    prompts = canned(monkeypatch, tokenizer, " is 12", " 4")
    rows = ask(tiny_model(tokenizer, method="no_thought"), tokenizer, numbers(1), tmp_path / "rows", samples=1)
    assert rows[0]["texts"] == [" is 12"] and "Add. is 12\nTherefore" in prompts[1]


class WithEndToken:
    """A tokenizer that ends every text, as T5's does."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __call__(self, text):
        return {"input_ids": [*self._tokenizer(text)["input_ids"], self._tokenizer.eos_token_id]}


def test_an_end_token_that_a_tokenizer_adds_is_not_asked(tmp_path):
    tokenizer = word_tokenizer()
    model = tiny_model(tokenizer).double()
    with_end = ask(model, WithEndToken(tokenizer), numbers(3), tmp_path / "end")
    assert with_end == ask(model, tokenizer, numbers(3), tmp_path / "plain")


def gpt2(tokenizer, positions: int) -> QuietStarForCausalLM:
    return tiny_model(tokenizer, {**GPT2, "n_positions": positions})


def test_a_prompt_needs_room_for_reasoning_answer_and_thought(tmp_path):
    """Learned positions end where they end; a broken character is longer in tokens than what it was sampled in."""
    tokenizer = TOKENIZERS["bytes"]()
    longest = max(len(tokenizer(q.reasoning_prompt)["input_ids"]) for q in numbers(QUESTIONS))
    needed = longest + 12 + len(tokenizer(HOW.answer_prompt)["input_ids"]) + 6 + 3 + 2
    how = spec.ChainOfThought(prompt="{{ q }}", stop=[], answer_prompt=HOW.answer_prompt)
    rows = ask(gpt2(tokenizer, needed), tokenizer, numbers(QUESTIONS), tmp_path / "rows", how=how)
    again = [len(tokenizer(text)["input_ids"]) for text in every(rows, "texts")]
    assert max(again) > 12 + 10, "nothing was left out"
    with pytest.raises(
        UserError, match=f"question of t .* need {needed} positions, but the base model has {needed - 1}"
    ):
        ask(gpt2(tokenizer, needed - 1), tokenizer, numbers(QUESTIONS), tmp_path / "rows")


def test_an_empty_prompt_is_told(tmp_path):
    tokenizer = word_tokenizer()
    questions = [*numbers(2), samples.Question("Q", "1", [], "")]
    with pytest.raises(UserError, match="task t, question 2: its chain-of-thought prompt is empty"):
        ask(tiny_model(tokenizer), tokenizer, questions, tmp_path / "rows")


def test_only_what_is_missing_is_asked_and_batches_are_as_they_were(tmp_path, monkeypatch):
    """In float32, where another batch would round otherwise; the scratch lacks a question of one batch and way."""
    tokenizer = word_tokenizer()
    model, questions = tiny_model(tokenizer), numbers(8)
    whole = ask(model, tokenizer, questions, tmp_path / "whole")
    kept = Scratch(tmp_path / "whole").rows
    part = Scratch(tmp_path / "part")
    part.add([row for row in kept if (row["index"], row["way"]) != (4, "thought")])
    sizes, generate = [], QuietStarForCausalLM.generate

    def counted(self, input_ids, *rest, **options):
        sizes.append((tuple(input_ids.shape), options["think"]))
        return generate(self, input_ids, *rest, **options)

    monkeypatch.setattr(QuietStarForCausalLM, "generate", counted)
    assert ask(model, tokenizer, questions, tmp_path / "part") == whole
    assert [(shape[0], think) for shape, think in sizes] == [(3, True), (12, True)]


def test_finished_rows_are_taken_as_they_are(tmp_path):
    tokenizer = word_tokenizer()
    rows = [
        {"task": task, "index": i, "way": way, "texts": [f"{task} {i} {way}"], "votes": [""]}
        for task in ("t", "other")
        for i in range(3)
        for way in ("no_thought", "thought")
    ]
    Scratch(tmp_path / "rows").add(rows)
    taken = ask(tiny_model(tokenizer), tokenizer, numbers(3), tmp_path / "rows", samples=1)
    assert every(taken, "texts") == [f"t {i} {way}" for i in range(3) for way in ("thought", "no_thought")]
