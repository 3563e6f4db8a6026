"""lm-eval with our model against a slow reference: one text at a time, with a thought at every position of it."""

import os
import runpy
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pipeline.data.tasks.questions import Question, read_task
from pipeline.data.tokens.tokenizer import train_tokenizer
from pipeline.errors import UserError
from pipeline.evaluation import harness, prompts
from pipeline.evaluation.harness import QuietStarLM, usable_device
from pipeline.models.base import read_tokenizer
from pipeline.models.trained import load_trained
from pipeline.report.release import add_code
from pipeline.thought.generation import continue_texts
from pipeline.thought.head import Head, ban
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.sampler import Sampling
from tests.evaluation.chain_of_thought.asking import slow_text
from tests.evaluation.direct.test_direct import scores
from tests.local_hub import commonsense_qa_rows, gsm8k_rows, parquet, word_tokenizer
from tests.micro_documents import documents
from tests.thought.tiny import GPT2, LLAMA, quiet_star, rows_of

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval, an optional extra, is not installed")
TaskManager = pytest.importorskip("lm_eval.tasks").TaskManager
ROOT = Path(__file__).parents[2]
K, START, END = 2, 5, 6
NEW_TOKENS = 12  # as many as our own evaluation writes
STOP = ["\n"]
GREEDY = Sampling(0.0)
DATA = {"dataset_path": "parquet", "test_split": "test"}
CHOICE_TASK = DATA | {
    "task": "letters",
    "output_type": "multiple_choice",
    "doc_to_text": "Q: {{question}}\n{% for t in choices.text %}({{choices.label[loop.index0]}}) {{t}}\n{% endfor %}A:",
    "doc_to_choice": "{{choices.label}}",
    "doc_to_target": "{{answerKey}}",
    "target_delimiter": " ",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
TEXT_TASK = CHOICE_TASK | {
    "task": "texts",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "{{choices.text}}",
    "doc_to_target": "{{choices.label.index(answerKey)}}",
    "metric_list": [
        {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm", "acc_bytes")
    ],
}
NUMBER = [{"function": "regex", "regex_pattern": "(-?[0-9]+)"}, {"function": "take_first"}]
NUMBER_TASK = DATA | {
    "task": "numbers",
    "output_type": "generate_until",
    "doc_to_text": "Q: {{question}}\nA:",
    "doc_to_target": "{{answer.split('#### ')[-1]}}",
    "generation_kwargs": {"until": STOP, "do_sample": False, "max_gen_toks": NEW_TOKENS},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "filter_list": [{"name": "first", "filter": NUMBER}],
}
SAMPLED = {"thought_temperature": 1.0, "seed": 3}
WARM = {"until": [*STOP, "Q:"], "temperature": 1.0, "do_sample": True, "max_gen_toks": 7}


@cache
def byte_tokenizer() -> PreTrainedTokenizerBase:
    choices = ["A: A", "A: B", "A: C", "A: D", "A: E"] * 40
    return train_tokenizer([*documents("pretrain", 100), *choices], 400)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(socket.socket, "connect", None)  # no test connects


def saved(folder: Path, make: Callable = byte_tokenizer, base: dict = LLAMA, positions: int = 512, **own) -> Path:
    """Write a trained model with weights large enough for thoughts to change answers; ``own``: its settings."""
    tokenizer = make()
    base = {**base, "vocab_size": len(tokenizer), "max_position_embeddings": positions}
    own = {"thought_tokens": K, "start_token_id": START, "end_token_id": END} | own
    quiet_star(base, 1, **own).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model"))


class Slow:
    def __init__(self, folder: Path, think: bool = True, sampling: Sampling = GREEDY):
        self.model, self.tokenizer = QuietStarForCausalLM.from_pretrained(folder).eval(), read_tokenizer(folder)
        self.think, self.sampling, self.key = think, sampling, torch.tensor([0])

    @torch.no_grad()
    def logits(self, ids: list[int]) -> Tensor:
        output = self.model(torch.tensor([ids]), sampling=self.sampling, text_keys=self.key)
        return (output.logits if self.think else output.base_logits)[0, -1:].double()

    def best(self, ids: list[int]) -> int:
        return ban(self.logits(ids), [START, END]).argmax().item()

    def log_likelihood(self, context: list[int], answer: list[int]) -> tuple[float, bool]:
        before = [context + answer[:place] for place in range(len(answer))]
        scores = [self.logits(ids)[0].log_softmax(-1)[token].item() for ids, token in zip(before, answer, strict=True)]
        return sum(scores), list(map(self.best, before)) == answer

    def answer(self, prompt: str, answer: str) -> tuple[float, bool]:
        before, whole = (self.tokenizer(text)["input_ids"] for text in (prompt, prompt + answer))
        return self.log_likelihood(before, whole[len(before) :])

    def write(self, prompt: str, stop: list[str], new: int, sampling: Sampling = GREEDY) -> str:
        def predict(ids: list[int]) -> Tensor:
            return ban(self.logits(ids), [START, END])[0]

        return slow_text(predict, self.tokenizer, stop, prompt, new, sampling, self.key)


def watch(owner: object, name: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Size, dict]]:
    """Each call of this function: the shape of its ids, and its options."""
    calls, method = [], getattr(owner, name)

    def watched(*given: object, **options: object) -> object:
        calls.append((next(ids.shape for ids in given if isinstance(ids, Tensor)), options))
        return method(*given, **options)

    monkeypatch.setattr(owner, name, watched)
    return calls


def written_task(folder: Path, task: dict, rows: list[dict]) -> None:
    data = parquet(folder / task["task"], "test", rows)
    kwargs = {"data_files": {"test": str(data / "data/*.parquet")}, "cache_dir": str(folder / "cache")}
    (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump({**task, "dataset_kwargs": kwargs}))


def evaluated(folder: Path, tasks: Path, name: str, **settings: object) -> tuple[dict, list[dict]]:
    """Return lm-eval's metrics of a task and its samples, one for each question."""
    arguments = ",".join(f"{key}={value}" for key, value in {"pretrained": folder, **settings}.items())
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    options = {"batch_size": 4, "device": "cpu", "bootstrap_iters": 0, "task_manager": manager}
    results = lm_eval.simple_evaluate("quiet_star", model_args=arguments, tasks=[name], **options)
    return results["results"][name], results["samples"][name]


def our_answers(folder: Path, task: str, questions: list[Question], think: bool) -> list[str]:
    about = read_task(ROOT / f"tasks/{task}.yaml")
    rows = scores(load_trained(folder), read_tokenizer(folder), about, questions, batch_size=3)
    return [row["thought" if think else "no_thought"]["predicted"] for row in rows]


def choice_prompt(row: dict) -> str:
    lines = [f"({label}) {text}" for label, text in zip(*row["choices"].values(), strict=True)]
    return "\n".join([f"Q: {row['question']}", *lines, "A:"])


def requests(*arguments: tuple) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=one) for one in arguments]


