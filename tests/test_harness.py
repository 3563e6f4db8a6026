"""lm-eval's own evaluation of our model against a slow one: one text at a time, every position of it thinks."""

import importlib.util
import os
import socket
import subprocess
import sys
from io import BytesIO
from itertools import chain
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import yaml
from tokenizers.processors import TemplateProcessing
from torch import Tensor

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval, an optional extra, is not installed")

from lm_eval.tasks import TaskManager  # noqa: E402

from pipeline import harness  # noqa: E402
from pipeline.data.corpus.microworld import documents  # noqa: E402
from pipeline.data.tasks.questions import Question, read_task  # noqa: E402
from pipeline.data.tokens.tokenizer import train_tokenizer  # noqa: E402
from pipeline.errors import UserError  # noqa: E402
from pipeline.evaluation.direct.encoding import Encodings  # noqa: E402
from pipeline.evaluation.direct.score import ANSWER_TOKENS, score  # noqa: E402
from pipeline.evaluation.prompts import AskedModel  # noqa: E402
from pipeline.harness import QuietStarLM, usable_device  # noqa: E402
from pipeline.models.base import read_tokenizer  # noqa: E402
from pipeline.models.trained import load_trained  # noqa: E402
from pipeline.thought.generation import TEXT_STEP  # noqa: E402
from pipeline.thought.model import QuietStarForCausalLM  # noqa: E402
from pipeline.thought.sampler import Sampling, ban, draw, uniforms  # noqa: E402
from tests.local_hub import commonsense_qa_rows, gsm8k_rows, parquet, word_tokenizer  # noqa: E402
from tests.thought.tiny import GPT2, LLAMA, quiet_star  # noqa: E402

ROOT = Path(__file__).parents[1]
QUESTIONS, NEW_TOKENS, K = 10, 7, 2
STOP = ["\n", "Q:"]
CHOICE_TASK = {
    "task": "letters",
    "dataset_path": "parquet",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "Q: {{question}}\n{% for t in choices.text %}({{choices.label[loop.index0]}}) {{t}}\n{% endfor %}A:",
    "doc_to_choice": "{{choices.label}}",
    "doc_to_target": "{{answerKey}}",
    "target_delimiter": " ",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
NUMBER_TASK = {
    "task": "numbers",
    "dataset_path": "parquet",
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "Q: {{question}}\nA:",
    "doc_to_target": "{{answer.split('#### ')[-1]}}",
    "generation_kwargs": {"until": STOP, "do_sample": False, "max_gen_toks": NEW_TOKENS},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def byte_tokenizer():
    return train_tokenizer(
        [*documents("pretrain", 100, 1, 2, 0.5), *["A: A", "A: B", "A: C", "A: D", "A: E"] * 40], 400
    )


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch):
    """A connection to anywhere is an error."""

    def refuse(*_: object) -> None:
        raise OSError("these tests are offline")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module", params=[byte_tokenizer, word_tokenizer])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model"), request.param())


