"""A trained model in EleutherAI's lm-evaluation-harness: ``python -m pipeline.harness`` is its command line, with ours.

    python -m pipeline.harness --model quiet_star --model_args pretrained=models/quiet_star,think=true --tasks gsm8k

lm-eval (Gao et al., https://github.com/EleutherAI/lm-evaluation-harness) is an optional extra, and only this file needs
it. Importing it registers the model ``quiet_star``, for `lm_eval.simple_evaluate`.
"""

import hashlib
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets.exceptions import DatasetsError
from torch import Tensor
from tqdm import tqdm

from pipeline.errors import UserError, reason, run
from pipeline.evaluation.prompts import before_end, before_stop, continued, left_padded
from pipeline.files import batches
from pipeline.models.base import read_tokenizer
from pipeline.models.trained import known_positions, load_trained
from pipeline.params import MILLION
from pipeline.thought.generation import SAMPLES_APART
from pipeline.thought.head import ban, exact_dtype
from pipeline.thought.sampler import Sampling

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ModuleNotFoundError as missing:
    if missing.name != "lm_eval":
        raise
    cli_evaluate, TemplateLM, register_model = None, object, lambda name: lambda model: model  # `main` says so

HELD_LOGITS = 2**25  # logits held at once: 128 MiB in float32
POSITIONS = 2048  # of a model whose configuration does not say, as lm-eval has it
NEW_TOKENS = 256  # as lm-eval has it
GENERATION = ("until", "max_gen_toks", "max_new_tokens", "do_sample", "temperature", "top_k", "top_p")

# how what lm-eval says of its command line begins, and what to do about it
REFUSALS = {
    "Tasks not found": "name tasks of lm-eval, or files of yours with --include_path FOLDER",
    "No tasks specified": "name some with --tasks",
    "Specify --output_path": "name a folder for them",
    "If --samples is not None": "give one of them",
    "When `fewshot_as_multiturn`": "leave out --fewshot_as_multiturn",
}
GREATEST = {"seed": 2**32 - 1, "batch_size": MILLION, "thought_temperature": MILLION}

log = logging.getLogger(__name__)