def pairs(count: int = 6) -> list[tuple[str, str]]:
    contexts = [f"Q: Where is it{'?' * (3 * n % 7)}\nA:" for n in range(count)]
    return [(context, answer) for context in contexts for answer in (" B", " in the water.", " D")]


WAYS = pytest.mark.parametrize(("tokenizer", "think"), [(byte_tokenizer, True), (word_tokenizer, False)])


@WAYS
def test_choices_are_those_of_the_slow_reference_and_of_our_own_evaluation(tokenizer: Callable, think, tmp_path: Path):
    folder, rows = saved(tmp_path / "model", tokenizer), commonsense_qa_rows(30)
    written_task(tmp_path, CHOICE_TASK, rows)
    metrics, samples = evaluated(folder, tmp_path, "letters", think=think)
    slow = Slow(folder, think)
    for row, sample in zip(rows[:4], samples, strict=False):
        for letter, response in zip("ABCDE", sample["resps"], strict=True):
            log_prob, greedy = slow.answer(choice_prompt(row), f" {letter}")
            assert response[0] == (pytest.approx(log_prob, abs=1e-4), greedy)
    questions = [Question(choice_prompt(row), row["answerKey"], list("ABCDE")) for row in rows]
    predicted = our_answers(folder, "commonsense_qa", questions, think)
    log_probs = [[response[0][0] for response in sample["resps"]] for sample in samples]
    assert ["ABCDE"[row.index(max(row))] for row in log_probs] == predicted
    right = sum(row["answerKey"] == answer for row, answer in zip(rows, predicted, strict=True))
    assert metrics["acc,none"] == right / len(rows) and 0 < right < len(rows)


