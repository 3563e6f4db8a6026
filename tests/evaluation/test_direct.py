"""Direct evaluation against a slow computation: one question at a time, no padding, no batch, every position thinks."""

import math

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pipeline.corpus.microworld import documents
from pipeline.errors import UserError
from pipeline.evaluation.direct import Encoded, digit_tokens, encode, read_answer, score
from pipeline.evaluation.tasks import Question, commonsense_qa, gsm8k
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.sampler import Sampling
from pipeline.tokens.tokenizer import train_tokenizer
from tests.local_hub import commonsense_qa_rows, gsm8k_rows, word_tokenizer
from tests.thought.tiny import GPT2, LLAMA, quiet_star

GREEDY = Sampling(0.0, 1)
LETTERS = ["Q: x\n(A) a\nA: A", "A: B", "A: C", "A: D", "A: E"] * 40


def byte_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([*documents("pretrain", 100, 1, 2, 0.5), *LETTERS], 400)


@pytest.fixture(scope="module", params=[byte_tokenizer, word_tokenizer])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return request.param()


def thinker(tokenizer: PreTrainedTokenizerFast, base: dict = LLAMA, seed: int = 0) -> QuietStarForCausalLM:
    positions = "n_positions" if base["model_type"] == "gpt2" else "max_position_embeddings"
    base = {**base, "vocab_size": len(tokenizer), positions: 512}
    return quiet_star(base, seed, thought_tokens=2, start_token_id=None, end_token_id=None).eval()


QUESTIONS = [
    *(gsm8k(row) for row in gsm8k_rows(4)),  # answers 90, 92, ...
    *(Question(f"Q: Which is it{'?' * n}\nA:", answer) for n, answer in enumerate(["7", "42", "-5", "1207", "0.5"])),
    Question("Q: What is it and the rest of a rather long one, by far the longest here?\nA:", "3"),
    *(commonsense_qa(row) for row in commonsense_qa_rows(5)),
]


def encoded(tokenizer: PreTrainedTokenizerFast) -> list[Encoded]:
    digits = digit_tokens(tokenizer)
    return [encode(index, question, tokenizer, digits) for index, question in enumerate(QUESTIONS)]


@torch.no_grad()
def next_logits(model: QuietStarForCausalLM, ids: list[int], thinking: bool) -> Tensor:
    """What follows these tokens, with nothing else in the batch and a thought at every position."""
    output = model(torch.tensor([ids]), sampling=GREEDY)
    return (output.logits if thinking else output.base_logits)[0, -1].double()


def slow_probability(
    model: QuietStarForCausalLM, tokenizer: PreTrainedTokenizerFast, question: Question, thinking: bool
):
    """Token by token, from what the tokens decode to."""
    prompt = tokenizer(question.prompt)["input_ids"]
    whole = tokenizer(f"{question.prompt} {question.answer}")["input_ids"]
    texts = [tokenizer.decode([i]).strip() for i in range(len(tokenizer))]
    numbers = {i for i, text in enumerate(texts) if text and all(c in "0123456789" for c in text)}
    letters = {tokenizer(f"{question.prompt} {letter}")["input_ids"][-1] for letter in question.choices}
    prob = 1.0
    for place in range(len(prompt), len(whole)):
        legal = letters if question.choices else numbers
        if whole[place] in legal:
            probs = next_logits(model, whole[:place], thinking).softmax(-1)
            prob *= (probs[whole[place]] / probs[list(legal)].sum()).item()
    return prob


def slow_prediction(
    model: QuietStarForCausalLM, tokenizer: PreTrainedTokenizerFast, question: Question, thinking: bool
):
    """The likeliest letter, or the number that greedy decoding among number tokens starts with, while it is right."""
    prompt = tokenizer(question.prompt)["input_ids"]
    whole = tokenizer(f"{question.prompt} {question.answer}")["input_ids"]
    if question.choices:
        logits = next_logits(model, whole[:-1], thinking)
        return max(question.choices, key=lambda c: logits[tokenizer(f"{question.prompt} {c}")["input_ids"][-1]].item())
    ids, numbers = list(prompt), digit_tokens(tokenizer)
    while ids == whole[: len(ids)] and len(ids) < len(whole):
        logits = next_logits(model, ids, thinking)
        asked = whole[len(ids)] in numbers
        ids.append(max(numbers, key=lambda i: logits[i].item()) if asked else whole[len(ids)])
    return tokenizer.decode(ids[len(prompt) :]).strip()


