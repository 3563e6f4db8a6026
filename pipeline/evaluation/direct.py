"""Direct, zero-shot evaluation: the right answer's probability among legal answer tokens, and the answer given.

A thought does not change what later positions see, so thoughts at the answer's own positions give exactly the figures
that thoughts at every position give.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from pipeline.errors import UserError
from pipeline.files import batches
from pipeline.prompts import before_stop, left_padded, prompt_ids, ways
from pipeline.tasks.questions import Question, number_in
from pipeline.tasks.spec import NUMBER, Task
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.sampler import Sampling
from pipeline.trained import check_room

ANSWER_TOKENS = 12  # of a number that is written out; as the paper reads numbers after a chain of thought


@dataclass(frozen=True)
class Encoded:
    """A question as token ids. ``legal``: for each answer token the ids that an answer could have there, its own too.

    An answer token that is not of a legal kind (a sign, a lone space) has none: it is given, not asked for.
    """

    index: int
    question: Question
    prompt_ids: list[int]
    answer_ids: list[int]
    legal: list[list[int]]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)


@dataclass(frozen=True)
class Scored:
    """What a model makes of a question: the right answer's restricted probability, and the answer that it gives."""

    prob: float
    predicted: str


@dataclass(frozen=True)
class Asked:
    """A model, its tokenizer and how thoughts are drawn; ``batch_size`` questions at a time."""

    model: QuietStarForCausalLM
    tokenizer: PreTrainedTokenizerBase
    sampling: Sampling
    batch_size: int

    @property
    def ways(self) -> tuple[str, ...]:
        return ways(self.model)

    def padded(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        return left_padded(rows, self.tokenizer.pad_token_id, self.model.device)


def encode_all(task: Task, questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    """The questions in tokens. Raises UserError where the tokenizer cannot tell answers apart."""
    numbers = number_tokens(tokenizer, task.legal) if task.kind == NUMBER else []
    return [encode(index, question, tokenizer, numbers) for index, question in enumerate(questions)]


def encode(index: int, question: Question, tokenizer: PreTrainedTokenizerBase, numbers: list[int]) -> Encoded:
    """The question in tokens; ``numbers`` are the tokens that a number may be made of (`number_tokens`)."""
    prompt, answer = _continued(tokenizer, question.prompt, question.answer)
    if not question.labels:
        known = set(numbers)
        legal = [numbers if token in known else [] for token in answer]
        if not any(legal):
            raise UserError(f"this tokenizer has no number token in the answer {question.answer!r}")
        return Encoded(index, question, prompt, answer, legal)
    ids = [_continued(tokenizer, question.prompt, label)[1] for label in question.labels]
    if len({tuple(label[:-1]) for label in ids}) > 1 or len({label[-1] for label in ids}) < len(ids):
        raise UserError(
            f"this tokenizer does not tell the choices {', '.join(question.labels)} apart by one token: "
            "a larger tokenize.vocabulary may"
        )
    return Encoded(index, question, prompt, answer, [[]] * (len(answer) - 1) + [[label[-1] for label in ids]])


def _continued(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """The ids of the prompt and those that " answer" adds to it."""
    before, whole = prompt_ids(tokenizer, prompt), prompt_ids(tokenizer, f"{prompt} {answer}")
    if whole[: len(before)] != before:
        return before, tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
    return before, whole[len(before) :]


def number_tokens(tokenizer: PreTrainedTokenizerBase, legal: str) -> list[int]:
    """The ids of all tokens that are nothing but ``legal`` characters, with or without a space before them."""
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    texts = [tokenizer.convert_tokens_to_string([piece]).strip() if piece else "" for piece in pieces]
    return [i for i, text in enumerate(texts) if text and set(text) <= set(legal)]


def score(asked: Asked, questions: Sequence[Encoded], task: Task, name: str) -> list[dict]:
    """Each question's scores by way, and ``thought_text``, the thought before the answer; in the questions' order.

    A choice is answered by the likeliest label, a number by greedy decoding: the first number that is written.
    """
    needed = max(map(len, questions)) + (ANSWER_TOKENS if task.kind == NUMBER else 0)
    check_room(asked.model, needed + asked.model.config.thought_tokens + 2, f"a question of {name}")
    rows: list[dict] = []
    with tqdm(total=len(questions), desc=name, unit=" questions", mininterval=2) as progress:
        for batch in batches(sorted(questions, key=len), asked.batch_size):
            rows.extend(_score_batch(asked, batch, task))
            progress.update(len(batch))
    return sorted(rows, key=lambda row: row["index"])


@torch.no_grad()
def _score_batch(asked: Asked, batch: list[Encoded], task: Task) -> Iterator[dict]:
    model, tokenizer = asked.model, asked.tokenizer
    ids, mask = asked.padded([q.prompt_ids + q.answer_ids for q in batch])
    answers = max(len(q.answer_ids) for q in batch)
    positions = torch.arange(ids.shape[1] - answers - 1, ids.shape[1] - 1, device=model.device)
    output = model(ids, mask, positions=positions, sampling=asked.sampling, text_keys=_keys(batch, model))
    thoughts = None if output.thoughts is None else output.thoughts.ids[:, 0].cpu()
    logits = {"thought": output.logits.cpu(), "no_thought": output.base_logits.cpu()}
    written = {way: _write(asked, batch, task, way) for way in asked.ways if task.kind == NUMBER}
    for i, q in enumerate(batch):
        row = {"index": q.index, "thought_text": ""}
        if thoughts is not None:
            row["thought_text"] = tokenizer.decode(thoughts[i, -len(q.answer_ids)])
        for way in asked.ways:
            own = logits[way][i, -len(q.answer_ids) :]
            row[way] = Scored(probability(q, own), written[way][i] if written else _likeliest(q, own))
        yield row


def _keys(batch: Sequence[Encoded], model: QuietStarForCausalLM) -> Tensor:
    return torch.tensor([q.index for q in batch], device=model.device)


def probability(question: Encoded, logits: Tensor) -> float:
    """The product, over the answer's tokens, of the probability among the legal ones (paper, section 5).

    ``logits`` (answer tokens, V) predict the answer's tokens.
    """
    prob = 1.0
    for step, (legal, right) in enumerate(zip(question.legal, question.answer_ids, strict=True)):
        if legal:
            prob *= logits[step, legal].double().softmax(-1)[legal.index(right)].item()
    return prob


def _likeliest(question: Encoded, logits: Tensor) -> str:
    return question.question.labels[int(logits[-1, question.legal[-1]].argmax())]


def _write(asked: Asked, batch: list[Encoded], task: Task, way: str) -> list[str]:
    """The first number that each question's greedy continuation holds; "" where it holds none."""
    model, tokenizer = asked.model, asked.tokenizer
    ids, mask = asked.padded([q.prompt_ids for q in batch])
    whole = model.generate(
        ids,
        mask,
        max_new_tokens=ANSWER_TOKENS,
        thought_sampling=asked.sampling,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        stop_strings=task.stop,
        decode=tokenizer.decode,
        text_keys=_keys(batch, model),
        think=way == "thought",
    )
    return [_number(tokenizer, row, task.stop) for row in whole[:, ids.shape[1] :].tolist()]


def _number(tokenizer: PreTrainedTokenizerBase, ids: list[int], stop: Sequence[str]) -> str:
    return number_in(before_stop(tokenizer.decode(ids, skip_special_tokens=True), stop)) or ""
