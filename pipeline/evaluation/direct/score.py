"""Direct, zero-shot evaluation: the right answer's probability among legal answer tokens, and the answer given.

A thought does not change what later positions see, so thoughts at the answer's own positions give exactly the figures
that thoughts at every position give.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from pipeline.data.tasks.questions import number_in
from pipeline.data.tasks.spec import NUMBER, Task
from pipeline.errors import UserError
from pipeline.evaluation.direct.encoding import Encoded, Encodings
from pipeline.evaluation.prompts import NOT_FINITE, before_stop, continued, left_padded, thought_room, ways
from pipeline.models.trained import check_room
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.sampler import Sampling

ANSWER_TOKENS = 12  # of a number that is written out; as the paper reads numbers after a chain of thought


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


def score(asked: Asked, questions: Encodings, task: Task, name: str, done: int = 0) -> Iterator[list[dict]]:
    """A batch of questions' rows at a time, the shortest first (`Encodings.order`), without the first ``done`` rows.

    A row has index, thought_text (the thought before the answer) and, by way, predicted, correct and prob. A choice is
    answered by the likeliest label, a number by greedy decoding: the first number that is written. A batch of which
    some rows are missing is asked as a whole, so that rounding, which hangs on its padding, is that of a whole run.
    """
    needed = questions.longest + (ANSWER_TOKENS if task.kind == NUMBER else 0)
    check_room(asked.model, needed + thought_room(asked.model), f"a question of {name}")
    with tqdm(total=len(questions), desc=name, unit=" questions", mininterval=2) as progress:
        for start in range(0, len(questions), asked.batch_size):
            batch = questions.order[start : start + asked.batch_size]
            if start + len(batch) > done:
                yield list(_score_batch(asked, [questions[i] for i in batch], task))[max(0, done - start) :]
            progress.update(len(batch))


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
            predicted = written[way][i] if written else _likeliest(q, own)
            right = predicted == q.question.answer
            row[way] = {"predicted": predicted, "correct": right, "prob": probability(q, own)}
        yield row


def _keys(batch: Sequence[Encoded], model: QuietStarForCausalLM) -> Tensor:
    return torch.tensor([q.index for q in batch], device=model.device)


def probability(question: Encoded, logits: Tensor) -> float:
    """The product, over the answer's tokens, of the probability among the legal ones (paper, section 5).

    ``logits`` (answer tokens, V) predict the answer's tokens. Raises UserError where the probability is no number.
    """
    prob = 1.0
    for step, (legal, right) in enumerate(zip(question.legal, question.answer_ids, strict=True)):
        if legal:
            prob *= logits[step, legal].double().softmax(-1)[legal.index(right)].item()
    if not math.isfinite(prob):
        raise UserError(NOT_FINITE)
    return prob


def _likeliest(question: Encoded, logits: Tensor) -> str:
    return question.question.labels[int(logits[-1, question.legal[-1]].argmax())]


def _write(asked: Asked, batch: list[Encoded], task: Task, way: str) -> list[str]:
    """The first number that each question's greedy continuation holds; "" where it holds none."""
    model, tokenizer = asked.model, asked.tokenizer
    ids, mask = asked.padded([q.prompt_ids for q in batch])
    whole = continued(
        model,
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