def saved(folder: Path, tokenizer, base: dict = LLAMA, positions: int = 512, **settings: object) -> Path:
    """A trained folder; its weights are large enough for thoughts to change answers."""
    name = "n_positions" if base["model_type"] == "gpt2" else "max_position_embeddings"
    base = {**base, "vocab_size": len(tokenizer), name: positions}
    settings = {"thought_tokens": K, "start_token_id": 5, "end_token_id": 6} | settings
    quiet_star(base, 1, **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Slow:
    """One text at a time, all of it read anew for every token, a thought at every position."""

    def __init__(self, folder: Path, think: bool, sampling: Sampling = Sampling(0.0), key: int = 0):  # noqa: B008
        self.model, self.tokenizer = QuietStarForCausalLM.from_pretrained(folder).eval(), read_tokenizer(folder)
        self.think, self.sampling, self.key = think, sampling, torch.tensor([key])

    @torch.no_grad()
    def logits(self, ids: list[int]) -> Tensor:
        output = self.model(torch.tensor([ids]), sampling=self.sampling, text_keys=self.key)
        return (output.logits if self.think else output.base_logits)[0].double()

    def log_likelihood(self, context: list[int], answer: list[int]) -> tuple[float, bool]:
        total, greedy = 0.0, True
        for place, token in enumerate(answer):
            last = self.logits(context + answer[:place])[-1]
            total += last.log_softmax(-1)[token].item()
            greedy = greedy and ban(last.clone(), self.model.banned).argmax().item() == token
        return total, greedy

    def answer(self, prompt: str, letter: str) -> tuple[float, bool]:
        before, whole = (self.tokenizer(text)["input_ids"] for text in (prompt, f"{prompt} {letter}"))
        return self.log_likelihood(before, whole[len(before) :])

    def write(self, prompt: str, stop: list[str], new: int, sampling: Sampling = Sampling(0.0)) -> str:  # noqa: B008
        ids, written = self.tokenizer(prompt)["input_ids"], []
        while len(written) < new and not any(s in self.tokenizer.decode(written) for s in stop):
            logits = ban(self.logits(ids + written)[-1:], self.model.banned)
            place = torch.tensor([[len(ids + written) - 1]])
            chance = uniforms(sampling.seed, self.key, 1, place, TEXT_STEP)[:, 0, 0]
            written.append(int(draw(logits, logits.softmax(-1), sampling, chance)))
            if written[-1] == self.tokenizer.eos_token_id:
                written.pop()
                break
        text = self.tokenizer.decode(written, skip_special_tokens=True)
        for string in stop:
            text = text.split(string)[0]
        return text


def written_task(folder: Path, task: dict, rows: list[dict]) -> None:
    """The task as a file, and its data set beside it."""
    data = parquet(folder / task["task"], "test", rows)
    kwargs = {"data_files": {"test": str(data / "data/*.parquet")}, "cache_dir": str(folder / "cache")}
    (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump({**task, "dataset_kwargs": kwargs}))


def evaluated(folder: Path, tasks: Path, name: str, **settings: object) -> tuple[dict, list[dict]]:
    """lm-eval's metrics of a task, and what it says of each question."""
    arguments = ",".join(f"{key}={value}" for key, value in {"pretrained": folder, **settings}.items())
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    options = {"batch_size": 4, "device": "cpu", "bootstrap_iters": 0, "task_manager": manager}
    results = lm_eval.simple_evaluate("quiet_star", model_args=arguments, tasks=[name], **options)
    return results["results"][name], results["samples"][name]


def choice_prompt(row: dict) -> str:
    lines = [f"({label}) {text}" for label, text in zip(*row["choices"].values(), strict=True)]
    return "\n".join([f"Q: {row['question']}", *lines, "A:"])


@pytest.mark.parametrize("think", [True, False])
def test_choices_are_those_of_one_question_at_a_time(folder: Path, think: bool, tmp_path: Path):
    rows = commonsense_qa_rows(QUESTIONS)
    written_task(tmp_path, CHOICE_TASK, rows)
    slow, right = Slow(folder, think), 0
    metrics, samples = evaluated(folder, tmp_path, "letters", think=think)
    for row, sample in zip(rows, samples, strict=True):
        expected = [slow.answer(choice_prompt(row), letter) for letter in "ABCDE"]
        for (log_prob, greedy), (expected_log_prob, expected_greedy) in zip(
            (resp[0] for resp in sample["resps"]), expected, strict=True
        ):
            assert log_prob == pytest.approx(expected_log_prob, abs=1e-4)
            assert greedy == expected_greedy
        right += "ABCDE"[max(range(5), key=lambda i: expected[i][0])] == row["answerKey"]  # noqa: B023
    assert metrics["acc,none"] == right / QUESTIONS


def test_thoughts_change_the_choices(folder: Path):
    """Otherwise the test above would not see them."""
    prompt = choice_prompt(commonsense_qa_rows(1)[0])
    ways = [[Slow(folder, think).answer(prompt, letter)[0] for letter in "ABCDE"] for think in (True, False)]
    assert max(abs(a - b) for a, b in zip(*ways, strict=True)) > 0.1


@pytest.mark.parametrize("think", [True, False])
def test_written_answers_are_those_of_one_question_at_a_time(folder: Path, think: bool, tmp_path: Path):
    """Every second question has an answer that this way writes, so that the accuracy is not 0."""
    slow, rows = Slow(folder, think), gsm8k_rows(QUESTIONS)
    expected = [slow.write(f"Q: {row['question']}\nA:", STOP, NEW_TOKENS) for row in rows]
    for row, text in list(zip(rows, expected, strict=True))[::2]:
        row["answer"] = f"Working.\n#### {text}"
    written_task(tmp_path, NUMBER_TASK, rows)
    metrics, samples = evaluated(folder, tmp_path, "numbers", think=think)
    assert [sample["filtered_resps"][0] for sample in samples] == expected
    assert metrics["exact_match,none"] == pytest.approx(
        sum(row["answer"].split("#### ")[-1] == text for row, text in zip(rows, expected, strict=True)) / QUESTIONS
    )
    assert 0.5 <= metrics["exact_match,none"] < 1


def test_thoughts_change_what_is_written(folder: Path):
    prompts = [f"Q: {row['question']}\nA:" for row in gsm8k_rows(QUESTIONS)]
    ways = [[Slow(folder, think).write(prompt, STOP, NEW_TOKENS) for prompt in prompts] for think in (True, False)]
    assert ways[0] != ways[1]


FIRST_NUMBER = {
    "filter_list": [
        {"name": "first", "filter": [{"function": "regex", "regex_pattern": "(-?[0-9]+)"}, {"function": "take_first"}]}
    ],
    "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": ANSWER_TOKENS},
}


