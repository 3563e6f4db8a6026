"""Direct, zero-shot evaluation: the answer's probability among legal answer tokens, and plain accuracy.

A thought does not change what later positions see, so thoughts at the answer's own positions give exactly the figures
that thoughts at every position give.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from pipeline.errors import UserError
from pipeline.evaluation.tasks import Question
from pipeline.files import batches
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.sampler import Sampling


@dataclass(frozen=True)
class Encoded:
    """A question as token ids. ``legal``: for each answer token the ids that an answer could have there, its own too.

    An answer token that is not of a legal kind (a sign, a lone space) has none: it is given, not asked for.
    ``choices``: the last token of each choice's answer, in the order of the question's choices.
    """

    index: int
    question: Question
    prompt_ids: list[int]
    answer_ids: list[int]
    legal: list[list[int]]
    choices: list[int]


def encode(index: int, question: Question, tokenizer: PreTrainedTokenizerBase, digits: list[int]) -> Encoded:
    """The question in tokens; ``digits`` are the tokenizer's number tokens (`digit_tokens`)."""
    prompt, answer = _continued(tokenizer, question.prompt, question.answer)
    if not question.choices:
        known = set(digits)
        legal = [digits if token in known else [] for token in answer]
        if not any(legal):
            raise UserError(f"this tokenizer has no number token in the answer {question.answer!r}")
        return Encoded(index, question, prompt, answer, legal, [])
    ids = [_continued(tokenizer, question.prompt, choice)[1] for choice in question.choices]
    if len({tuple(choice[:-1]) for choice in ids}) > 1 or len({choice[-1] for choice in ids}) < len(ids):
        raise UserError(
            f"this tokenizer does not tell the choices {', '.join(question.choices)} apart by one token: "
            "a larger tokenize.vocabulary may"
        )
    last = [choice[-1] for choice in ids]
    return Encoded(index, question, prompt, answer, [[]] * (len(answer) - 1) + [last], last)


def _continued(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """The ids of the prompt and those that " answer" adds to it."""
    before = tokenizer(prompt)["input_ids"]
    if before and before[-1] == tokenizer.eos_token_id:
        before = before[:-1]
    whole = tokenizer(f"{prompt} {answer}")["input_ids"]
    if whole and whole[-1] == tokenizer.eos_token_id:
        whole = whole[:-1]
    if whole[: len(before)] != before:
        return before, tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
    return before, whole[len(before) :]


def digit_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of all tokens that are nothing but digits, with or without a space before them."""
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    texts = [tokenizer.convert_tokens_to_string([piece]).strip() if piece else "" for piece in pieces]
    return [i for i, text in enumerate(texts) if text.isascii() and text.isdigit()]


@dataclass(frozen=True)
class Scored:
    """What a model makes of a question: the right answer's restricted probability, and the answer it gives itself."""

    prob: float
    predicted: str

    def correct(self, question: Question) -> bool:
        return self.predicted == question.answer


def score(
    model: QuietStarForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[Encoded],
    batch_size: int,
    sampling: Sampling,
    name: str,
) -> Iterator[dict]:
    """One row a question: scores without and with thoughts, from the same pass, and the thought before the answer.

    Questions go through in the order of their length, and come out in their own.
    """
    ordered = sorted(questions, key=lambda q: len(q.prompt_ids) + len(q.answer_ids))
    rows = []
    with tqdm(total=len(ordered), desc=name, unit=" questions", mininterval=2) as progress:
        for batch in batches(ordered, batch_size):
            rows.extend(_score_batch(model, tokenizer, batch, sampling))
            progress.update(len(batch))
    return iter(sorted(rows, key=lambda row: row["index"]))


@torch.no_grad()
def _score_batch(
    model: QuietStarForCausalLM, tokenizer: PreTrainedTokenizerBase, batch: list[Encoded], sampling: Sampling
) -> Iterator[dict]:
    ids, mask = _left_padded([q.prompt_ids + q.answer_ids for q in batch], tokenizer.pad_token_id, model.device)
    asked = max(len(q.answer_ids) for q in batch) + 1  # the answer's positions, and what comes after it
    positions = torch.arange(ids.shape[1] - asked, ids.shape[1], device=model.device)
    keys = torch.tensor([q.index for q in batch], device=model.device)
    output = model(ids, mask, positions=positions, sampling=sampling, text_keys=keys)
    thoughts = output.thoughts.ids[:, 0].cpu()
    for q, base, mixed, thought in zip(batch, output.base_logits.cpu(), output.logits.cpu(), thoughts, strict=True):
        own = slice(-len(q.answer_ids) - 1, None)
        yield {
            "index": q.index,
            "no_thought": read_answer(q, base[own], tokenizer),
            "thought": read_answer(q, mixed[own], tokenizer),
            "thought_text": tokenizer.decode(thought[own][0]),
        }


def _left_padded(rows: list[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    ids = [[pad] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def read_answer(question: Encoded, logits: Tensor, tokenizer: PreTrainedTokenizerBase) -> Scored:
    """The scores from the logits (answer tokens + 1, V) that predict the answer's tokens and what follows it.

    The probability is the product, over the answer's tokens, of the probability among the legal ones (paper). With
    choices the predicted answer is the likeliest choice; a number is what greedy decoding writes among number tokens,
    up to the first token that is not the right answer's. So neither score counts how likely the model is to answer
    at all instead of writing something else.
    """
    prob = 1.0
    for step, legal in enumerate(question.legal):
        if legal:
            among = logits[step, legal].double().softmax(-1)
            prob *= among[legal.index(question.answer_ids[step])].item()
    if question.choices:
        best = int(logits[len(question.legal) - 1, question.choices].argmax())
        return Scored(prob, question.question.choices[best])
    return Scored(prob, _greedy_number(question, logits, tokenizer))


def _greedy_number(question: Encoded, logits: Tensor, tokenizer: PreTrainedTokenizerBase) -> str:
    written = []
    for step, (legal, right) in enumerate(zip(question.legal, question.answer_ids, strict=True)):
        written.append(legal[int(logits[step, legal].argmax())] if legal else right)
        if written[-1] != right:
            break
    else:
        last = int(logits[-1].argmax())
        following = tokenizer.decode([*written, last]).removeprefix(
            tokenizer.decode(written)
        )  # alone it may lose its space
        if following[:1].isdigit():  # a longer number than the answer
            written.append(last)
    return tokenizer.decode(written).strip()