def main() -> None:
    """lm-eval's own command line, in which this model is known.

    Raises UserError where lm-eval is not installed, for options that it refuses, for a task whose data set cannot be
    read and for what the model refuses.
    """
    if cli_evaluate is None:
        raise UserError("lm-eval is not installed: pip install --constraint constraints.txt lm-eval")
    try:
        cli_evaluate()
    except ValueError as error:
        advice = next((told for start, told in REFUSALS.items() if str(error).startswith(start)), None)
        if advice is None:
            raise
        raise UserError(f"{str(error).rstrip('.')}: {advice}") from error
    except (DatasetsError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # a full disk, a missing permission
            raise
        raise UserError(f"a task's data set cannot be read: {reason(error)}") from error


@dataclass(frozen=True)
class Text:
    """What a model reads, as token ids, and the name that the text has in its draws."""

    ids: tuple[int, ...]
    key: int


@dataclass(frozen=True)
class Answer:
    """Token ids to score, which follow one another at the end of ``text`` and, the last, after it."""

    text: Text
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Writing:
    """How lm-eval wants a text to be continued: what ends it, at most how many tokens, and how they are drawn."""

    stop: tuple[str, ...]
    new_tokens: int
    sampling: Sampling


@register_model("quiet_star")
class QuietStarLM(TemplateLM):
    """The model in the folder ``pretrained``, with a thought before each predicted token (``think``) or without.

    ``thought_temperature`` 0 thinks greedily; ``seed`` is of all draws. A draw depends on the text it is for, never on
    the batch. Texts too long for the model's positions lose their beginning, the same with thoughts and without.
    Raises UserError for a folder that holds no trained model, and for an argument that means nothing.
    """

    def __init__(
        self,
        pretrained: str | int = "",
        think: bool = True,
        thought_temperature: float = 0.0,
        seed: int = 0,
        batch_size: int | str = 1,
        device: str = "auto",
        **unknown: object,
    ):
        super().__init__()
        if pretrained == "":
            raise UserError("quiet_star needs the folder of a trained model: --model_args pretrained=FOLDER")
        if unknown:
            raise UserError(f"quiet_star has no argument {', '.join(unknown)}")
        if not isinstance(think, bool):
            raise UserError(f"think is {think!r}, but must be true or false")
        temperature = number("thought_temperature", thought_temperature, float, 0)
        self._sampling = Sampling(temperature, number("seed", seed, int, 0))
        self.batch_size = number("batch_size", batch_size, int, 1)
        self._think, self._told = think, set()
        folder = Path(str(pretrained))  # which lm-eval makes a number of where it is called like one
        self._model = load_trained(folder).to(usable_device(device))
        self._device = self._model.device
        self.tokenizer = read_tokenizer(folder)

    @property
    def tokenizer_name(self) -> str:
        """lm-eval asks for it where a chat template is to be applied. Raises UserError."""
        raise UserError("quiet_star has no chat template: leave out --apply_chat_template")

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text of which the first token is predicted too."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def max_length(self) -> int:
        """How many tokens can be read so that a thought after the last one still has positions."""
        return (known_positions(self._model) or POSITIONS) - self._model.config.thought_tokens - 2

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Token ids; by default with the marks that the tokenizer puts before a text, and none after it."""
        bos = self.tokenizer.bos_token
        if add_special_tokens is None:
            add_special_tokens = not (bos and string.startswith(bos))
        ids = self.tokenizer(string, add_special_tokens=add_special_tokens)["input_ids"]
        ended = add_special_tokens and ids and ids[-1] == self.eot_token_id
        return ids[:-1] if ended else ids

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-likelihoods in nats, and whether greedy decoding would write the same. All of a context's answers are
        judged after the same thoughts.
        """
        answers = [self._answer(context, ids, text_key(context)) for _, context, ids in requests]
        scores = {}
        for number, score in self._scores(answers, disable_tqdm):
            scores[number] = score
            self.cache_hook.add_partial("loglikelihood", requests[number][0], score)
        return [scores[number] for number in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, in nats; a long one in windows of `max_length`, as lm-eval cuts them."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
                context, predicted = make_disjoint_window(window)
                windows.append(self._answer(context, predicted, text_key(context + predicted)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, (log_likelihood, _) in self._scores(windows, disable_tqdm):
            totals[owners[number]] += log_likelihood
        return totals

    def generate_until(self, requests: Sequence, disable_tqdm: bool = False) -> list[str]:
        """Continuations, each cut before the first of its stop strings. Repeated requests have draws of their own."""
        asked, texts, repeats = defaultdict(list), [], Counter()
        for number, request in enumerate(requests):
            context, arguments = request.args
            writing = self._writing(arguments)
            ids = self.tok_encode(context) or [self.prefix_token_id]
            key = text_key(ids) + SAMPLES_APART * repeats[context, writing]
            repeats[context, writing] += 1
            texts.append(Text(self._cut(ids, self.max_length - writing.new_tokens), key))
            asked[writing].append(number)
        written = [""] * len(requests)
        with tqdm(total=len(requests), desc="quiet_star: generate_until", disable=disable_tqdm) as progress:
            for writing, numbers in asked.items():
                for batch in batches(sorted(numbers, key=lambda n: -len(texts[n].ids)), self.batch_size):
                    for number, text in zip(batch, self._write([texts[n] for n in batch], writing), strict=True):
                        written[number] = text
                        self.cache_hook.add_partial("generate_until", requests[number].args, text)
                    progress.update(len(batch))
        return written

    def _answer(self, context: list[int], answer: list[int], key: int) -> Answer:
        """Raises UserError for an answer that is longer than what the model can read."""
        if len(answer) > self.max_length:
            raise UserError(f"an answer of {len(answer)} tokens is too long: the model can read {self.max_length}")
        whole = self._cut([*(context or [self.prefix_token_id]), *answer], self.max_length + 1)
        return Answer(Text(whole[:-1], key), tuple(answer))

    def _cut(self, ids: list[int], room: int) -> tuple[int, ...]:
        """The end of ``ids`` that there is room for."""
        if len(ids) > room and room not in self._told:
            self._told.add(room)
            log.warning("texts of more than %d tokens lose their beginning: this model has no room for it", room)
        return tuple(ids[-room:])

    def _scores(self, answers: list[Answer], disable_tqdm: bool) -> Iterator[tuple[int, tuple[float, bool]]]:
        """Each answer's number and score, as they are done: the longest texts first, and each text once."""
        numbers = defaultdict(list)
        for number, answer in enumerate(answers):
            numbers[answer.text].append(number)
        ordered = sorted(numbers, key=lambda text: -len(text.ids))
        with tqdm(total=len(answers), desc="quiet_star: loglikelihood", disable=disable_tqdm) as progress:
            for texts in batches(ordered, self.batch_size):
                rows = [(row, number) for row, text in enumerate(texts) for number in numbers[text]]
                scores = self._score(texts, [(row, answers[number].ids) for row, number in rows])
                yield from zip((number for _, number in rows), scores, strict=True)
                progress.update(len(rows))

    @torch.no_grad()
    def _score(self, texts: list[Text], answers: list[tuple[int, tuple[int, ...]]]) -> list[tuple[float, bool]]:
        """Score answers, each given with the row of its text."""
        rows = torch.tensor([row for row, _ in answers], device=self._device)
        wanted, real = self._left_padded([ids for _, ids in answers])
        if not wanted.shape[1]:  # nothing is sure to follow
            return [(0.0, True)] * len(answers)
        log_probs, greedy = [], []
        for logits, ids in self._predictions(texts, wanted):
            total = logits.logsumexp(-1)[rows]
            log_probs.append(logits[rows[:, None], torch.arange(ids.shape[1], device=self._device), ids] - total)
            greedy.append(ban(logits, self._model.config.banned).argmax(-1)[rows] == ids)
        sums = torch.cat(log_probs, 1).double().masked_fill(~real, 0).sum(1)
        same = (torch.cat(greedy, 1) | ~real).all(1)
        return list(zip(sums.tolist(), same.tolist(), strict=True))

    def _predictions(self, texts: list[Text], wanted: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits (B, P, V) after the last positions of ``texts`` (B), a few at a time, and their part of ``wanted``.

        ``wanted`` (Q, A): what is to be predicted after the last A positions. No other position thinks.
        """
        ids, real = self._left_padded([text.ids for text in texts])
        keys = torch.tensor([text.key for text in texts], device=self._device)
        positions = torch.arange(ids.shape[1] - wanted.shape[1], ids.shape[1], device=self._device)
        size = max(1, HELD_LOGITS // (len(texts) * self._model.vocabulary))
        hidden = None if self._think else self._model.decoder.read(ids, real)[0]
        for places, part in zip(positions.split(size), wanted.split(size, dim=1), strict=True):
            if hidden is not None:
                logits = self._model.decoder.head.logits(hidden[:, places])
            else:
                end = int(places[-1]) + 1
                options = {"positions": places, "sampling": self._sampling, "text_keys": keys}
                logits = self._model(ids[:, :end], real[:, :end], **options).logits
            yield logits.to(exact_dtype(logits)), part

    def _write(self, texts: list[Text], writing: Writing) -> list[str]:
        ids, real = self._left_padded([text.ids for text in texts])
        written = continued(
            self._model,
            ids,
            real,
            max_new_tokens=writing.new_tokens,
            sampling=writing.sampling,
            thought_sampling=self._sampling,
            eos_token_id=self.eot_token_id,
            pad_token_id=self._padding,
            stop_strings=writing.stop,
            decode=self.tokenizer.decode,
            text_keys=torch.tensor([text.key for text in texts], device=self._device),
            think=self._think,
        )
        return [self._read_out(new, writing.stop) for new in written[:, ids.shape[1] :].tolist()]

    def _read_out(self, ids: list[int], stop: Sequence[str]) -> str:
        """The text of new tokens, up to the end token and before the first stop string."""
        text = self.tokenizer.decode(before_end(ids, self.eot_token_id), skip_special_tokens=True)
        return before_stop(text, stop)

    def _writing(self, arguments: dict) -> Writing:
        """lm-eval's generation arguments. Raises UserError for one that is not known or means nothing."""
        unknown = [name for name in arguments if name not in GENERATION]
        if unknown:
            raise UserError(f"quiet_star cannot generate with {', '.join(unknown)}: it knows {', '.join(GENERATION)}")
        until = arguments.get("until") or []
        new_tokens = arguments.get("max_gen_toks", arguments.get("max_new_tokens", NEW_TOKENS))
        sample = arguments.get("do_sample")
        temperature = arguments.get("temperature", 1.0 if sample else 0.0)
        try:
            drawn = {name: arguments.get(name) for name in ("top_k", "top_p")}
            sampling = Sampling(0.0 if sample is False else float(temperature), self._sampling.seed, **drawn)
            stop = tuple(string for string in ([until] if isinstance(until, str) else until) if string)
            writing = Writing(stop, int(new_tokens), sampling)
        except (TypeError, ValueError) as error:
            raise UserError(f"generation arguments {arguments}: {error}") from error
        if not 0 < writing.new_tokens < self.max_length:
            raise UserError(f"max_gen_toks is {new_tokens}, but this model has room for 1 to {self.max_length - 1}")
        return writing

    @property
    def _padding(self) -> int:
        return self.eot_token_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id

    def _left_padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Ids (B, N), and which of them are real."""
        ids, mask = left_padded(rows, self._padding, self._device)
        return ids, mask.bool()


def number(name: str, value: object, kind: Callable[[object], float], least: int) -> float:
    """An argument as a number of this ``kind``. Raises UserError where it is none from ``least`` to its greatest."""
    try:
        found = kind(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not least <= found <= GREATEST[name]:
        raise UserError(f"{name} is {value!r}, but must be a number from {least} to {GREATEST[name]}")
    return found


def text_key(ids: Sequence[int]) -> int:
    """A text's name in its draws: a hash of its tokens, so that nothing else that is asked changes a draw."""
    digest = hashlib.sha256(repr(list(ids)).encode()).digest()
    return int.from_bytes(digest[:8], "big") % SAMPLES_APART


def usable_device(device: str) -> str:
    """lm-eval's command line asks for ``cuda:0`` unless told otherwise: without a GPU that means the CPU."""
    usable = torch.cuda.is_available()
    if device == "auto" or (device.startswith("cuda") and not usable):
        return "cuda" if usable else "cpu"
    known = ["cpu", "cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if device not in known:
        raise UserError(f"device is {device}, but must be one of auto, {', '.join(known)}")
    return device


if __name__ == "__main__":
    run(main)