@pytest.mark.parametrize("base", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_scores_are_those_of_one_question_at_a_time(tokenizer: PreTrainedTokenizerFast, base: dict):
    model = thinker(tokenizer, base)
    questions = encoded(tokenizer)
    for row, question in zip(score(model, tokenizer, questions, 4, GREEDY, "test"), QUESTIONS, strict=True):
        for way in ("no_thought", "thought"):
            thinking = way == "thought"
            expected = slow_probability(model, tokenizer, question, thinking)
            assert row[way].prob == pytest.approx(expected, rel=5e-5), (question, way)
            assert row[way].predicted == slow_prediction(model, tokenizer, question, thinking), (question, way)
    assert abs(row["thought"].prob - row["no_thought"].prob) > 1e-4  # so the two ways are told apart


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_batch_size_changes_nothing(tokenizer: PreTrainedTokenizerFast, batch_size: int):
    """Also where thoughts are sampled: a draw belongs to its question."""
    model, questions = thinker(tokenizer), encoded(tokenizer)
    sampling = Sampling(1.0, 3)
    one, other = (list(score(model, tokenizer, questions, size, sampling, "test")) for size in (batch_size, 5))
    assert [row["index"] for row in one] == list(range(len(QUESTIONS)))
    for a, b in zip(one, other, strict=True):
        assert a["thought_text"] == b["thought_text"]
        assert a["thought"].prob == pytest.approx(b["thought"].prob, rel=1e-3)
        assert a["thought"].predicted == b["thought"].predicted


def test_a_model_that_knows_nothing_gives_every_choice_a_fifth(tokenizer: PreTrainedTokenizerFast):
    model = thinker(tokenizer)
    model.base.lm_head.weight.data.zero_()
    digits = len(digit_tokens(tokenizer))
    for row, question in zip(score(model, tokenizer, encoded(tokenizer), 8, GREEDY, "test"), QUESTIONS, strict=True):
        if question.choices:
            assert row["thought"].prob == row["no_thought"].prob == 0.2
        else:
            assert math.log(row["thought"].prob, digits) == pytest.approx(round(math.log(row["thought"].prob, digits)))


def test_digits_are_all_tokens_that_are_numbers(tokenizer: PreTrainedTokenizerFast):
    pieces = tokenizer.convert_ids_to_tokens(digit_tokens(tokenizer))
    bare = {piece.lstrip("Ġ▁") for piece in pieces}
    assert set("0123456789") <= bare and all(piece.isdigit() for piece in bare)
    assert ("42" in bare) == ("42" in tokenizer.get_vocab())


def greedy_logits(tokenizer: PreTrainedTokenizerFast, pieces: list[int]) -> Tensor:
    logits = torch.zeros(len(pieces), len(tokenizer))
    logits[range(len(pieces)), pieces] = 9.0
    return logits


def answered(tokenizer: PreTrainedTokenizerFast, answer: str, follows: str) -> tuple[str, bool]:
    """The prediction of a model that writes the answer and then goes on with ``follows``."""
    question = Question("Q: What?\nA:", answer)
    one = encode(0, question, tokenizer, digit_tokens(tokenizer))
    written = tokenizer(f"{question.prompt} {answer}{follows}")["input_ids"][len(one.prompt_ids) :]
    assert written[: len(one.answer_ids)] == one.answer_ids
    scored = read_answer(one, greedy_logits(tokenizer, written[: len(one.answer_ids) + 1]), tokenizer)
    assert scored.prob > 0.5
    return scored.predicted, scored.correct(question)


@pytest.mark.parametrize("answer", ["7", "905", "-5", "1207"])
@pytest.mark.parametrize("follows", ["\n", ".", " and", " 7"])
def test_the_right_number_and_then_something_else(tokenizer: PreTrainedTokenizerFast, answer: str, follows: str):
    assert answered(tokenizer, answer, follows) == (answer, True)


def test_a_longer_number_is_wrong(tokenizer: PreTrainedTokenizerFast):
    assert answered(tokenizer, "90", "5") == ("905", False)


def test_a_wrong_number_is_wrong(tokenizer: PreTrainedTokenizerFast):
    one = encode(0, Question("Q: What?\nA:", "90"), tokenizer, digit_tokens(tokenizer))
    written = tokenizer("Q: What?\nA: 80.")["input_ids"][len(one.prompt_ids) :][: len(one.answer_ids) + 1]
    scored = read_answer(one, greedy_logits(tokenizer, written), tokenizer)
    assert not scored.correct(one.question) and scored.predicted == "8" and scored.prob < 0.01


def test_an_answer_in_no_digits_has_no_probability(tokenizer: PreTrainedTokenizerFast):
    with pytest.raises(UserError, match="no number token"):
        encode(0, Question("Q: What?\nA:", "x"), tokenizer, digit_tokens(tokenizer))


def test_choices_that_one_token_does_not_tell_apart(tokenizer: PreTrainedTokenizerFast):
    with pytest.raises(UserError, match="apart"):
        encode(0, Question("Q: What?\nA:", "yes", ("yes", "no!")), tokenizer, digit_tokens(tokenizer))
