"""Direct evaluation against a slow computation: one question at a time, no padding, no batch, no cache."""

from collections.abc import Callable, Sequence
from io import BytesIO
from itertools import chain
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from pipeline.data.corpus.microworld import documents
from pipeline.data.tasks.ask import questions
from pipeline.data.tasks.questions import Question, number_in
from pipeline.data.tasks.spec import Task, read_task
from pipeline.data.tokens.tokenizer import train_tokenizer
from pipeline.errors import UserError
from pipeline.evaluation.direct.encoding import Encodings, encode, number_tokens
from pipeline.evaluation.direct.score import ANSWER_TOKENS, Asked, probability, score
from pipeline.models.trained import load_plain
from pipeline.thought.model import NO_THOUGHT, PAUSE, QuietStarForCausalLM
from pipeline.thought.sampler import Sampling
from tests.local_hub import model_folder, word_tokenizer
from tests.thought.tiny import GPT2, LLAMA, quiet_star

ROOT = Path(__file__).parents[3]
SHARED = ROOT.parent / "shared/hub"
GREEDY, DRAWN = Sampling(0.0, 1), Sampling(1.0, 3)
LABELS = ["Q: x\n(A) a\nA: A", *(f"A: {label}" for label in "BCDE1234")] * 40


def byte_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([*documents("pretrain", 100, 1, 2, 0.5), *LABELS], 400)


@pytest.fixture(scope="module", params=[byte_tokenizer, word_tokenizer])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return request.param()


