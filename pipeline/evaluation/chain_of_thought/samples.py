"""Reason, then answer: sampled continuations of a question's reasoning prompt, and the vote that each ends in."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from tempfile import TemporaryFile

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from pipeline.data.tasks import spec
from pipeline.data.tasks.questions import Question
from pipeline.errors import UserError
from pipeline.evaluation.chain_of_thought.reading import vote_in
from pipeline.evaluation.prompts import before_end, before_stop, continued, left_padded, prompt_ids, thought_room, ways
from pipeline.files import batches
from pipeline.models.trained import check_room, known_positions
from pipeline.params import ChainOfThought
from pipeline.resume import KeptRows, Scratch
from pipeline.thought.generation import GREEDY, SAMPLES_APART
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.sampler import Sampling


@dataclass(frozen=True)
class Asked:
    """A question of a task, by its index, and its reasoning prompt in tokens."""

    index: int
    question: Question
    prompt: list[int]


@dataclass(frozen=True)
class Prompts:
    """How a task asks for reasoning, and for how many tokens before an answer the model has ``room``."""

    task: str
    how: spec.ChainOfThought
    room: int


class Asker:
    """A model that is asked for reasoning, then for its answer.

    A draw depends on the seed and on its question, sample and place, so the votes are the same at any batch size but
    for rounding: in float32 a batch's shape moves probabilities by about 1e-7 of themselves, so that a draw can fall on
    the other side of a bound, once in some million tokens. None of 53,000 did between batches of 1 and 8 questions.
    """

    def __init__(self, params: ChainOfThought, model: QuietStarForCausalLM, tokenizer: PreTrainedTokenizerBase):
        self.params, self._model, self._tokenizer = params, model, tokenizer

    def ask(self, task: str, how: spec.ChainOfThought, questions: Iterable[Question], scratch: Scratch) -> list[int]:
        """Where ``scratch`` then has a row a question and way, in that order: task, index, way, the right answer, and
        each sample's reasoning (texts) and votes.

        Questions of which ``scratch`` has rows are not asked again, batch by batch: a batch of which some are missing
        is asked as a whole, so that rounding is that of a run that was never killed.
        Raises UserError for a prompt that is empty or leaves no room for what is to be written, and where the model's
        predictions are not finite.
        """
        with TemporaryFile(dir=scratch.folder) as file:
            asked = KeptRows(file)
            asked.extend(self._encoded(task, questions))
            self._ask_missing(task, how, asked, scratch)
            done = _places(scratch, task)
            return [done[index, way] for index in range(len(asked)) for way in ways(self._model)]

    def _ask_missing(self, task: str, how: spec.ChainOfThought, asked: KeptRows, scratch: Scratch) -> None:
        lengths, done = [len(row["prompt"]) for row in asked], _places(scratch, task)
        prompts = self._prompts(task, how, max(lengths))
        with tqdm(total=len(asked) * len(ways(self._model)), desc=task, unit=" questions", mininterval=2) as progress:
            for batch in batches(sorted(range(len(asked)), key=lengths.__getitem__), self.params.batch_size):
                for way in ways(self._model):
                    if not all((index, way) in done for index in batch):
                        scratch.add(self._ask_batch(prompts, [_asked(asked, index) for index in batch], way))
                    progress.update(len(batch))

    def _encoded(self, task: str, questions: Iterable[Question]) -> Iterator[dict]:
        for index, question in enumerate(questions):
            ids = self._ids(question.reasoning_prompt)
            if not ids:
                raise UserError(f"task {task}, question {index}: its chain-of-thought prompt is empty")
            yield {"question": vars(question), "prompt": ids}

    def _prompts(self, task: str, how: spec.ChainOfThought, longest: int) -> Prompts:
        after = self.params.answer_tokens + thought_room(self._model)
        needed = longest + self.params.new_tokens + len(self._ids(how.answer_prompt)) + after
        check_room(self._model, needed, f"a question of {task} with its reasoning and its answer")
        return Prompts(task, how, (known_positions(self._model) or sys.maxsize) - after)

    def _ids(self, text: str) -> list[int]:
        return prompt_ids(self._tokenizer, text)

    def _ask_batch(self, prompts: Prompts, batch: Sequence[Asked], way: str) -> list[dict]:
        samples = self.params.samples
        texts = self._reason(prompts, batch, way)
        votes = self._answer(prompts, batch, texts, way)
        return [
            {"task": prompts.task, "index": q.index, "way": way, "answer": q.question.answer}
            | {name: values[i * samples : (i + 1) * samples] for name, values in (("texts", texts), ("votes", votes))}
            for i, q in enumerate(batch)
        ]

    def _reason(self, prompts: Prompts, batch: Sequence[Asked], way: str) -> list[str]:
        """Every question's samples of reasoning, one question after the other."""
        params, keys = self.params, torch.tensor([q.index for q in batch])
        ids = [q.prompt for q in batch]
        sampling = Sampling(params.temperature, params.seed)
        return self._write(
            prompts, ids, way, keys, max_new_tokens=params.new_tokens, sampling=sampling, samples=params.samples
        )

    def _answer(self, prompts: Prompts, batch: Sequence[Asked], texts: Sequence[str], way: str) -> list[str]:
        """The vote after each text, greedily; what ends reasoning ends the answer too.

        Text may need more tokens than it was sampled in (a broken character does). Where the model has no room for
        them, the oldest ones are left out.
        """
        params = self.params
        each = [q.question for q in batch for _ in range(params.samples)]
        pairs = zip(each, texts, strict=True)
        whole = [q.reasoning_prompt + text + prompts.how.answer_prompt for q, text in pairs]
        ids = [self._ids(text)[-prompts.room :] for text in whole]
        keys = torch.tensor([q.index + SAMPLES_APART * s for q in batch for s in range(params.samples)])
        written = self._write(prompts, ids, way, keys, max_new_tokens=params.answer_tokens, sampling=GREEDY)
        return [vote_in(text, q.labels) for text, q in zip(written, each, strict=True)]

    def _write(
        self, prompts: Prompts, ids: list[list[int]], way: str, keys: Tensor, samples: int = 1, **settings: object
    ) -> list[str]:
        """What the model goes on with after each of ``ids``, ``samples`` times, up to its end or a stop string."""
        tokenizer = self._tokenizer
        padded, mask = left_padded(ids, tokenizer.pad_token_id, self._model.device)
        whole = continued(
            self._model,
            padded,
            mask,
            thought_sampling=Sampling(self.params.thought_temperature, self.params.seed),
            samples=samples,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            stop_strings=prompts.how.stop,
            decode=tokenizer.decode,
            text_keys=keys,
            think=way == "thought",
            **settings,
        )
        new = whole[:, padded.shape[1] :].tolist()
        return [before_stop(self._text(ids[i // samples], row), prompts.how.stop) for i, row in enumerate(new)]

    def _text(self, before: list[int], new: list[int]) -> str:
        """What ``new`` ids, up to the end token, add to the text ``before``: a token's space may hang on its place."""
        kept = before_end(new, self._tokenizer.eos_token_id)
        start, whole = (self._tokenizer.decode(x, skip_special_tokens=True) for x in (before, before + kept))
        return whole[len(start) :]


def _places(scratch: Scratch, task: str) -> dict[tuple[int, str], int]:
    """Where the rows of this task are, the last one of each question and way."""
    return {(row["index"], row["way"]): place for place, row in enumerate(scratch.rows) if row["task"] == task}


def _asked(rows: KeptRows, index: int) -> Asked:
    row = rows[index]
    return Asked(index, Question(**row["question"]), row["prompt"])
