"""Direct evaluation against a slow computation: one question at a time, no padding, no batch, no cache."""

from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from pipeline.data.tasks.ask import questions
from pipeline.data.tasks.questions import Question, number_in
from pipeline.data.tasks.spec import Task, read_task
from pipeline.data.tokens.tokenizer import train_tokenizer
from pipeline.errors import UserError
from pipeline.evaluation.direct.encoding import Encodings, encode, number_tokens
from pipeline.evaluation.direct.score import ANSWER_TOKENS, score
from pipeline.evaluation.donors import SKIPPED, beginning_together, controls_of, derangement
from pipeline.evaluation.prompts import AskedModel
from pipeline.models.trained import load_plain
from pipeline.thought.generation import SAMPLES_APART
from pipeline.thought.methods import NO_THOUGHT, PAUSE, QUIET_STAR
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.sampler import Sampling
from tests.evaluation.chain_of_thought.asking import slow_text
from tests.local_hub import model_folder, word_tokenizer
from tests.micro_documents import documents
from tests.thought.tiny import GPT2, LLAMA, quiet_star

ROOT = Path(__file__).parents[3]
SHARED = ROOT.parent / "shared/hub"
GREEDY, DRAWN = Sampling(0.0, 1), Sampling(1.0, 3)
LABELS = ["Q: x\n(A) a\nA: A", *(f"A: {label}" for label in "BCDE1234")] * 40
BYTES = train_tokenizer([*documents("pretrain", 100), *LABELS], 400)
WORDS = word_tokenizer()
Tokenizing = PreTrainedTokenizerFast
TOKENIZERS = pytest.mark.parametrize("tokenizer", [BYTES, WORDS], ids=["bytes", "words"])


def thinker(tokenizer: Tokenizing, base: dict = LLAMA, **settings: object) -> QuietStarForCausalLM:
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


NUMBER, CHOICE, TEXT = task_of("number"), task_of("choice", choices="c"), task_of("text", choices="c")
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
TEXTS = [
    Question("Q: Where is it?\nA:", "in the water", ["trees", "in the water", "ponds and cliffs", "wood"]),
    Question("Q: Is it the one that is by far the longest question of all?\nA:", "yes", ["yes", "no, it is nöt"]),
    Question("Q: Who?\nA:", "Ana has 3 apples and buys 4 more.", ["Ana", "Ana has 3 apples and buys 4 more."]),
    *(Question(f"Q: Which{'?' * n}\nA:", "b c", ["a", "b c", "d e f"]) for n in range(1, 4)),
    Question("Q: Which twice?\nA:", "b c", ["a", "b c", "d e f", "b c"]),
]
QUESTIONS = {"number": (NUMBER, NUMBERS), "choice": (CHOICE, CHOICES)}
Predict = Callable[[int, list[int]], Tensor]  # from a question's index and some tokens: the logits (V,) after them
Ours = Callable[[list[int]], Tensor]  # the same of one question


def thoughtful(model: QuietStarForCausalLM, sampling: Sampling = GREEDY, everywhere: bool = True) -> Predict:
    """What follows these tokens, after a thought there; the positions before it think ``everywhere``, or not."""

    def predict(index: int, ids: list[int]) -> Tensor:
        positions, keys = None if everywhere else torch.tensor([len(ids) - 1]), torch.tensor([index])
        return model(torch.tensor([ids]), positions=positions, sampling=sampling, text_keys=keys).logits[0, -1].double()

    return torch.no_grad()(predict)


def mean_of_16(model: QuietStarForCausalLM, seed: int) -> Predict:
    """The logarithm of the mean probability after 16 sampled thoughts."""

    def predict(index: int, ids: list[int]) -> Tensor:
        keys = [index + SAMPLES_APART * sample for sample in range(16)]
        return sum(thoughtful(model, Sampling(1.0, seed))(key, ids).softmax(-1) for key in keys).div(16).log()

    return predict


def without(model: QuietStarForCausalLM) -> Predict:
    """What follows these tokens, as transformers' own decoder with these weights has it."""
    decoder = AutoModelForCausalLM.from_config(model.config.base_config(), dtype=model.dtype).eval()
    decoder.load_state_dict(model.base.state_dict())
    return torch.no_grad()(lambda _, ids: decoder(torch.tensor([ids])).logits[0, -1].double())


def slow_probability(predict: Ours, tokenizer: Tokenizing, question: Question) -> float:
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