def our_answers(folder: Path, task: str, questions: list[Question], think: bool) -> list[str]:
    asked = AskedModel(load_trained(folder), read_tokenizer(folder), Sampling(0.0), batch_size=3)
    about = read_task(ROOT / f"tasks/{task}.yaml")
    found = chain(*score(asked, Encodings(about, questions, asked.tokenizer, BytesIO()), task))
    rows = sorted(found, key=lambda row: row["index"])
    return [row["thought" if think else "no_thought"]["predicted"] for row in rows]


@pytest.mark.parametrize("think", [True, False])
def test_the_accuracy_of_choices_is_that_of_our_own_evaluation(folder: Path, think: bool, tmp_path: Path):
    rows = commonsense_qa_rows(30)
    questions = [Question(choice_prompt(row), row["answerKey"], list("ABCDE")) for row in rows]
    predicted = our_answers(folder, "commonsense_qa", questions, think)
    right = sum(q.answer == answer for q, answer in zip(questions, predicted, strict=True))
    written_task(tmp_path, CHOICE_TASK, rows)
    assert evaluated(folder, tmp_path, "letters", think=think)[0]["acc,none"] == right / len(rows)
    assert 0 < right < len(rows)


@pytest.mark.parametrize("think", [True, False])
def test_the_accuracy_of_numbers_is_that_of_our_own_evaluation(folder: Path, think: bool, tmp_path: Path):
    """Every second question that gets a number as its answer has it for the right one."""
    rows = gsm8k_rows(30)
    questions = [Question(f"Q: {row['question']}\nA:", "1", []) for row in rows]
    predicted = our_answers(folder, "gsm8k", questions, think)
    for row, answer in list(zip(rows, predicted, strict=True))[::2]:
        row["answer"] = f"#### {answer or 1}"
    right = sum(row["answer"].split("#### ")[1] == answer for row, answer in zip(rows, predicted, strict=True))
    written_task(tmp_path, NUMBER_TASK | FIRST_NUMBER, rows)
    metrics, samples = evaluated(folder, tmp_path, "numbers", think=think)
    found = [sample["filtered_resps"][0].lstrip("0") for sample in samples]
    assert [answer if answer != "[invalid]" else "" for answer in found] == [a.lstrip("0") for a in predicted]
    assert metrics["exact_match,first"] == right / len(rows) and right


def requests(*arguments: tuple) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=one) for one in arguments]


def pairs(count: int = 6) -> list[tuple[str, str]]:
    """Contexts and answers of many lengths, several of one context."""
    contexts = [f"Q: Where is it{'?' * (3 * n % 7)}\nA:" for n in range(count)]
    return [(context, answer) for context in contexts for answer in (" B", " in the water.", " D")]