def thinker(tokenizer: PreTrainedTokenizerFast, base: dict = LLAMA, **settings: object) -> QuietStarForCausalLM:
    """A random model that writes numbers rather often, and ends a line or the text now and then."""
    positions = "n_positions" if base["model_type"] == "gpt2" else "max_position_embeddings"
    base = {**base, "vocab_size": len(tokenizer), positions: 1024}
    settings = {"thought_tokens": 2, "start_token_id": None, "end_token_id": None} | settings
    model = quiet_star(base, **settings).eval()
    ends = [*tokenizer("\n", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    model.base.get_output_embeddings().weight.data[[*number_tokens(tokenizer, "0123456789"), *ends]] *= 1.7
    return model


def task_of(kind: str, **changes: object) -> Task:
    values = {"title": kind, "source": "", "version": 1, "kind": kind, "prompt": "{{ q }}", "answer": "a"}
    return Task(**values | changes)


NUMBER, CHOICE = task_of("number"), task_of("choice", choices="c")
ANSWERS = ["7", "42", "-5", "1207", "0.5", "90", "3", "18"]
NUMBERS = [
    *(Question(f"Q: Which is it{'?' * n}\nA:", answer, []) for n, answer in enumerate(ANSWERS)),
    Question("Q: What is it and the rest of a rather long one, by far the longest here?\nA:", "31", []),
]
FIVE = "\n(A) trees\n(B) water\n(C) ponds\n(D) cliffs\n(E) wood\nA:"
CHOICES = [
    *(Question(f"Q: Where is number {i}?{FIVE}", "ABCDE"[i], list("ABCDE")) for i in range(5)),
    Question("Q: Is it?\n(A) yes\n(B) no\nA:", "B", list("AB")),
    Question("Q: Which one of these?\n(1) a\n(2) b\n(3) c\n(4) d\nA:", "3", list("1234")),
    Question("Q: In brackets?\n(A) a\n(B) b\n(C) c\nA:", "(C", ["(A", "(B", "(C"]),  # the bracket is given
]
KINDS = pytest.mark.parametrize("task, asked", [(NUMBER, NUMBERS), (CHOICE, CHOICES)], ids=["number", "choice"])
Predict = Callable[[list[int]], Tensor]


def thoughtful(model: QuietStarForCausalLM, everywhere: bool = True) -> Predict:
    """What follows these tokens, after a thought there; the positions before may think too, or not."""

    @torch.no_grad()
    def predict(ids: list[int]) -> Tensor:
        positions = None if everywhere else torch.tensor([len(ids) - 1])
        return model(torch.tensor([ids]), positions=positions, sampling=GREEDY).logits[0, -1].double()

    return predict


def without(model: QuietStarForCausalLM) -> Predict:
    """What follows these tokens, as transformers' own decoder of these weights has it."""
    decoder = AutoModelForCausalLM.from_config(model.config.base_config(), dtype=model.dtype).eval()
    decoder.load_state_dict(model.base.state_dict())
    return plain(decoder)


def plain(decoder: PreTrainedModel) -> Predict:

    @torch.no_grad()
    def predict(ids: list[int]) -> Tensor:
        return decoder(torch.tensor([ids])).logits[0, -1].double()

    return predict


def slow_probability(predict: Predict, tokenizer: PreTrainedTokenizerFast, question: Question) -> float:
    """Token by token, from what the tokens decode to."""
    prompt = tokenizer(question.prompt)["input_ids"]
    whole = tokenizer(f"{question.prompt} {question.answer}")["input_ids"]
    texts = [tokenizer.decode([i]).strip() for i in range(len(tokenizer))]
    numbers = {i for i, text in enumerate(texts) if text and all(c in "0123456789" for c in text)}
    labels = {tokenizer(f"{question.prompt} {label}")["input_ids"][-1] for label in question.labels}
    prob = 1.0
    for place in range(len(prompt), len(whole)):
        legal = labels or numbers
        if whole[place] in legal:
            probs = predict(whole[:place]).softmax(-1)
            prob *= (probs[whole[place]] / probs[list(legal)].sum()).item()
    return prob


def slow_answer(predict: Predict, tokenizer: PreTrainedTokenizerFast, question: Question) -> str:
    """The likeliest label, or the first number of the line that greedy decoding writes."""
    if question.labels:
        ids = {label: tokenizer(f"{question.prompt} {label}")["input_ids"] for label in question.labels}
        return max(question.labels, key=lambda label: predict(ids[label][:-1])[ids[label][-1]].item())
    ids, written = tokenizer(question.prompt)["input_ids"], []
    while len(written) < 12 and "\n" not in tokenizer.decode(written):
        written.append(int(predict(ids + written).argmax()))
        if written[-1] == tokenizer.eos_token_id:
            written.pop()
            break
    return number_in(tokenizer.decode(written).split("\n")[0]) or ""


def encode_all(task: Task, asked: Sequence[Question], tokenizer: PreTrainedTokenizerFast) -> Encodings:
    return Encodings(task, asked, tokenizer, BytesIO())


def scores(
    model: QuietStarForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    task: Task,
    asked: Sequence[Question],
    batch_size: int = 4,
    sampling: Sampling = GREEDY,
) -> list[dict]:
    one = Asked(model, tokenizer, sampling, batch_size)
    rows = sorted(chain(*score(one, encode_all(task, asked, tokenizer), task, "test")), key=lambda row: row["index"])
    assert [row["index"] for row in rows] == list(range(len(asked)))
    return rows


def check(
    rows: list[dict],
    predicts: dict[str, Predict],
    tokenizer: PreTrainedTokenizerFast,
    asked: Sequence[Question],
    **near: float,
):
    """Each way's probability and answer are those of the slow computation."""
    for row, question in zip(rows, asked, strict=True):
        assert set(row) == {"index", "thought_text", *predicts}
        for way, predict in predicts.items():
            assert row[way]["prob"] == pytest.approx(slow_probability(predict, tokenizer, question), **near), question
            assert row[way]["predicted"] == slow_answer(predict, tokenizer, question), (way, question)


@KINDS
@pytest.mark.parametrize("base", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_scores_are_those_of_one_question_at_a_time(
    tokenizer: PreTrainedTokenizerFast, base: dict, task: Task, asked: list[Question]
):
    model = thinker(tokenizer, base)
    rows = scores(model, tokenizer, task, asked)
    check(rows, {"thought": thoughtful(model), "no_thought": without(model)}, tokenizer, asked, rel=5e-5)
    assert (
        max(abs(row["thought"]["prob"] - row["no_thought"]["prob"]) for row in rows) > 1e-4
    )  # the ways are told apart
    assert len({row[way]["predicted"] for row in rows for way in ("thought", "no_thought")} - {""}) > 1


@KINDS
def test_pauses_are_scored_as_thoughts_are(tokenizer: PreTrainedTokenizerFast, task: Task, asked: list[Question]):
    model = thinker(tokenizer, method=PAUSE)
    rows = scores(model, tokenizer, task, asked)
    check(rows, {"thought": thoughtful(model), "no_thought": without(model)}, tokenizer, asked, rel=5e-5)
    assert any(row["thought"]["prob"] != row["no_thought"]["prob"] for row in rows)
    assert {row["thought_text"] for row in rows} == {""}  # nobody sampled them


@KINDS
def test_a_model_without_thoughts_has_one_way(tokenizer: PreTrainedTokenizerFast, task: Task, asked: list[Question]):
    model = thinker(tokenizer, method=NO_THOUGHT)
    rows = scores(model, tokenizer, task, asked)
    check(rows, {"no_thought": without(model)}, tokenizer, asked, rel=5e-5)
    assert {row["thought_text"] for row in rows} == {""}


@KINDS
def test_the_model_before_training(task: Task, asked: list[Question], tmp_path: Path):
    """As `load_plain` reads it and as transformers does."""
    folder, tokenizer = model_folder(tmp_path / "base", n_positions=512), word_tokenizer()
    rows = scores(load_plain(folder), tokenizer, task, asked)
    decoder = AutoModelForCausalLM.from_pretrained(folder).eval()
    check(rows, {"no_thought": plain(decoder)}, tokenizer, asked, rel=5e-5)


@KINDS
@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_the_batch_size_changes_nothing(
    tokenizer: PreTrainedTokenizerFast, batch_size: int, sampling: Sampling, task: Task, asked: list[Question]
):
    """Also where thoughts are sampled: a draw belongs to its question."""
    model = thinker(tokenizer)
    one, other = (scores(model, tokenizer, task, asked, size, sampling) for size in (batch_size, 5))
    for a, b in zip(one, other, strict=True):
        assert a["thought_text"] == b["thought_text"]
        for way in ("thought", "no_thought"):
            assert a[way]["prob"] == pytest.approx(b[way]["prob"], rel=1e-4)
            assert a[way]["predicted"] == b[way]["predicted"]


def test_another_seed_draws_other_thoughts(tokenizer: PreTrainedTokenizerFast):
    model = thinker(tokenizer)
    one, other = (scores(model, tokenizer, NUMBER, NUMBERS, sampling=Sampling(1.0, seed)) for seed in (3, 4))
    assert [row["thought_text"] for row in one] != [row["thought_text"] for row in other]
    assert [row["no_thought"] for row in one] == [row["no_thought"] for row in other]


def test_the_thought_is_the_one_before_the_answer(tokenizer: PreTrainedTokenizerFast):
    model = thinker(tokenizer)
    for row, question in zip(scores(model, tokenizer, NUMBER, NUMBERS), NUMBERS, strict=True):
        ids = torch.tensor([tokenizer(question.prompt)["input_ids"]])
        with torch.no_grad():
            thought = model(ids, sampling=GREEDY).thoughts.ids[0, 0, -1]
        assert row["thought_text"] == tokenizer.decode(thought) != ""


def test_a_model_that_knows_nothing_gives_every_choice_its_share(tokenizer: PreTrainedTokenizerFast):
    model = thinker(tokenizer)
    model.base.lm_head.weight.data.zero_()
    for row, question in zip(scores(model, tokenizer, CHOICE, CHOICES), CHOICES, strict=True):
        assert row["thought"]["prob"] == row["no_thought"]["prob"] == 1 / len(question.labels)
        assert row["thought"]["predicted"] == question.labels[0]
    assert {len(question.labels) for question in CHOICES} == {2, 3, 4, 5}


def test_a_model_that_knows_nothing_gives_every_number_token_its_share(tokenizer: PreTrainedTokenizerFast):
    model = thinker(tokenizer)
    model.base.lm_head.weight.data.zero_()
    numbers = set(number_tokens(tokenizer, NUMBER.legal))
    for row, question in zip(scores(model, tokenizer, NUMBER, NUMBERS), NUMBERS, strict=True):
        answer = tokenizer(f"{question.prompt} {question.answer}")["input_ids"]
        asked = sum(i in numbers for i in answer[len(tokenizer(question.prompt)["input_ids"]) :])
        assert 1 <= asked <= len(question.answer)
        assert row["thought"]["prob"] == pytest.approx(len(numbers) ** -asked, rel=1e-12)
        assert row["thought"]["predicted"] == row["no_thought"]["predicted"] == ""  # it writes its first token for ever


REAL = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real data at {SHARED}")


@REAL
@pytest.mark.parametrize("name", ["gsm8k", "commonsense_qa"])
def test_real_questions(tokenizer: PreTrainedTokenizerFast, name: str):
    """The metric on fifty real questions, to 1e-6: the mean in float32, and each question's in double precision."""
    task = read_task(ROOT / f"tasks/{name}.yaml")
    asked = [question for question, _ in zip(questions(task, str(SHARED)), range(50), strict=False)]
    rough = scores(thinker(tokenizer), tokenizer, task, asked, batch_size=16)
    model = thinker(tokenizer).double()
    rows = scores(model, tokenizer, task, asked, batch_size=16)
    ways = {"thought": thoughtful(model, everywhere=False), "no_thought": without(model)}
    check(rows, ways, tokenizer, asked, rel=0, abs=1e-6)
    for way in ways:
        means = [sum(row[way]["prob"] for row in some) / len(some) for some in (rows, rough)]
        assert means[0] == pytest.approx(means[1], abs=1e-6)
        assert [row[way]["predicted"] for row in rows] == [row[way]["predicted"] for row in rough]
    assert len({row["thought"]["predicted"] for row in rows}) > 1


@KINDS
def test_predictions_that_are_not_finite_are_refused(
    tokenizer: PreTrainedTokenizerFast, task: Task, asked: list[Question]
):
    model = thinker(tokenizer)
    with torch.no_grad():
        model.mixing_head[0].weight.mul_(1e25)
        model.mixing_head[-1].weight.mul_(1e25)
    with pytest.raises(UserError, match="the model's predictions are not finite"):
        scores(model, tokenizer, task, asked)


def test_number_tokens_are_all_tokens_that_are_numbers(tokenizer: PreTrainedTokenizerFast):
    pieces = tokenizer.convert_ids_to_tokens(number_tokens(tokenizer, "0123456789"))
    bare = {piece.lstrip("Ġ▁") for piece in pieces}
    assert set("0123456789") <= bare and all(piece.isdigit() for piece in bare)
    assert ("42" in bare) == ("42" in tokenizer.get_vocab())


def test_a_task_says_of_what_its_numbers_are_made(tokenizer: PreTrainedTokenizerFast):
    bits = encode_all(task_of("number", legal="01"), [Question("A:", "10", [])], tokenizer)[0]
    legal = {tokenizer.decode([i]).strip() for some in bits.legal for i in some}
    assert legal and all(set(text) <= {"0", "1"} for text in legal)
    signed = encode_all(task_of("number", legal="-0123456789"), [Question("A:", "-5", [])], tokenizer)[0]
    assert "-" in {tokenizer.decode([i]).strip() for some in signed.legal for i in some}
    with pytest.raises(UserError, match="no number token in the answer '7'"):
        encode_all(task_of("number", legal="01"), [Question("A:", "7", [])], tokenizer)


def test_what_is_no_number_is_given(tokenizer: PreTrainedTokenizerFast):
    """The sign and the point of an answer are not asked for."""
    (one,) = encode_all(NUMBER, [Question("Q: What?\nA:", "-0.5", [])], tokenizer)
    given = [tokenizer.decode([i]).strip() for i, legal in zip(one.answer_ids, one.legal, strict=True) if not legal]
    asked = [tokenizer.decode([i]).strip() for i, legal in zip(one.answer_ids, one.legal, strict=True) if legal]
    assert "".join(given) == "-." and asked == ["0", "5"]


def test_the_probability_is_the_product_over_the_answers_tokens(tokenizer: PreTrainedTokenizerFast):
    """Twice as likely as each of the other number tokens at the first place, three times at the second."""
    (one,) = encode_all(NUMBER, [Question("Q: What?\nA:", "90", [])], tokenizer)
    places = [step for step, legal in enumerate(one.legal) if legal]
    assert len(places) == 2
    logits = 50.0 * torch.rand(len(one.answer_ids), len(tokenizer))  # of tokens that are no numbers: left out
    for times, step in zip((2.0, 3.0), places, strict=True):
        logits[step, one.legal[step]] = 1.0
        logits[step, one.answer_ids[step]] += torch.tensor(times).log()
    others = len(one.legal[places[0]]) - 1
    assert probability(one, logits) == pytest.approx(2 / (2 + others) * 3 / (3 + others), rel=1e-6)


def writes(tokenizer: PreTrainedTokenizerFast, text: str, monkeypatch: pytest.MonkeyPatch, task: Task = NUMBER) -> str:
    """The answer of a model that writes ``text`` whatever it is asked."""
    prompt = tokenizer("Q: What?\nA:")["input_ids"]
    ids = tokenizer(f"Q: What?\nA:{text}")["input_ids"][len(prompt) :]
    model = thinker(tokenizer)

    def generate(input_ids: Tensor, *_: object, max_new_tokens: int, **__: object) -> Tensor:
        return torch.cat([input_ids, torch.tensor([ids[:max_new_tokens]])], dim=1)

    monkeypatch.setattr(model, "generate", generate)
    return scores(model, tokenizer, task, [Question("Q: What?\nA:", "7", [])])[0]["thought"]["predicted"]


@pytest.mark.parametrize(
    "text, answer",
    [
        (" 7.", "7"),
        (" 905 and 3", "905"),
        (" It is 5", "5"),
        (" -5", "-5"),
        (" 12.50", "12.5"),
        (" 1,207 men", "1207"),
        (" no\n7", ""),
        ("\n7", ""),
        (" 1" + "0" * 30, "1" + "0" * 30),
        ("", ""),
    ],
)
def test_the_answer_is_the_first_number_of_what_is_written_before_a_stop(
    tokenizer: PreTrainedTokenizerFast, text: str, answer: str, monkeypatch: pytest.MonkeyPatch
):
    written = writes(tokenizer, text, monkeypatch)
    assert written == answer or (len(text) > ANSWER_TOKENS and answer.startswith(written) and written)


def test_a_task_says_what_ends_a_number(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch):
    assert writes(tokenizer, " no\n7", monkeypatch, task_of("number", stop=["."])) == "7"
    assert writes(tokenizer, " no. 7", monkeypatch, task_of("number", stop=["\n", "."])) == ""


def test_choices_that_one_token_does_not_tell_apart(tokenizer: PreTrainedTokenizerFast):
    for labels in (["yes", "no!"], ["a", "a"]):
        with pytest.raises(UserError, match="apart"):
            encode(0, Question("Q: What?\nA:", labels[0], labels), tokenizer, [])


def test_questions_that_the_model_has_no_positions_for(tokenizer: PreTrainedTokenizerFast):
    """A question of ten letters fits; its number, written out, does not."""
    question = Question("Q: " + "x" * 10 + "\nA:", "7", [])
    needed = len(encode_all(NUMBER, [question], tokenizer)[0]) + ANSWER_TOKENS + 2 + 2
    model = thinker(tokenizer)
    config = model.base.config
    config.max_position_embeddings = needed
    scores(model, tokenizer, NUMBER, [question])
    config.max_position_embeddings = needed - 1
    with pytest.raises(UserError, match=f"a question of test .* need {needed} positions"):
        scores(model, tokenizer, NUMBER, [question])


def test_an_end_token_that_a_tokenizer_adds_is_no_part_of_a_prompt():
    bare, ending = word_tokenizer(), word_tokenizer()
    ending._tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    assert ending("A:")["input_ids"][-1] == ending.eos_token_id
    for task, asked in ((NUMBER, NUMBERS), (CHOICE, CHOICES)):
        assert list(encode_all(task, asked, ending)) == list(encode_all(task, asked, bare))


def test_an_answer_that_merges_with_its_prompt():
    """Where ": 4" would be one token the answer's own tokens follow the prompt's."""
    pieces = ["<unk>", "</s>", "▁", "▁A", "A", ":", "▁4", "▁42", "4", "2", ":▁4"]
    tokenizer = Tokenizer(models.Unigram([(p, 0.0 if p == ":▁4" else -2.0) for p in pieces], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="</s>")
    assert whole.convert_ids_to_tokens(whole("A: 42")["input_ids"]) == ["▁A", ":▁4", "2"]
    one = encode(0, Question("A:", "42", []), whole, number_tokens(whole, "0123456789"))
    assert whole.convert_ids_to_tokens(one.prompt_ids) == ["▁A", ":"]
    assert whole.convert_ids_to_tokens(one.answer_ids) == ["▁42"]
