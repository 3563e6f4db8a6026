"""Tiny models, tokenizers and questions for the tests of chain of thought, and the protocol once more, slowly."""

import string
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from omegaconf import OmegaConf
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pipeline.data.tasks import spec
from pipeline.data.tasks.questions import Question
from pipeline.data.tokens.tokenizer import train_tokenizer
from pipeline.evaluation.chain_of_thought import samples
from pipeline.evaluation.prompts import AskedModel, before_stop
from pipeline.params import ChainOfThought
from pipeline.resume import Scratch
from pipeline.thought.generation import SAMPLES_APART, TEXT_STEP
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.sampler import Sampling, uniforms
from tests.local_hub import texts, word_tokenizer
from tests.thought.tiny import LLAMA, quiet_star

HOW = spec.ChainOfThought(prompt="{{ q }}", stop=["e", "7+"], answer_prompt="\nTherefore, the answer is")
PARAMS = {"seed": 3, "questions": None, "samples": 4, "temperature": 0.9, "thought_temperature": 0.0, "new_tokens": 12}
PARAMS |= {"answer_tokens": 6, "batch_size": 3, "device": "cpu"}
Model, Tokenizing, Questions = QuietStarForCausalLM, PreTrainedTokenizerBase, list[Question]
Predict, GREEDY = Callable[[list[int]], Tensor], Sampling(0.0)


def params(**changes: object) -> ChainOfThought:
    return ChainOfThought(**PARAMS | changes)


def byte_tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(texts(30), 300)


TOKENIZERS = {"words": word_tokenizer, "bytes": byte_tokenizer}


def tiny_model(tokenizer: PreTrainedTokenizerBase, base: dict = LLAMA, **settings: object) -> QuietStarForCausalLM:
    sizes = {"vocab_size": len(tokenizer)} | ({"max_position_embeddings": 512} if base is LLAMA else {})
    settings = {"start_token_id": None, "end_token_id": None} | settings
    return quiet_star({**base, **sizes}, **settings).eval()


def numbers(count: int) -> list[Question]:
    """Questions of different lengths, not sorted by length."""
    asked = [f"What is {i} and {'9' * (i * 7 % 5)}{i}?" for i in range(count)]
    return [Question(f"Q: {q}\nA:", str(i), [], f"Q: {q}\nA: Add.") for i, q in enumerate(asked)]


def choices(count: int) -> list[Question]:
    """Choices with so many labels that a model which writes anything writes one now and then."""
    labels = list(string.ascii_letters)
    return [Question(q.prompt, labels[i], labels, q.reasoning_prompt) for i, q in enumerate(numbers(count))]


def ask(model: Model, tokenizer: Tokenizing, questions: Questions, path: Path, how=HOW, **changes) -> list[dict]:
    """Ask the questions with `PARAMS` and ``changes``; the scratch is at ``path``."""
    about, scratch = params(**changes), Scratch(path)
    asked = AskedModel(model, tokenizer, Sampling(about.thought_temperature, about.seed), about.batch_size)
    return [scratch.rows[place] for place in samples.ask(asked, about, "t", how, questions, scratch)]


@torch.no_grad()
def slow_samples(model: Model, tokenizer: Tokenizing, questions: Questions, how=HOW, **changes) -> list[dict]:
    """What `ask` returns: one question, way and sample at a time, and each token from a pass over the whole text."""
    about, rows = params(**changes), []
    sampling, thoughts = Sampling(about.temperature, about.seed), Sampling(about.thought_temperature, about.seed)
    for index, question in enumerate(questions):
        for way in ("thought", "no_thought"):
            row = {"task": "t", "index": index, "way": way, "group": question.group or str(index)}
            row |= {"answer": question.answer, "texts": [], "votes": []}
            for sample in range(about.samples):
                key = torch.tensor([index + sample * SAMPLES_APART])

                def predict(ids: list[int], way: str = way, key: Tensor = key) -> Tensor:
                    last = torch.tensor([len(ids) - 1])
                    output = model(torch.tensor([ids]), positions=last, sampling=thoughts, text_keys=key)
                    return (output.logits if way == "thought" else output.base_logits)[0, 0]

                write = partial(slow_text, predict, tokenizer, how.stop)
                row["texts"].append(write(question.reasoning_prompt, about.new_tokens, sampling, key))
                asked = question.reasoning_prompt + row["texts"][-1] + how.answer_prompt
                row["votes"].append(samples.vote_in(write(asked, about.answer_tokens), question.labels))
            rows.append(row)
    return rows


def slow_text(predict: Predict, tokenizer, stop: list[str], prompt: str, count: int, sampling=GREEDY, key=None) -> str:
    """At most ``count`` tokens after the prompt, each drawn from the logits (V,) that ``predict`` gives."""
    ids, new = tokenizer(prompt)["input_ids"], []
    while len(new) < count and not any(string in added(tokenizer, ids, new) for string in stop):
        logits = predict(ids + new)
        if sampling.temperature:
            running = (logits / sampling.temperature).softmax(-1).cumsum(-1)
            place = torch.tensor([[len(ids + new) - 1]])
            new.append(int((running <= uniforms(sampling.seed, key, 1, place, TEXT_STEP).item()).sum()))
        else:
            new.append(int(logits.argmax()))
        if new[-1] == tokenizer.eos_token_id:
            new.pop()
            break
    return before_stop(added(tokenizer, ids, new), stop)


def added(tokenizer: PreTrainedTokenizerBase, ids: list[int], new: list[int]) -> str:
    before = tokenizer.decode(ids, skip_special_tokens=True)
    return tokenizer.decode(ids + new, skip_special_tokens=True)[len(before) :]


def trained_folder(folder: Path, **settings: object) -> Path:
    tokenizer = word_tokenizer()
    tiny_model(tokenizer, **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tasks_folder(folder: Path, count: int = 7) -> Path:
    """Two tasks that ask for reasoning, and one that does not."""
    folder.mkdir()
    kinds = {"a": ("number", numbers(count)), "b": ("choice", choices(count)), "c": ("number", [])}
    for name, (kind, questions) in kinds.items():
        task = {"title": name, "source": "none", "version": 1, "data": {"path": "p", "split": "s"}, "kind": kind}
        task |= {"prompt": "Q: {{ q }}", "answer": "a"} | ({"choices": "x"} if kind == "choice" else {})
        if questions:
            task["chain_of_thought"] = asdict(HOW)
        OmegaConf.save(OmegaConf.create(task), folder / f"{name}.yaml")
        pd.DataFrame(vars(q) for q in questions or numbers(2)).to_parquet(folder / f"{name}.parquet")
    return folder