SAMPLED = {"thought_temperature": 1.0, "seed": 3}
WARM = {"until": STOP, "temperature": 1.0, "do_sample": True, "max_gen_toks": NEW_TOKENS}


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_batch_changes_nothing(folder: Path, batch_size: int):
    """Also where thoughts and text are sampled, and whatever else is asked: a draw belongs to its text."""
    asked, other = requests(*pairs()), QuietStarLM(str(folder), batch_size=5, **SAMPLED)
    model = QuietStarLM(str(folder), batch_size=batch_size, **SAMPLED)
    expected = other.loglikelihood(asked[::-1], disable_tqdm=True)[::-1]
    for one, (log_prob, greedy) in zip(model.loglikelihood(asked, disable_tqdm=True), expected, strict=True):
        assert one == (pytest.approx(log_prob, abs=1e-4), greedy)
    prompts = requests(*((context, WARM) for context, _ in pairs()[::3]))
    expected = other.generate_until(prompts, disable_tqdm=True)
    assert model.generate_until(prompts[2:], disable_tqdm=True) == expected[2:]
    assert len(set(expected)) > 1


def test_sampled_scores_and_texts_are_those_of_the_slow_way(folder: Path):
    model = QuietStarLM(str(folder), batch_size=4, **SAMPLED)
    context, answer = pairs()[4]
    key = harness.text_key(model.tok_encode(context))
    slow = Slow(folder, True, Sampling(1.0, 3), key)
    score = model.loglikelihood(requests(*pairs()), disable_tqdm=True)[4]
    assert score[0] == pytest.approx(slow.answer(context, answer.strip())[0], abs=1e-4)
    texts = model.generate_until(requests((context, WARM), ("Q: Who\nA:", WARM)), disable_tqdm=True)
    assert texts[0] == slow.write(context, STOP, NEW_TOKENS, Sampling(1.0, 3))
    cold = Slow(folder, True).answer(context, answer.strip())[0]
    assert abs(score[0] - cold) > 1e-3  # so greedy thoughts would be told apart


def test_seeds_and_repeats_draw_anew(folder: Path):
    asked = requests(*[("Q: What is it?\nA:", WARM)] * 4)
    texts = QuietStarLM(str(folder), **SAMPLED).generate_until(asked, disable_tqdm=True)
    again = QuietStarLM(str(folder), **{**SAMPLED, "seed": 4}).generate_until(asked, disable_tqdm=True)
    assert len(set(texts)) > 1 and texts != again
    assert texts == QuietStarLM(str(folder), batch_size=3, **SAMPLED).generate_until(asked, disable_tqdm=True)