@WAYS
def test_texts_are_those_of_our_own_evaluation(tokenizer: Callable, think, tmp_path: Path):
    """acc, and acc_bytes, which is acc_norm but for texts whose characters are not all of one byte."""
    folder, rows = saved(tmp_path / "model", tokenizer), commonsense_qa_rows(20)
    for i, row in enumerate(rows):
        row["choices"] = row["choices"] | {"text": ["trees", "in the water", f"pönd {i}", "a cliff of 3", "wood?"]}
    written_task(tmp_path, TEXT_TASK, rows)
    metrics, samples = evaluated(folder, tmp_path, "texts", think=think)
    prompts = [f"Question: {row['question']}\nAnswer:" for row in rows]
    texts = [row["choices"]["text"] for row in rows]
    asked = [
        Question(prompt, some["ABCDE".index(row["answerKey"])], some)
        for prompt, some, row in zip(prompts, texts, rows, strict=True)
    ]
    about = read_task(ROOT / "tasks/text/commonsense_qa_text.yaml")
    answers = [
        row["thought" if think else "no_thought"]
        for row in scores(load_trained(folder), read_tokenizer(folder), about, asked, batch_size=3)
    ]
    assert metrics["acc,none"] == sum(answer["correct"] for answer in answers) / len(rows)
    assert metrics["acc_bytes,none"] == sum(answer["correct_norm"] for answer in answers) / len(rows)
    assert 0 < metrics["acc,none"] < 1 and 0 < metrics["acc_bytes,none"] < 1
    for sample, answer, question in zip(samples, answers, asked, strict=True):
        sums = torch.tensor([response[0][0] for response in sample["resps"]])
        assert question.labels[int(sums.argmax())] == answer["predicted"]
        assert answer["prob"] == pytest.approx(sums.softmax(0)[question.labels.index(question.answer)].item(), rel=1e-3)


@WAYS
def test_numbers_are_those_of_the_slow_reference_and_of_our_own_evaluation(tokenizer: Callable, think, tmp_path: Path):
    """Every second question has the predicted number as its answer, so that the accuracy is not 0."""
    folder, rows = saved(tmp_path / "model", tokenizer), gsm8k_rows(20)
    prompts = [f"Q: {row['question']}\nA:" for row in rows]
    predicted = our_answers(folder, "gsm8k", [Question(prompt, "1", []) for prompt in prompts], think)
    for row, answer in list(zip(rows, predicted, strict=True))[::2]:
        row["answer"] = f"#### {answer or 1}"
    right = sum(row["answer"].split("#### ")[1] == answer for row, answer in zip(rows, predicted, strict=True))
    written_task(tmp_path, NUMBER_TASK, rows)
    metrics, samples = evaluated(folder, tmp_path, "numbers", think=think)
    slow = Slow(folder, think)
    for prompt, sample in zip(prompts[:3], samples, strict=False):
        # lm-eval is given the new tokens' own text: of a SentencePiece tokenizer, without the first space
        assert sample["resps"][0][0].lstrip() == slow.write(prompt, STOP, NEW_TOKENS).lstrip()
    found = [sample["filtered_resps"][0].lstrip("0") for sample in samples]
    assert [answer if answer != "[invalid]" else "" for answer in found] == [a.lstrip("0") for a in predicted]
    assert metrics["exact_match,first"] == right / len(rows) and right


