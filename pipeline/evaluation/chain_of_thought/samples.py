"""Reason, then answer: sample continuations of a question's reasoning prompt, and read a vote after each."""

import re
import sys
from collections.abc import Iterable, Sequence
from tempfile import TemporaryFile

import torch
from tqdm import tqdm

from pipeline.data.tasks import spec
from pipeline.data.tasks.questions import Question, number_in
from pipeline.errors import UserError
from pipeline.evaluation.prompts import AskedModel
from pipeline.evaluation.shared import in_turns
from pipeline.files import batches
from pipeline.models.prompts import prompt_ids
from pipeline.models.trained import check_room, known_positions
from pipeline.params import ChainOfThought
from pipeline.resume import KeptRows, Scratch
from pipeline.thought.generation import GREEDY, SAMPLES_APART
from pipeline.thought.sampler import Sampling
from pipeline.training.processes import is_main, processes

# the article in "... in trees. A lemur lives ..."
ARTICLE = re.compile(r"(?:(?<=[.!?]\s)|(?<=\n))A(?=\s+[a-z])")


def ask(
    asked: AskedModel,
    params: ChainOfThought,
    task: str,
    how: spec.ChainOfThought,
    questions: Iterable[Question],
    scratch: Scratch,
) -> list[int]:
    """Sample every question and add the rows to ``scratch``.

    Return their indices in ``scratch.rows``, ordered by question, then way (with or without thoughts). A row has task,
    index, way, the question's group, the right answer, and each sample's reasoning (texts) and votes. A batch of which
    ``scratch`` has all rows is skipped; one with some rows missing is sampled as a whole, as rounding depends on the
    padding in a batch. Several processes take turns at batches, and each adds the rows of all. Raises UserError for a
    prompt that is empty or leaves no room for what is to be written, and if the model's predictions are not finite.

    A draw depends on the seed, the question, the sample and the position, so the batch size changes votes by rounding
    only: about one token in a million may differ.
    """
    with TemporaryFile(dir=scratch.folder) as file:
        prompts, lengths = KeptRows(file), []
        for index, question in enumerate(questions):
            ids = prompt_ids(asked.tokenizer, question.reasoning_prompt)
            if not ids:
                raise UserError(f"task {task}, question {index}: its chain-of-thought prompt is empty")
            prompts.extend([{"index": index, "ids": ids, "question": vars(question)}])
            lengths.append(len(ids))
        after = params.answer_tokens + asked.model.config.thought_room
        needed = max(lengths) + params.new_tokens + len(prompt_ids(asked.tokenizer, how.answer_prompt)) + after
        check_room(asked.model, needed, f"a question of {task} with its reasoning and its answer")
        room = (known_positions(asked.model) or sys.maxsize) - after
        places = {(row["index"], row["way"]): i for i, row in enumerate(scratch.rows) if row["task"] == task}
        by_length = batches(sorted(range(len(prompts)), key=lengths.__getitem__), asked.batch_size)
        missing = [
            (batch, way)
            for turn in batches(by_length, processes())  # of one way, as one that thinks takes longer
            for way in asked.ways
            for batch in turn
            if not all((index, way) in places for index in batch)
        ]

        def rows_of(item: tuple[list[int], str]) -> list[dict]:
            batch, way = item
            return _sample(asked, params, [prompts[index] for index in batch], how, room, way)

        left = sum(len(batch) for batch, _ in missing)
        with tqdm(total=left, desc=task, unit=" questions", mininterval=2, disable=not is_main()) as progress:
            for (batch, way), rows in zip(missing, in_turns(rows_of, missing), strict=True):
                places |= {(index, way): len(scratch.rows) + i for i, index in enumerate(batch)}
                scratch.add([{"task": task} | row for row in rows])
                progress.update(len(batch))
    return [places[index, way] for index in range(len(lengths)) for way in asked.ways]


def _sample(
    asked: AskedModel, params: ChainOfThought, batch: Sequence[dict], how: spec.ChainOfThought, room: int, way: str
) -> list[dict]:
    """Each question's samples of reasoning and, after each, the vote in a greedy answer with the same stop strings.

    A text may have more tokens when it is encoded again than it was sampled in (a broken character does). If a prompt
    for an answer then has more than ``room``, its oldest tokens are left out.
    """
    samples, sampling = params.samples, Sampling(params.temperature, params.seed)
    keys = torch.tensor([row["index"] for row in batch])
    options = {"max_new_tokens": params.new_tokens, "sampling": sampling, "samples": samples}
    texts = asked.write([row["ids"] for row in batch], keys, way, how.stop, **options)
    questions = [Question(**row["question"]) for row in batch for _ in range(samples)]
    prompts = [q.reasoning_prompt + text + how.answer_prompt for q, text in zip(questions, texts, strict=True)]
    ids = [prompt_ids(asked.tokenizer, prompt)[-room:] for prompt in prompts]
    keys = (keys[:, None] + SAMPLES_APART * torch.arange(samples)).flatten()
    answers = asked.write(ids, keys, way, how.stop, max_new_tokens=params.answer_tokens, sampling=GREEDY)
    votes = [vote_in(text, q.labels) for text, q in zip(answers, questions, strict=True)]
    rows = []
    for i, row in enumerate(batch):
        own = slice(i * samples, (i + 1) * samples)
        group = row["question"]["group"] or str(row["index"])  # without groups, each question is one
        about = {"index": row["index"], "way": way, "group": group, "answer": row["question"]["answer"]}
        rows.append(about | {"texts": texts[own], "votes": votes[own]})
    return rows


def vote_in(written: str, labels: Sequence[str]) -> str:
    """The first of ``labels`` in an answer or, for a task without labels, the first number; "" if there is none.

    A label must be a word of its own, in its own case: "(B)", "B.", "B: wood", but not "Bears" or "B-side". The article
    that begins a later sentence is not label A. A label as the first word always counts: it continues the answer
    prompt's sentence ("the answer is"), where an article would be lower-case. Kojima et al. 2022 (arXiv 2205.11916),
    whose prompts these are, take the first such letter anywhere.
    """
    if not labels:
        return number_in(written) or ""
    names = "|".join(map(re.escape, labels))
    found = re.search(rf"(?<!\w)(?<!\w['’-])(?:{names})(?!\w|['’-]\w)", ARTICLE.sub("", written.strip()))
    return found[0] if found else ""