def slow_answer(predict: Ours, tokenizer: Tokenizing, question: Question) -> str:
    """The likeliest label, or the first number of the line that greedy decoding writes."""
    if question.labels:
        ids = {label: tokenizer(f"{question.prompt} {label}")["input_ids"] for label in question.labels}
        return max(question.labels, key=lambda label: predict(ids[label][:-1])[ids[label][-1]].item())
    return number_in(slow_text(predict, tokenizer, ["\n"], question.prompt, 12)) or ""


def encode_all(task: Task, asked: Sequence[Question], tokenizer: Tokenizing) -> Encodings:
    return Encodings(task, asked, tokenizer, BytesIO())


def scores(model, tokenizer, task, asked, batch_size: int = 4, sampling: Sampling = GREEDY, **settings) -> list[dict]:
    """The rows of all questions, in their own order."""
    one, encoded = AskedModel(model, tokenizer, sampling, batch_size), encode_all(task, asked, tokenizer)
    rows = sorted(chain(*score(one, encoded, "test", **settings)), key=lambda row: row["index"])
    assert [row["index"] for row in rows] == list(range(len(asked)))
    return rows


def check(rows: list[dict], predicts: dict[str, Predict], tokenizer: Tokenizing, asked: list[Question], **near: float):
    """Each way's probability and answer are those of the slow computation."""
    for index, (row, question) in enumerate(zip(rows, asked, strict=True)):
        assert set(row) - {"own"} == {"index", *predicts}
        for way, predict in predicts.items():
            own = partial(predict, index)
            assert row[way]["prob"] == pytest.approx(slow_probability(own, tokenizer, question), **near), question
            assert row[way]["predicted"] == slow_answer(own, tokenizer, question), (way, question)


# every pair of tokenizer, architecture and kind of question, every method with each of them, and drawn thoughts
CASES = [
    (QUIET_STAR, BYTES, LLAMA, "number", DRAWN),
    (QUIET_STAR, BYTES, GPT2, "choice", GREEDY),
    (QUIET_STAR, WORDS, LLAMA, "choice", DRAWN),
    (QUIET_STAR, WORDS, GPT2, "number", GREEDY),
    (PAUSE, BYTES, LLAMA, "choice", GREEDY),
    (PAUSE, WORDS, GPT2, "number", GREEDY),
    (NO_THOUGHT, WORDS, LLAMA, "choice", GREEDY),
    (NO_THOUGHT, BYTES, GPT2, "number", GREEDY),
    pytest.param("untrained", BYTES, LLAMA, "number", GREEDY, marks=pytest.mark.slow),
    ("untrained", WORDS, GPT2, "choice", GREEDY),
]


@pytest.mark.parametrize("method, tokenizer, base, kind, sampling", CASES)
def test_scores_are_those_of_one_question_at_a_time(method, tokenizer: Tokenizing, base: dict, kind: str, sampling):
    """Whatever the batch: a draw belongs to its question."""
    model, (task, asked) = thinker(tokenizer, base, method=method), QUESTIONS[kind]
    rows = scores(model, tokenizer, task, asked, sampling=sampling)
    ways = {"no_thought": without(model)} | ({"thought": thoughtful(model, sampling)} if method != NO_THOUGHT else {})
    if method == "untrained":
        ways |= {"sampled": thoughtful(model, Sampling(1.0, sampling.seed)), "mean16": mean_of_16(model, sampling.seed)}
    check(rows, ways, tokenizer, asked, rel=5e-5)
    for index, question in enumerate(asked):  # the thought is the one before what is asked; pauses say nothing
        one = encode_all(task, [question], tokenizer)[0]
        prompt = torch.tensor([one.prompt_ids + one.answer_ids[: one.first_asked]])
        with torch.no_grad():
            thoughts = model(prompt, sampling=sampling, text_keys=torch.tensor([index])).thoughts
        expected = tokenizer.decode(thoughts.ids[0, 0, -1]) if thoughts is not None else ""
        assert rows[index].get("thought", {"thought": ""})["thought"] == expected
    if method != NO_THOUGHT:  # the test can tell the ways apart
        assert max(abs(row["thought"]["prob"] - row["no_thought"]["prob"]) for row in rows) > 1e-4
    assert len({row[way]["predicted"] for row in rows for way in ways} - {""}) > 1


def where_wanted(model: QuietStarForCausalLM) -> Predict:
    """What follows these tokens, after a thought if the gate expects more than its threshold of one."""

    def predict(index: int, ids: list[int]) -> Tensor:
        gain = model.gate_scores(torch.tensor([ids]))[0, -1].item()
        return (thoughtful if gain > model.config.gate_threshold else without)(model)(index, ids)

    return predict