def test_sampled_scores_and_texts_are_those_of_the_slow_reference(folder: Path):
    """So a draw depends on its text only, not on the batch or on the other requests; seeds and repeats draw anew."""
    model, slow = QuietStarLM(str(folder), batch_size=4, **SAMPLED), Slow(folder, True, Sampling(1.0, 3))
    scores = model.loglikelihood(requests(*pairs()), disable_tqdm=True)
    asked = requests(*((context, WARM) for context, _ in pairs()[::3]))
    texts = model.generate_until(asked, disable_tqdm=True)
    assert len(set(texts)) > 1
    assert QuietStarLM(str(folder), **SAMPLED | {"seed": 4}).generate_until(asked, disable_tqdm=True) != texts
    repeats = model.generate_until(asked[1:] + asked[1:], disable_tqdm=True)
    assert repeats[0] == texts[1] and repeats[0] != repeats[len(asked) - 1]
    for number, (context, answer) in list(enumerate(pairs()))[1::3]:
        slow.key = torch.tensor([harness.text_key(model.tok_encode(context))])
        assert scores[number][0] == pytest.approx(slow.answer(context, answer)[0], abs=1e-4)
        assert texts[number // 3] == slow.write(context, WARM["until"], 7, Sampling(1.0, 3))
    for other in (Slow(folder), Slow(folder, think=False)):  # greedy thoughts, or none, would have been noticed
        assert abs(scores[4][0] - other.answer(*pairs()[4])[0]) > 1e-3


@pytest.fixture(params=[(LLAMA, False), (GPT2, True)], ids=["llama", "gpt2, thoughts"])
def short(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[QuietStarLM, Slow]:
    """A model of 24 positions, past which GPT-2 fails."""
    base, think = request.param
    folder = saved(tmp_path, base=base, positions=24)
    return QuietStarLM(str(folder), think=think, batch_size=3), Slow(folder, think)


def test_a_whole_text_in_windows(short: tuple, monkeypatch: pytest.MonkeyPatch):
    """Few logits are in memory at once."""
    model, slow = short
    assert model.max_length == 24 - K - 2
    texts = ["The bridge is closed.", "", "Ana has 3 apples and buys 4 more. How many apples has she? " * 2, "To"]
    expected, room = [], model.max_length
    for text in texts:
        ids, total = slow.tokenizer(text)["input_ids"], 0.0
        for start in range(0, len(ids), room):
            predicted = ids[start : start + room]
            end = start + len(predicted)
            context = [slow.tokenizer.eos_token_id, *ids][max(0, end - room) : start + 1]
            total += slow.log_likelihood(context, predicted)[0]
        expected.append(total)
    asked = requests(*((t,) for t in texts))
    assert model.loglikelihood_rolling(asked, True) == pytest.approx(expected, abs=1e-3)
    sizes = rows_of(Head, "logits", monkeypatch)
    monkeypatch.setattr(harness, "HELD_LOGITS", 3 * 5 * model._model.vocabulary)
    assert model.loglikelihood_rolling(asked, True) == pytest.approx(expected, abs=1e-3)
    assert 0 < max(sizes) <= 3 * 5


def test_a_long_context_loses_its_beginning(short: tuple):
    """The thought after the last token still has positions."""
    model, slow = short
    context, answer = "Q: Ana has 3 apples and buys 4 more. How many apples has she?\nA:", " D in the"
    before, ids = model._encode_pair(context, answer)
    assert len(before) > 24
    score, _ = model.loglikelihood(requests((context, answer), ("Q:", " A")), True)
    kept = [*before, *ids][-model.max_length - 1 :][: -len(ids)]
    assert score[0] == pytest.approx(slow.log_likelihood(kept, ids)[0], abs=1e-4)
    short, options = "Q: What\nA:", {"max_gen_toks": 9}
    text, other = model.generate_until(requests((context, options), (short, options)), True)
    kept = before[-(model.max_length - 9) :]
    for _ in range(9):
        kept.append(slow.best(kept))
    assert text == slow.tokenizer.decode(kept[-9:], skip_special_tokens=True)
    assert other == slow.write(short, [], 9)


def test_texts_of_like_length_go_together_and_only_answers_think(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """The longest come first, to fail at once where memory is short. Five answers share the thoughts of a text.

    Each result is in lm-eval's cache when its batch is done, so that a killed run loses little.
    """
    model, kept = QuietStarLM(str(folder), batch_size=2), {}
    model.cache_hook.add_partial = lambda *about: kept.update({str(about[:2]): about[2]})
    scored = watch(model._model, "forward", monkeypatch)
    written = watch(prompts, "continue_texts", monkeypatch)
    contexts = [f"Q: Where{'?' * count}\nA:" for count in (9, 0, 40, 1, 41, 10)]
    own = sorted((len(model.tok_encode(context)) for context in contexts), reverse=True)
    asked = [(context, f" {letter}") for context in contexts for letter in "ABCDE"]
    scores = model.loglikelihood(requests(*asked), True)
    expected = {str(("loglikelihood", one)): score for one, score in zip(asked, scores, strict=True)}
    asked = [(context, {"max_gen_toks": 1}) for context in contexts]
    texts = model.generate_until(requests(*asked), True)
    assert kept == expected | {str(("generate_until", one)): text for one, text in zip(asked, texts, strict=True)}
    answer = len(model._encode_pair(contexts[0], " A")[1])
    assert [shape for shape, _ in scored] == [(2, length + answer - 1) for length in own[::2]]
    assert all(len(options["positions"]) == answer for _, options in scored)
    assert [shape for shape, _ in written] == [(2, length) for length in own[::2]]


def test_odd_requests(folder: Path):
    """An empty context stands for the end token; an empty answer is certain. A text ends before its stop string."""
    model, slow = QuietStarLM(str(folder), batch_size=10), Slow(folder)
    end, answer = slow.tokenizer.eos_token_id, slow.tokenizer("water")["input_ids"]
    asked = requests(("", "water"), ("Q: What is it?\nA:", ""), *pairs(2))
    scores = model.loglikelihood(asked, True)
    assert scores[0][0] == pytest.approx(slow.log_likelihood([end], answer)[0], abs=1e-4)
    assert scores[1] == (0.0, True)
    assert model.loglikelihood(asked[1:2], True) == [(0.0, True)]
    assert isinstance(model.generate_until(requests(("", {"max_gen_toks": 2})), True)[0], str)
    text = slow.write("Q:", [], 12)
    stop = text[len(text) // 2 :][:2]
    asked = {"until": ["never", stop], "max_gen_toks": 12}
    assert model.generate_until(requests(("Q:", asked)), True) == [text[: text.index(stop)]] != [text]


def test_what_greedy_decoding_writes_is_greedy(folder: Path):
    """A meta-token is never greedy, and the best other token is greedy even if a meta-token is likelier."""
    model = QuietStarLM(str(folder))
    ids = model.tok_encode("Q: What is it?\nA:")
    written = continue_texts(model._model.thinker, torch.tensor([ids]), max_new_tokens=3)[0, len(ids) :].tolist()
    other = [*written[:2], (written[2] + 1) % 20]
    scores = model._loglikelihood_tokens([(("", ""), ids, written), (("", ""), ids, other)], disable_tqdm=True)
    assert [greedy for _, greedy in scores] == [True, False]
    assert scores[0][0] > scores[1][0]
    best, head = written[0], model._model.base.lm_head.weight.data
    head[START] = 50 * head[best]
    scores = model._loglikelihood_tokens([(("", ""), ids, [best]), (("", ""), ids, [START])], disable_tqdm=True)
    assert [greedy for _, greedy in scores] == [True, False] and scores[0][0] < scores[1][0]


def test_special_tokens_around_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One stands before a text, none after it, and none is left in what is written."""
    tokenizer = deepcopy(byte_tokenizer())
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    marks = [("<s>", tokenizer.bos_token_id), ("<|end|>", tokenizer.eos_token_id)]
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A <|end|>", special_tokens=marks)
    folder = saved(tmp_path, lambda: tokenizer)
    model, slow = QuietStarLM(str(folder)), Slow(folder)
    mark, plain = model.tokenizer.bos_token_id, model.tokenizer("water", add_special_tokens=False)["input_ids"]
    assert model.tok_encode("water") == model.tok_encode("<s>water") == [mark, *plain]
    assert model.tok_encode("water", add_special_tokens=False) == plain
    expected = slow.log_likelihood([mark], plain)[0]
    assert model.loglikelihood_rolling(requests(("water",)), True)[0] == pytest.approx(expected, abs=1e-4)
    new = torch.tensor([[mark, *plain, model.tokenizer.pad_token_id, *plain, model.eot_token_id, *plain]])
    monkeypatch.setattr(prompts, "continue_texts", lambda _, ids, *__, **___: torch.cat([ids, new], 1))
    assert model.generate_until(requests(("Q:", {})), True) == ["waterwater"]


def test_generation_arguments_are_honoured(folder: Path):
    model, greedy = QuietStarLM(str(folder), seed=7), Sampling(0.0, 7)

    def read(**arguments: object) -> tuple:
        return tuple(model._continuation(arguments))

    assert read() == ((), 256, greedy)  # lm-eval's own default
    assert read(until="\n", max_gen_toks=3) == (("\n",), 3, greedy)
    assert read(until=["\n", ""], max_new_tokens=4) == (("\n",), 4, greedy)
    assert read(do_sample=False, temperature=0.7)[2] == greedy
    assert read(temperature=0.7)[2] == Sampling(0.7, 7)
    assert read(do_sample=True)[2] == Sampling(1.0, 7)
    assert read(do_sample=True, temperature=0.9, top_p=0.5, top_k=4)[2] == Sampling(0.9, 7, 4, 0.5)


BAD_GENERATION = [
    ({"until": [], "max_tokens": 5, "best_of": 2}, "max_tokens, best_of"),
    ({"temperature": -1.0}, "temperature is -1.0"),
    ({"max_gen_toks": 0}, "max_gen_toks is 0"),
    ({"max_gen_toks": 5000}, "max_gen_toks is 5000"),
]
BAD_ARGUMENTS = [
    ({"think": "yes"}, "think is 'yes'"),
    ({"thought_temperature": float("nan")}, "temperature is nan"),
    ({"seed": 10**20}, "seed is 100000000000000000000 and batch_size 1: they must be 0 to 4294967295 and"),
    ({"seed": float("inf")}, "must be numbers: .*infinity"),
    ({"batch_size": 0}, "batch_size 0"),
    ({"device": "tpu"}, "device is tpu"),
    ({"dtype": "float16", "max_batch_size": 4}, "dtype, max_batch_size"),
]


def test_invalid_arguments_and_folders_are_refused(folder: Path, tmp_path: Path):
    model = QuietStarLM(str(folder))
    for arguments, message in BAD_GENERATION:
        with pytest.raises(UserError, match=message):
            model.generate_until(requests(("Q:", arguments)), True)
    for arguments, message in BAD_ARGUMENTS:
        with pytest.raises(UserError, match=message):
            QuietStarLM(str(folder), **arguments)
    model._model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="tokenizer"):
        QuietStarLM(str(tmp_path / "model"))


def test_without_a_gpu_cuda_means_the_cpu(monkeypatch: pytest.MonkeyPatch):
    """lm-eval's command line asks for cuda:0 by default."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert usable_device("cuda:0") == usable_device("auto") == usable_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [usable_device(d) for d in ("auto", "cuda:1", "cpu")] == ["cuda", "cuda:1", "cpu"]
    with pytest.raises(UserError, match="cuda:2"):
        usable_device("cuda:2")


@pytest.mark.parametrize("method", ["pause", "no_thought"])
def test_other_methods(method: str, tmp_path: Path):
    folder, prompt = saved(tmp_path, method=method), "Q: What is it?\nA:"
    slow, model = Slow(folder), QuietStarLM(str(folder), batch_size=4)
    scores = model.loglikelihood(requests(*pairs(2)), True)
    for (context, answer), (log_prob, _) in zip(pairs(2), scores, strict=True):
        assert log_prob == pytest.approx(slow.answer(context, answer)[0], abs=1e-4)
    assert model.generate_until(requests((prompt, {"max_gen_toks": 5})), True) == [slow.write(prompt, [], 5)]


@pytest.mark.slow
def test_the_command(folder: Path, tmp_path: Path):
    rows = commonsense_qa_rows(10)
    written_task(tmp_path, CHOICE_TASK, rows)
    options = f"--model quiet_star --model_args pretrained={folder},think=true --tasks letters --batch_size 4"
    line = [sys.executable, "-m", "pipeline.evaluation.harness", *options.split(), "--include_path", str(tmp_path)]
    environment = {**os.environ, "HF_DATASETS_OFFLINE": "1"}
    told = subprocess.check_output(line, cwd=ROOT, env=environment, text=True, timeout=300)
    row = next(line for line in told.splitlines() if line.startswith("|letters"))
    assert float(row.split("|")[7]) == evaluated(folder, tmp_path, "letters", think=True)[0]["acc,none"]


@pytest.mark.slow
def test_lm_evals_own_command_reads_a_release(folder: Path, tmp_path: Path):
    """As any model of transformers, without this project: the same accuracy."""
    written_task(tmp_path, CHOICE_TASK, commonsense_qa_rows(10))
    shutil.copytree(folder, tmp_path / "release")
    add_code(tmp_path / "release")
    options = f"--model hf --model_args pretrained={tmp_path}/release,trust_remote_code=True,dtype=float32 --device cpu"
    line = [sys.executable, "-m", "lm_eval", "run", *options.split(), "--tasks", "letters", "--batch_size", "4"]
    environment = {**os.environ, "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    told = subprocess.check_output(
        [*line, "--include_path", str(tmp_path)], cwd=tmp_path, env=environment, text=True, timeout=300
    )
    row = next(line for line in told.splitlines() if line.startswith("|letters"))
    assert float(row.split("|")[7]) == evaluated(folder, tmp_path, "letters", think=True)[0]["acc,none"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--tasks letters", "quiet_star needs the folder of a trained model"),
        ("--model_args pretrained=5 --tasks letters", "5 holds no trained model"),
        ("--tasks letters --log_samples", "Specify --output_path if providing --log_samples or --predict_only"),
        ("--model_args pretrained=MODEL --tasks lost", "a task's data set cannot be read: "),
        ("--model_args pretrained=MODEL --tasks letters --apply_chat_template", "quiet_star has no chat template: "),
        ("--model_args pretrained=nowhere --tasks riddles", "Tasks not found: riddles"),
    ],
)
def test_mistakes_on_the_command_line_are_told_in_one_line(options: str, told: str, folder, tmp_path, monkeypatch):
    """lm-eval's own tasks are left out: it takes 9 seconds to list them."""
    for module in ("lm_eval.tasks", "lm_eval.evaluator"):
        monkeypatch.setattr(f"{module}.TaskManager", partial(TaskManager, include_defaults=False))
    written_task(tmp_path, CHOICE_TASK, commonsense_qa_rows(1))
    (tmp_path / "lost.yaml").write_text(yaml.safe_dump(CHOICE_TASK | {"task": "lost", "dataset_path": "nobody/no"}))
    options = f"{options.replace('MODEL', str(folder))} --include_path {tmp_path}"
    monkeypatch.setattr(sys, "argv", ["harness", "--model", "quiet_star", *options.split()])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        harness.run(harness.main)
    assert ended.value.code.startswith(f"error: {told}") and "\n" not in ended.value.code


def test_a_missing_lm_eval_is_told_and_what_is_broken_is_not_hidden(monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(harness, "cli_evaluate", lambda: int("a bug, not a user's mistake"))
        with pytest.raises(ValueError):
            harness.main()
        patch.setitem(sys.modules, "lm_eval.api.registry", None)
        with pytest.raises(ModuleNotFoundError, match=r"lm_eval\.api\.registry"):
            runpy.run_path(harness.__file__)
    for name in ("lm_eval.__main__", "lm_eval"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [])  # nothing more can be imported
    main = runpy.run_path(harness.__file__)["main"]  # the import works
    with pytest.raises(UserError, match="lm-eval is not installed: pip install --constraint constraints.txt lm-eval"):
        main()


def test_nothing_else_needs_lm_eval():
    files = [path for part in ("pipeline", "stages") for path in (ROOT / part).rglob("*.py")]
    assert [path.name for path in files if "lm_eval" in path.read_text()] == ["harness.py"]