@pytest.mark.parametrize("think", [True, False])
@pytest.mark.parametrize("base", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_a_whole_text_in_windows(base: dict, think: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Longer than the model's positions, and with few logits held at once; GPT-2 fails past its last position."""
    folder = saved(tmp_path, byte_tokenizer(), base, positions=24)
    model, slow = QuietStarLM(str(folder), think=think, batch_size=3), Slow(folder, think)
    assert model.max_length == 24 - K - 2
    texts = ["The bridge is closed.", "", "Ana has 3 apples and buys 4 more. How many apples has she? " * 2, "To"]
    expected = []
    for text in texts:
        ids, room, total = slow.tokenizer(text)["input_ids"], model.max_length, 0.0
        for start in range(0, len(ids), room):
            predicted = ids[start : start + room]
            end = start + len(predicted)
            context = [slow.tokenizer.eos_token_id, *ids][max(0, end - room) : start + 1]
            total += slow.log_likelihood(context, predicted)[0]
        expected.append(total)
    assert model.loglikelihood_rolling(requests(*((t,) for t in texts)), True) == pytest.approx(expected, abs=1e-3)
    held = held_logits(model, monkeypatch)
    monkeypatch.setattr(harness, "HELD_LOGITS", 3 * 5 * model._model.vocabulary)
    assert model.loglikelihood_rolling(requests(*((t,) for t in texts)), True) == pytest.approx(expected, abs=1e-3)
    assert max(held) <= 3 * 5 * model._model.vocabulary


def held_logits(model: QuietStarLM, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all logits that the LM head makes from now on."""
    sizes = []
    model._model.base.get_output_embeddings().register_forward_hook(lambda *args: sizes.append(args[2].numel()))
    linear = torch.nn.functional.linear

    def counted(*args: Tensor) -> Tensor:
        product = linear(*args)
        sizes.append(product.numel() if product.shape[-1] == model._model.vocabulary else 0)
        return product

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    return sizes


def test_only_the_answers_positions_think(folder: Path, monkeypatch: pytest.MonkeyPatch):
    model, thought = QuietStarLM(str(folder), batch_size=8), []
    think = model._model.think_and_talk

    def watched(text, positions: Tensor, *args: object):
        thought.append((len(text.position_ids), len(positions)))
        return think(text, positions, *args)

    monkeypatch.setattr(model._model, "think_and_talk", watched)
    prompts = [choice_prompt(row) for row in commonsense_qa_rows(4)]
    model.loglikelihood(requests(*((prompt, f" {letter}") for prompt in prompts for letter in "ABCDE")), True)
    length = len(model._encode_pair(prompts[0], " A")[1])
    assert thought == [(4, length)]  # the five letters of a question share its thoughts


def test_texts_of_like_length_go_together(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """The longest first, so that what does not fit fails at once."""
    model, shapes = QuietStarLM(str(folder), batch_size=2), []
    read, generate = model._model.decoder.read, model._model.generate
    monkeypatch.setattr(type(model._model.decoder), "read", lambda _, *a: shapes.append(a[0].shape) or read(*a))
    monkeypatch.setattr(model._model, "generate", lambda *a, **o: shapes.append(a[0].shape) or generate(*a, **o))
    contexts = [f"Q: Where{'?' * count}\nA:" for count in (9, 0, 40, 1, 41, 10)]
    own = sorted((len(model.tok_encode(context)) for context in contexts), reverse=True)
    model.loglikelihood(requests(*((context, " A") for context in contexts)), True)
    texts = model.generate_until(requests(*((context, {"max_gen_toks": 1}) for context in contexts)), True)
    answer = len(model._encode_pair(contexts[0], " A")[1])
    assert [tuple(shape) for shape in shapes[:3]] == [(2, length + answer - 1) for length in own[::2]]
    assert [tuple(shape) for shape in shapes[3:]] == [(2, length) for length in own[::2]]
    assert len(texts) == len(contexts)


def test_without_thoughts_nothing_thinks(folder: Path, monkeypatch: pytest.MonkeyPatch):
    model = QuietStarLM(str(folder), think=False)
    monkeypatch.setattr(model._model, "think", None)
    monkeypatch.setattr(model._model, "think_and_talk", None)
    assert model.loglikelihood(requests(*pairs()), True)
    assert model.generate_until(requests(("Q: What\nA:", WARM)), True)


@pytest.mark.parametrize("think", [True, False])
@pytest.mark.parametrize("base", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_a_long_context_loses_its_beginning(base: dict, think: bool, tmp_path: Path):
    """And the thought after its last token still has positions: GPT-2 fails past the last."""
    folder = saved(tmp_path, byte_tokenizer(), base, positions=24)
    model, slow = QuietStarLM(str(folder), think=think, batch_size=2), Slow(folder, think)
    context, answer = "Q: Ana has 3 apples and buys 4 more. How many apples has she?\nA:", " D in the"
    before, ids = model._encode_pair(context, answer)
    assert len(before) > 24
    score, _ = model.loglikelihood(requests((context, answer), ("Q:", " A")), True)
    kept = [*before, *ids][-model.max_length - 1 :][: -len(ids)]
    assert score[0] == pytest.approx(slow.log_likelihood(kept, ids)[0], abs=1e-4)
    text, short = model.generate_until(
        requests((context, {"max_gen_toks": 9}), ("Q: What\nA:", {"max_gen_toks": 9})), True
    )
    kept = before[-(model.max_length - 9) :]
    for _ in range(9):
        kept.append(ban(slow.logits(kept)[-1:], slow.model.banned).argmax().item())
    assert text == slow.tokenizer.decode(kept[-9:], skip_special_tokens=True)
    assert short == slow.write("Q: What\nA:", [], 9)


def test_odd_requests(folder: Path):
    """An empty context is the end token's; an empty answer is sure; short texts stand beside long ones."""
    model, slow = QuietStarLM(str(folder), batch_size=10), Slow(folder, True)
    end, answer = slow.tokenizer.eos_token_id, slow.tokenizer("water")["input_ids"]
    asked = requests(("", "water"), ("Q: What is it?\nA:", ""), *pairs(2))
    scores = model.loglikelihood(asked, True)
    assert scores[0][0] == pytest.approx(slow.log_likelihood([end], answer)[0], abs=1e-4)
    assert scores[1] == (0.0, True)
    assert model.loglikelihood(asked[1:2], True) == [(0.0, True)]
    assert isinstance(model.generate_until(requests(("", {"max_gen_toks": 2})), True)[0], str)


def test_what_greedy_decoding_writes_is_greedy(folder: Path):
    model = QuietStarLM(str(folder))
    ids = model.tok_encode("Q: What is it?\nA:")
    written = model._model.generate(torch.tensor([ids]), max_new_tokens=3)[0, len(ids) :].tolist()
    other = [*written[:2], (written[2] + 1) % 20]
    scores = model._loglikelihood_tokens([(("", ""), ids, written), (("", ""), ids, other)], disable_tqdm=True)
    assert [greedy for _, greedy in scores] == [True, False]
    assert scores[0][0] > scores[1][0]


def test_meta_tokens_are_not_what_greedy_decoding_writes(tmp_path: Path):
    """Nor is the right token not greedy because a meta-token, which is never written, is likelier."""
    folder = saved(tmp_path, byte_tokenizer())
    model = QuietStarLM(str(folder))
    ids = model.tok_encode("Q: What is it?\nA:")
    best = int(ban(model._model(torch.tensor([ids])).logits[0, -1].detach(), [5, 6]).argmax())
    head = model._model.base.lm_head.weight.data
    head[5] = 50 * head[best]
    requested = [(("", ""), ids, [best]), (("", ""), ids, [5])]
    assert [greedy for _, greedy in model._loglikelihood_tokens(requested, disable_tqdm=True)] == [True, False]


def test_a_stop_string_or_the_end_token_ends_a_text(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """No more is written once every text of a batch has ended."""
    model, slow, prompt, lengths = QuietStarLM(str(folder)), Slow(folder, True), "Q: What is it?\nA:", []
    ids = model.tok_encode(prompt)
    free = model._model.generate(torch.tensor([ids]), max_new_tokens=12)[0, len(ids) :].tolist()
    generate = model._model.generate

    def watched(*args: Tensor, **options: object) -> Tensor:
        written = generate(*args, **options)
        lengths.append(written.shape[1] - len(ids))
        return written

    monkeypatch.setattr(model._model, "generate", watched)
    text = model.tokenizer.decode(free)
    stop = text[len(text) // 2 :][:2]
    asked = {"until": ["never", stop], "max_gen_toks": 12}
    assert model.generate_until(requests((prompt, asked)), True) == [slow.write(prompt, [stop], 12)]
    assert slow.write(prompt, [stop], 12) == text[: text.index(stop)] != text
    model.tokenizer.eos_token = model.tokenizer.convert_ids_to_tokens(free[6])
    ended = model.tokenizer.decode(free[: free.index(free[6])])
    assert model.generate_until(requests((prompt, {"max_gen_toks": 12})), True) == [ended]
    assert 0 < lengths[0] < 12 and lengths[1] == free.index(free[6]) + 1


def marked_tokenizer():
    """With a mark before each text and one after it."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    marks = [("<s>", tokenizer.bos_token_id), ("<|end|>", tokenizer.eos_token_id)]
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A <|end|>", special_tokens=marks)
    return tokenizer


def test_marks_around_a_text(tmp_path: Path):
    """One before it, none after it, none that is written is told."""
    folder = saved(tmp_path, marked_tokenizer())
    model, slow = QuietStarLM(str(folder)), Slow(folder, True)
    mark, plain = model.tokenizer.bos_token_id, model.tokenizer("water", add_special_tokens=False)["input_ids"]
    assert model.tok_encode("water") == model.tok_encode("<s>water") == [mark, *plain]
    assert model.tok_encode("water", add_special_tokens=False) == plain
    assert model.loglikelihood_rolling(requests(("water",)), True)[0] == pytest.approx(
        slow.log_likelihood([mark], plain)[0], abs=1e-4
    )
    assert model._read_out([mark, *plain, model.tokenizer.pad_token_id, *plain], []) == "waterwater"


def test_what_is_done_is_kept_in_lm_evals_cache(folder: Path):
    """Each batch as it is done, so that a broken run is not lost."""
    model, kept = QuietStarLM(str(folder), batch_size=4), {}
    model.cache_hook.add_partial = lambda kind, arguments, result: kept.update({(kind, arguments[0]): result})
    scores = model.loglikelihood(requests(*pairs()[::3]), True)
    texts = model.generate_until(requests(("Q: What\nA:", {"max_gen_toks": 2})), True)
    expected = {("loglikelihood", context): score for (context, _), score in zip(pairs()[::3], scores, strict=True)}
    assert kept == expected | {("generate_until", "Q: What\nA:"): texts[0]}


def test_generation_arguments_are_honoured(folder: Path):
    model = QuietStarLM(str(folder), seed=7)

    def writing(**arguments: object) -> tuple:
        one = model._writing(arguments)
        return one.stop, one.new_tokens, one.sampling

    greedy = Sampling(0.0, 7)
    assert writing() == ((), 256, greedy)  # lm-eval's own default
    assert writing(until="\n", max_gen_toks=3) == (("\n",), 3, greedy)
    assert writing(until=["\n", ""], max_new_tokens=4) == (("\n",), 4, greedy)
    assert writing(max_gen_toks=3, do_sample=False, temperature=0.7)[2] == greedy
    assert writing(max_gen_toks=3, temperature=0.7)[2] == Sampling(0.7, 7)
    assert writing(max_gen_toks=3, do_sample=True)[2] == Sampling(1.0, 7)
    assert writing(max_gen_toks=3, do_sample=True, temperature=0.9, top_p=0.5, top_k=4)[2] == Sampling(0.9, 7, 4, 0.5)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"num_beams": 4}, "num_beams"),
        ({"until": [], "max_tokens": 5, "best_of": 2}, "max_tokens, best_of"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": "hot"}, "hot"),
        ({"top_p": 3.0}, "top_p is 3.0"),
        ({"max_gen_toks": 0}, "max_gen_toks is 0"),
        ({"max_gen_toks": 5000}, "max_gen_toks is 5000"),
        ({"max_gen_toks": "few"}, "few"),
    ],
)
def test_generation_arguments_that_mean_nothing(folder: Path, arguments: dict, told: str):
    with pytest.raises(UserError, match=told):
        QuietStarLM(str(folder)).generate_until(requests(("Q:", arguments)), True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"think": "yes"}, "think is 'yes'"),
        ({"thought_temperature": -1}, "thought_temperature is -1, but must be a number from 0"),
        ({"thought_temperature": float("nan")}, "thought_temperature is nan"),
        ({"seed": "x"}, "seed is 'x', but must be a number from 0 to 4294967295"),
        ({"seed": 10**20}, "seed is 100000000000000000000"),
        ({"seed": float("inf")}, "seed is inf"),
        ({"batch_size": "auto"}, "batch_size is 'auto', but must be a number from 1 to 1000000"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"device": "tpu"}, "device is tpu"),
        ({"dtype": "float16", "max_batch_size": 4}, "dtype, max_batch_size"),
    ],
)
def test_model_arguments_that_mean_nothing(folder: Path, arguments: dict, told: str):
    with pytest.raises(UserError, match=told):
        QuietStarLM(str(folder), **arguments)


def test_folders_that_are_no_trained_model(tmp_path: Path, folder: Path):
    with pytest.raises(UserError, match="holds no trained model"):
        QuietStarLM(str(tmp_path / "nothing"))
    weights_only = tmp_path / "model"
    quiet_star(LLAMA).save_pretrained(weights_only)
    with pytest.raises(UserError, match="tokenizer"):
        QuietStarLM(str(weights_only))


def test_without_a_gpu_cuda_means_the_cpu(monkeypatch: pytest.MonkeyPatch):
    """As lm-eval's command line asks for cuda:0 where nothing is said."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert usable_device("cuda:0") == usable_device("auto") == usable_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [usable_device(d) for d in ("auto", "cuda:1", "cpu")] == ["cuda", "cuda:1", "cpu"]
    with pytest.raises(UserError, match="cuda:2"):
        usable_device("cuda:2")


@pytest.mark.parametrize("method", ["pause", "no_thought"])
def test_other_methods(method: str, tmp_path: Path):
    folder = saved(tmp_path, byte_tokenizer(), method=method)
    slow, model = Slow(folder, True), QuietStarLM(str(folder), batch_size=4)
    scores = model.loglikelihood(requests(*pairs(2)), True)
    for (context, answer), (log_prob, _) in zip(pairs(2), scores, strict=True):
        assert log_prob == pytest.approx(slow.answer(context, answer.strip())[0], abs=1e-4)
    text = model.generate_until(requests(("Q: What is it?\nA:", {"max_gen_toks": 5})), True)[0]
    assert text == slow.write("Q: What is it?\nA:", [], 5)


def test_the_command(tmp_path: Path):
    folder = saved(tmp_path / "model", byte_tokenizer())
    written_task(tmp_path / "tasks", CHOICE_TASK, commonsense_qa_rows(QUESTIONS))
    options = f"--model quiet_star --model_args pretrained={folder},think=true --tasks letters --batch_size 4"
    line = [sys.executable, "-m", "pipeline.harness", *options.split(), "--include_path", str(tmp_path / "tasks")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("|letters"))
    slow = Slow(folder, True)
    rows = commonsense_qa_rows(QUESTIONS)
    best = [max("ABCDE", key=lambda letter: slow.answer(choice_prompt(row), letter)[0]) for row in rows]  # noqa: B023
    assert float(row.split("|")[7]) == sum(b == r["answerKey"] for b, r in zip(best, rows, strict=True)) / QUESTIONS


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--model_args pretrained=nowhere --tasks letters", "nowhere holds no trained model"),
        ("--tasks letters", "quiet_star needs the folder of a trained model"),
        ("--model_args pretrained=5 --tasks letters", "5 holds no trained model"),
        (
            "--model_args pretrained=nowhere",
            "No tasks specified, or no tasks found. Please verify the task names: name some with",
        ),
        ("--tasks letters --log_samples", "Specify --output_path if providing --log_samples or --predict_only: name a"),
        ("--model_args pretrained=MODEL --tasks lost", "a task's data set cannot be read: "),
        ("--model_args pretrained=MODEL --tasks letters --apply_chat_template", "quiet_star has no chat template: "),
        ("--model_args pretrained=nowhere --tasks riddles", "Tasks not found: riddles"),
    ],
)
def test_the_commands_mistakes_are_told_in_one_line(
    options: str, told: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    written_task(tmp_path, CHOICE_TASK, commonsense_qa_rows(1))
    lost = CHOICE_TASK | {"task": "lost", "dataset_path": "nobody/nothing"}
    (tmp_path / "lost.yaml").write_text(yaml.safe_dump(lost))
    line = [
        "harness",
        "--model",
        "quiet_star",
        *options.replace("MODEL", str(folder)).split(),
        "--include_path",
        str(tmp_path),
    ]
    monkeypatch.setattr(sys, "argv", line)
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        harness.run(harness.main)
    assert ended.value.code.startswith(f"error: {told}") and "\n" not in ended.value.code


def test_an_error_of_lm_eval_itself_is_not_hidden(monkeypatch: pytest.MonkeyPatch):
    def broken() -> None:
        raise ValueError("something else")

    monkeypatch.setattr(harness, "cli_evaluate", broken)
    with pytest.raises(ValueError, match="something else"):
        harness.main()


def imported_without(hidden: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The file as if it were imported where this module is not installed."""

    class Hidden:
        def find_spec(self, name: str, *_: object) -> None:
            if name == hidden:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name in [name for name in sys.modules if name == hidden or name.startswith(f"{hidden}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Hidden(), *sys.meta_path])
    spec = importlib.util.spec_from_file_location("harness_again", harness.__file__)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "harness_again", module)
    spec.loader.exec_module(module)
    return module


def test_without_lm_eval_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    """Importing the file is fine; running it is not."""
    module = imported_without("lm_eval", monkeypatch)
    with pytest.raises(UserError, match="lm-eval is not installed: pip install --constraint constraints.txt lm-eval"):
        module.main()


def test_an_installation_that_is_broken_is_not_called_missing(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ModuleNotFoundError, match="lm_eval.api.registry"):
        imported_without("lm_eval.api.registry", monkeypatch)


def test_nothing_else_needs_lm_eval():
    files = [path for part in ("pipeline", "stages") for path in (ROOT / part).rglob("*.py")]
    assert [path.name for path in files if "lm_eval" in path.read_text()] == ["harness.py"]