@pytest.mark.parametrize("method, kind", [(QUIET_STAR, "number"), (PAUSE, "choice"), (QUIET_STAR, "choice")])
def test_gated_answers_are_those_of_one_question_at_a_time(method: str, kind: str):
    """And it is kept before which of the answer's tokens the gate wanted a thought."""
    model, (task, asked) = thinker(BYTES, method=method, gate=True), QUESTIONS[kind]
    prompts = [encode_all(task, [question], BYTES)[0].prompt_ids for question in asked]
    first = [model.gate_scores(torch.tensor([ids]))[0, -1].item() for ids in prompts]
    model.config.gate_threshold = (
        sum(sorted(first)[len(first) // 2 - 1 :][:2]) / 2
    )  # between two, whatever rounding does
    rows = scores(model, BYTES, task, asked)
    for row, gain in zip(rows, first, strict=True):
        wanted = gain > model.config.gate_threshold
        assert (row["own_gated"]["answer"][0][0] != SKIPPED) == wanted
        at = encode_all(task, [asked[row["index"]]], BYTES)[0].first_asked
        here = row["own_gated"]["answer"][at][0] != SKIPPED
        assert row["gated"]["thought"] == (row["thought"]["thought"] if here else "")
        del row["own_gated"]
    ways = {"no_thought": without(model), "thought": thoughtful(model), "gated": where_wanted(model)}
    check(rows, ways, BYTES, asked, rel=5e-5)


def test_the_model_before_training(tmp_path: Path):
    """It answers as the decoder that transformers reads from the same folder."""
    folder = model_folder(tmp_path / "base", n_positions=512)
    model, decoder = load_plain(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert all(map(torch.equal, model.base.state_dict().values(), decoder.state_dict().values()))
    for task, asked in QUESTIONS.values():
        check(scores(model, WORDS, task, asked), {"no_thought": without(model)}, WORDS, asked, rel=5e-5)


@TOKENIZERS
@pytest.mark.parametrize("kind", QUESTIONS)
def test_with_its_own_thoughts_given_to_it_a_question_is_answered_as_before(tokenizer: Tokenizing, kind: str):
    """So a control differs from the model's own way in what is thought, and in nothing else; others' change answers.

    A third of all tokens end a thought.
    """
    endings = {"thoughts_end": True, "ending_token_ids": list(range(0, len(tokenizer), 3))}
    model, (task, asked) = thinker(tokenizer, thought_tokens=4, **endings), QUESTIONS[kind]
    rows = scores(model, tokenizer, task, asked, sampling=DRAWN)

    def own(index: int) -> dict[str, np.ndarray]:
        return {place: np.array(thoughts) for place, thoughts in rows[index]["own"].items()}

    assert {sum(token >= 0 for token in thought) for row in rows for thought in row["own"]["answer"]} >= {0, 1, 4}
    itself = scores(model, tokenizer, task, asked, controls=lambda index: {"swapped": own(index)})
    for row, again in zip(rows, itself, strict=True):
        assert again["swapped"] == row["thought"] | {"prob": pytest.approx(row["thought"]["prob"], rel=1e-4)}
    places = [question.first_asked for question in encode_all(task, asked, tokenizer)]
    controls = controls_of(own, list(map(str, range(len(asked)))), places, model.vocabulary, 1)
    others = scores(model, tokenizer, task, asked, controls=controls)
    for way in ("swapped", "random"):
        assert [row[way]["prob"] for row in others] != pytest.approx([row["thought"]["prob"] for row in rows], rel=0.01)


@pytest.mark.parametrize(
    "method, tokenizer, base, sampling",
    [
        (QUIET_STAR, BYTES, LLAMA, DRAWN),
        (QUIET_STAR, WORDS, GPT2, GREEDY),
        (PAUSE, WORDS, LLAMA, GREEDY),
        (NO_THOUGHT, BYTES, GPT2, GREEDY),
        pytest.param("untrained", WORDS, LLAMA, GREEDY, marks=pytest.mark.slow),
    ],
)
def test_texts_are_scored_as_one_at_a_time(method, tokenizer: Tokenizing, base: dict, sampling, monkeypatch):
    """A thought before each token of each choice; sums of log-probabilities, also a byte. Few logits are held."""
    model = thinker(tokenizer, base, method=method)
    monkeypatch.setattr("pipeline.evaluation.direct.score.HELD_LOGITS", 40 * len(tokenizer))
    rows = scores(model, tokenizer, TEXT, TEXTS, sampling=sampling)
    ways = {"no_thought": without(model)} | ({"thought": thoughtful(model, sampling)} if method != NO_THOUGHT else {})
    if method == "untrained":
        ways |= {"sampled": thoughtful(model, Sampling(1.0, sampling.seed)), "mean16": mean_of_16(model, sampling.seed)}
    for index, (row, question) in enumerate(zip(rows, TEXTS, strict=True)):
        assert set(row) - {"own"} == {"index", *ways}
        for way, predict in ways.items():
            sums = []
            for text in question.labels:
                before, whole = (tokenizer(t)["input_ids"] for t in (question.prompt, f"{question.prompt} {text}"))
                places = range(len(before), len(whole))
                sums.append(sum(predict(index, whole[:i]).log_softmax(-1)[whole[i]].item() for i in places))
            best = question.labels[max(range(len(sums)), key=sums.__getitem__)]
            by_byte = [score / len(text.encode()) for score, text in zip(sums, question.labels, strict=True)]
            right = question.labels.index(question.answer)
            distinct = torch.tensor([sums[question.labels.index(text)] for text in dict.fromkeys(question.labels)])
            assert row[way]["predicted"] == best and row[way]["correct"] == (best == question.answer)
            assert row[way]["correct_norm"] == (max(by_byte) == by_byte[right])
            assert row[way]["prob"] == pytest.approx(distinct.softmax(0)[right].item(), rel=1e-3)
    assert len({row[way][name] for row in rows for way in ways for name in ("correct", "correct_norm")}) == 2


def test_texts_with_thoughts_given_to_them():
    """Its own: the same scores. A donor's stand before the same token of its own choice, the last one repeated."""
    model = thinker(WORDS, thought_tokens=4)
    rows = scores(model, WORDS, TEXT, TEXTS)

    def own(index: int) -> dict[str, np.ndarray]:
        return {place: np.array(thoughts) for place, thoughts in rows[index]["own"].items()}

    assert [list(own(i)) for i in (0, 1)] == [["answer", "choice 2", "choice 3", "choice 4"], ["answer", "choice 2"]]
    itself = scores(model, WORDS, TEXT, TEXTS, controls=lambda index: {"swapped": own(index)})
    for row, again in zip(rows, itself, strict=True):
        assert again["swapped"] == row["thought"] | {"prob": pytest.approx(row["thought"]["prob"], rel=1e-4)}
    controls = controls_of(own, list("aabbccd"), [0] * 7, model.vocabulary, 1, beginning_together)
    donors = derangement(list("aabbccd"), 1)
    for index, donor in enumerate(donors):
        theirs = own(donor)
        for place, ids in own(index).items():
            given = controls(index)["swapped"][place]
            expected = theirs.get(place, theirs["answer"])
            assert [thought.tolist() for thought in given] == [
                expected[min(j, len(expected) - 1)].tolist() for j in range(len(ids))
            ]
    others = scores(model, WORDS, TEXT, TEXTS, controls=controls)
    for way in ("swapped", "random"):
        assert [row[way]["prob"] for row in others] != pytest.approx([row["thought"]["prob"] for row in rows], rel=0.01)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real data at {SHARED}")
@TOKENIZERS
@pytest.mark.parametrize("name", ["gsm8k", "commonsense_qa"])
def test_real_questions(tokenizer: Tokenizing, name: str):
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


@TOKENIZERS
def test_a_task_says_of_what_its_numbers_are_made(tokenizer: Tokenizing):
    bits = encode_all(task_of("number", legal="01"), [Question("A:", "10", [])], tokenizer)[0]
    legal = {tokenizer.decode([i]).strip() for some in bits.legal for i in some}
    assert legal and all(set(text) <= {"0", "1"} for text in legal)
    signed = encode_all(task_of("number", legal="-0123456789"), [Question("A:", "-5", [])], tokenizer)[0]
    assert "-" in {tokenizer.decode([i]).strip() for some in signed.legal for i in some}
    with pytest.raises(UserError, match="no number token in the answer '7'"):
        encode_all(task_of("number", legal="01"), [Question("A:", "7", [])], tokenizer)


def writes(tokenizer: Tokenizing, text: str, monkeypatch: pytest.MonkeyPatch, task: Task = NUMBER) -> str:
    """The answer of a model that writes ``text`` whatever it is asked."""
    prompt = tokenizer("Q: What?\nA:")["input_ids"]
    whole = tokenizer(f"Q: What?\nA:{text}")["input_ids"]
    apart = tokenizer(text, add_special_tokens=False)["input_ids"]  # where a token spans the end of the prompt
    ids = whole[len(prompt) :] if whole[: len(prompt)] == prompt else apart
    model = thinker(tokenizer)

    def predict(self: AskedModel, texts: list[list[int]], keys: list[int], places: Sequence[int], *_: object) -> tuple:
        after = [ids[min(len(texts[0]) + place + 1 - len(prompt), len(ids) - 1)] for place in places]
        return torch.nn.functional.one_hot(torch.tensor([after]), len(tokenizer)).double(), None

    ids.append(tokenizer.eos_token_id)
    monkeypatch.setattr(AskedModel, "predict", predict)
    return scores(model, tokenizer, task, [Question("Q: What?\nA:", "7", [])])[0]["thought"]["predicted"]


@TOKENIZERS
def test_the_answer_is_the_first_number_of_what_is_written_before_a_stop(
    tokenizer: Tokenizing, monkeypatch: pytest.MonkeyPatch
):
    answers = {" 7.": "7", " 905 and 3": "905", " It is 5": "5", " -5": "-5", " 12.50": "12.5", " no\n7": "", "\n7": ""}
    answers |= {" 1,207 men": "1207", " 1" + "0" * 30: "1" + "0" * 30, "": ""}
    for text, answer in answers.items():
        written = writes(tokenizer, text, monkeypatch)
        assert written == answer or (len(text) > ANSWER_TOKENS and answer.startswith(written) and written), text
    assert writes(tokenizer, " no\n7", monkeypatch, task_of("number", stop=["."])) == "7"
    assert writes(tokenizer, " no. 7", monkeypatch, task_of("number", stop=["\n", "."])) == ""


def test_the_first_token_that_is_asked():
    """A space of its own and a minus sign are given; of texts there is none."""
    pieces = dict.fromkeys(["<unk>", "</s>", "A", ":", " ", "-", *"0123456789"])
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")
    found = encode_all(NUMBER, [Question("A:", answer, []) for answer in ("18", "-5")], tokenizer)
    assert [len(one.answer_ids) for one in found] == [3, 3] and [one.first_asked for one in found] == [1, 2]
    assert {one.first_asked for one in encode_all(TEXT, TEXTS, WORDS)} == {0}


def test_texts_that_the_tokenizer_cannot_tell_apart():
    model = models.Unigram([("<unk>", 0.0), ("▁", -1.0), ("a", -2.0)], unk_id=0, byte_fallback=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="<unk>")
    with pytest.raises(UserError, match="does not tell the choices é, ö apart"):
        encode(0, Question("Q: a?", "é", ["é", "ö"]), tokenizer, [], "text")
    assert encode(0, Question("Q: Is it?\nA:", "a", ["a", "b", "a"]), WORDS, [], "text").choices  # one text twice


@TOKENIZERS
def test_choices_that_one_token_does_not_tell_apart(tokenizer: Tokenizing):
    for labels in (["yes", "no!"], ["a", "a"]):
        with pytest.raises(UserError, match="apart"):
            encode(0, Question("Q: What?\nA:", labels[0], labels), tokenizer, [], "choice")


def test_questions_that_the_model_has_no_positions_for():
    """A question of ten letters fits; its number, written out, does not."""
    question = Question("Q: " + "x" * 10 + "\nA:", "7", [])
    needed = encode_all(NUMBER, [question], WORDS).longest + ANSWER_TOKENS + 2 + 2
    model = thinker(WORDS)
    config = model.base.config
    config.max_position_embeddings = needed
    scores(model, WORDS, NUMBER, [question])
    config.max_position_embeddings = needed - 1
    with pytest.raises(UserError, match=f"a question of test .* need {needed} positions"):
        scores(model, WORDS, NUMBER, [question])


def test_an_end_token_that_a_tokenizer_adds_is_no_part_of_a_prompt():
    ending = word_tokenizer()
    ending._tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    assert ending("A:")["input_ids"][-1] == ending.eos_token_id
    for task, asked in QUESTIONS.values():
        assert list(encode_all(task, asked, ending)) == list(encode_all(task, asked, WORDS))


def test_an_answer_that_merges_with_its_prompt():
    """Where ": 4" would be one token the answer's own tokens follow the prompt's."""
    pieces = ["<unk>", "</s>", "▁", "▁A", "A", ":", "▁4", "▁42", "4", "2", ":▁4"]
    tokenizer = Tokenizer(models.Unigram([(p, 0.0 if p == ":▁4" else -2.0) for p in pieces], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="</s>")
    assert whole.convert_ids_to_tokens(whole("A: 42")["input_ids"]) == ["▁A", ":▁4", "2"]
    one = encode(0, Question("A:", "42", []), whole, number_tokens(whole, "0123456789"), "number")
    assert whole.convert_ids_to_tokens(one.prompt_ids) == ["▁A", ":"]
    assert whole.convert_ids_to_tokens(one.answer_ids) == ["▁42"]
