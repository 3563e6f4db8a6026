"""Evaluate a trained model with EleutherAI's lm-evaluation-harness, whose command line this is, plus our model.

    python -m pipeline.evaluation.harness --model quiet_star --model_args pretrained=models/release --tasks gsm8k

lm-eval (https://github.com/EleutherAI/lm-evaluation-harness) is an optional extra, which only this file needs. An
import of this file registers the model ``quiet_star``, so that `lm_eval.simple_evaluate` finds it too.
"""

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from datasets.exceptions import DatasetsError
from tqdm import tqdm

from pipeline.errors import UserError, reason, run
from pipeline.evaluation.prompts import HELD_LOGITS, AskedModel, before_stop
from pipeline.files import batches
from pipeline.models.base import read_tokenizer
from pipeline.models.device import pick_device
from pipeline.models.prompts import left_padded, prompt_ids
from pipeline.models.trained import known_positions, load_trained
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

POSITIONS = 2048  # lm-eval's default for a model whose configuration does not say
NEW_TOKENS = 256  # lm-eval's default
GENERATION = ("until", "max_gen_toks", "max_new_tokens", "do_sample", "temperature", "top_k", "top_p")
# how lm-eval's ValueErrors about a user's mistake begin: any other ValueError is a bug and needs its traceback
MISTAKES = ("Tasks not found", "No tasks specified", "Specify --output", "If --samples", "When `fewshot_as_multiturn")

log = logging.getLogger(__name__)


def main() -> None:
    """Run lm-eval's command line. Raises UserError for mistakes, such as a data set that cannot be read."""
    if cli_evaluate is None:
        raise UserError("lm-eval is not installed: pip install --constraint constraints.txt lm-eval")
    try:
        cli_evaluate()
    except ValueError as error:
        if not str(error).startswith(MISTAKES):
            raise
        raise UserError(str(error)) from error
    except (DatasetsError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # a full disk, a missing permission
            raise
        raise UserError(f"a task's data set cannot be read: {reason(error)}") from error


class Text(NamedTuple):
    """Token ids to read, and the key that names the text in the draws of its thoughts."""

    ids: tuple[int, ...]
    key: int


@register_model("quiet_star")
class QuietStarLM(TemplateLM):
    """The model in the folder ``pretrained``, with a thought before each predicted token, or without (``think``).

    ``thought_temperature`` 0 thinks greedily; ``seed`` seeds all draws. A draw depends on its text only, never on the
    batch. A text longer than the model's positions loses its beginning, by the same tokens with thoughts and without.
    Raises UserError if the folder holds no trained model, and for unknown or invalid arguments.
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
        try:
            self._sampling = Sampling(float(thought_temperature), int(seed))
            self.batch_size = int(batch_size)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"thought_temperature, seed and batch_size must be numbers: {error}") from error
        if not 0 <= self._sampling.seed < 2**32 or self.batch_size < 1:
            raise UserError(f"seed is {seed} and batch_size {batch_size}: they must be 0 to 4294967295 and at least 1")
        self._think, self._warned = think, set()
        folder = Path(str(pretrained))  # lm-eval makes a folder called 5 a number
        self._model = load_trained(folder).to(usable_device(device))
        self.tokenizer = read_tokenizer(folder)

    @property
    def tokenizer_name(self) -> str:
        """lm-eval reads this only to apply a chat template. Raises UserError."""
        raise UserError("quiet_star has no chat template: leave out --apply_chat_template")

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text whose first token is predicted too."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def max_length(self) -> int:
        """How many tokens fit into the model's positions with a thought ([start], K tokens, [end]) after the last."""
        return (known_positions(self._model) or POSITIONS) - self._model.config.thought_room

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Tokenize, by default with the tokenizer's begin token if it adds one, but never with its end token."""
        bos = self.tokenizer.bos_token
        if add_special_tokens or (add_special_tokens is None and not (bos and string.startswith(bos))):
            return prompt_ids(self.tokenizer, string)
        return self.tokenizer(string, add_special_tokens=False)["input_ids"]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return each answer's log-likelihood in nats, and whether greedy decoding would write it.

        All answers to a context are scored after the same thoughts.
        """
        asked = [(context, answer, text_key(context)) for _, context, answer in requests]
        scores = [(0.0, False)] * len(requests)
        for number, score in self._scores(asked, disable_tqdm):
            scores[number] = score
            self.cache_hook.add_partial("loglikelihood", requests[number][0], score)
        return scores

    def loglikelihood_rolling(self, requests: Sequence, disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihoods of whole texts in nats; lm-eval cuts long texts into windows of `max_length`."""
        asked, owners = [], []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
                context, predicted = make_disjoint_window(window)
                asked.append((context, predicted, text_key(context + predicted)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, (log_likelihood, _) in self._scores(asked, disable_tqdm):
            totals[owners[number]] += log_likelihood
        return totals

    def generate_until(self, requests: Sequence, disable_tqdm: bool = False) -> list[str]:
        """Continue each text up to the first of its stop strings. A repeated request gets its own draws."""
        asked = AskedModel(self._model, self.tokenizer, self._sampling, self.batch_size)
        groups, texts, repeats = defaultdict(list), [], Counter()
        for number, request in enumerate(requests):
            context, arguments = request.args
            how = self._continuation(arguments)
            ids = self.tok_encode(context) or [self.prefix_token_id]
            key = text_key(ids) + SAMPLES_APART * repeats[context, how]
            repeats[context, how] += 1
            texts.append(Text(self._cut(ids, self.max_length - how[1]), key))
            groups[how].append(number)
        written = [""] * len(requests)
        with tqdm(total=len(requests), desc="quiet_star: generate_until", disable=disable_tqdm) as progress:
            for (stop, new_tokens, sampling), numbers in groups.items():
                settings = {"max_new_tokens": new_tokens, "sampling": sampling}
                for batch in batches(sorted(numbers, key=lambda n: -len(texts[n].ids)), self.batch_size):
                    prompts, keys = zip(*(texts[number] for number in batch), strict=True)
                    rows = asked.continuations(prompts, torch.tensor(keys), self._think, stop, **settings)
                    for number, row in zip(batch, rows, strict=True):
                        text = self.tokenizer.decode(row, skip_special_tokens=True)
                        written[number] = before_stop(text, stop)
                        self.cache_hook.add_partial("generate_until", requests[number].args, written[number])
                    progress.update(len(batch))
        return written

    def _cut(self, ids: list[int], room: int) -> tuple[int, ...]:
        """Return the last ``room`` of the ids; warn once for each ``room``."""
        if len(ids) > room and room not in self._warned:
            self._warned.add(room)
            log.warning("texts of more than %d tokens lose their beginning: this model has no room for it", room)
        return tuple(ids[-room:])

    def _scores(
        self, asked: list[tuple[list[int], list[int], int]], disable_tqdm: bool
    ) -> Iterator[tuple[int, tuple[float, bool]]]:
        """Yield the index and the score of each context, answer and key; long texts first, equal texts read once.

        Raises UserError if an answer is too long.
        """
        numbers = defaultdict(list)  # by the text whose last positions predict the answer
        for number, (context, answer, key) in enumerate(asked):
            if len(answer) > self.max_length:
                raise UserError(f"an answer of {len(answer)} tokens is too long: the model can read {self.max_length}")
            whole = self._cut([*(context or [self.prefix_token_id]), *answer], self.max_length + 1)
            numbers[Text(whole[:-1], key)].append(number)
        ordered = sorted(numbers, key=lambda text: -len(text.ids))
        with tqdm(total=len(asked), desc="quiet_star: loglikelihood", disable=disable_tqdm) as progress:
            for texts in batches(ordered, self.batch_size):
                rows = [(row, number) for row, text in enumerate(texts) for number in numbers[text]]
                scores = self._score(texts, [(row, asked[number][1]) for row, number in rows])
                yield from zip((number for _, number in rows), scores, strict=True)
                progress.update(len(rows))

    @torch.no_grad()
    def _score(self, texts: list[Text], answers: list[tuple[int, list[int]]]) -> list[tuple[float, bool]]:
        """Score Q answers, each given with the row (0 .. B-1) of its text, in chunks of positions."""
        pad, device = self.tokenizer.pad_token_id, self._model.device
        # (Q, A): the targets of the last A positions, and which of them are not padding
        wanted, real = left_padded([answer for _, answer in answers], pad, device)
        if not wanted.shape[1]:  # all answers are empty
            return [(0.0, True)] * len(answers)
        ids, mask = left_padded([text.ids for text in texts], pad, device)
        rows = torch.tensor([row for row, _ in answers], device=device)
        keys = torch.tensor([text.key for text in texts], device=device)
        positions = torch.arange(ids.shape[1] - wanted.shape[1], ids.shape[1], device=ids.device)
        size = max(1, HELD_LOGITS // (len(texts) * self._model.vocabulary))
        hidden = None if self._think else self._model.decoder.read(ids, mask)[0]
        log_probs, greedy = [], []
        for places, targets in zip(positions.split(size), wanted.split(size, dim=1), strict=True):
            if hidden is None:  # only these positions think
                end = int(places[-1]) + 1
                options = {"positions": places, "sampling": self._sampling, "text_keys": keys}
                logits = self._model(ids[:, :end], mask[:, :end], **options).logits
            else:
                logits = self._model.decoder.head.logits(hidden[:, places])
            logits = logits.to(exact_dtype(logits))
            columns = torch.arange(len(places), device=ids.device)
            log_probs.append(logits[rows[:, None], columns, targets] - logits.logsumexp(-1)[rows])
            greedy.append(ban(logits, self._model.config.banned).argmax(-1)[rows] == targets)
        padding = real == 0
        sums = torch.cat(log_probs, 1).double().masked_fill(padding, 0).sum(1)
        same = (torch.cat(greedy, 1) | padding).all(1)
        return list(zip(sums.tolist(), same.tolist(), strict=True))

    def _continuation(self, arguments: dict) -> tuple[tuple[str, ...], int, Sampling]:
        """Read from lm-eval's arguments: the stop strings, at most how many tokens, and how they are drawn.

        Raises UserError for an argument that is unknown or invalid.
        """
        unknown = [name for name in arguments if name not in GENERATION]
        if unknown:
            raise UserError(f"quiet_star cannot generate with {', '.join(unknown)}: it knows {', '.join(GENERATION)}")
        until = arguments.get("until") or []
        new_tokens = arguments.get("max_gen_toks", arguments.get("max_new_tokens", NEW_TOKENS))
        sample = arguments.get("do_sample")
        temperature = 0.0 if sample is False else arguments.get("temperature", 1.0 if sample else 0.0)
        try:
            sampling = Sampling(float(temperature), self._sampling.seed, arguments.get("top_k"), arguments.get("top_p"))
            stop = tuple(string for string in ([until] if isinstance(until, str) else until) if string)
            new_tokens = int(new_tokens)
        except (TypeError, ValueError) as error:
            raise UserError(f"generation arguments {arguments}: {error}") from error
        if not 0 < new_tokens < self.max_length:
            raise UserError(f"max_gen_toks is {new_tokens}, but this model has room for 1 to {self.max_length - 1}")
        return stop, new_tokens, sampling


def text_key(ids: Sequence[int]) -> int:
    """Return a hash of the tokens, which names the text in its draws, so that no other text changes a draw."""
    digest = hashlib.sha256(repr(list(ids)).encode()).digest()
    return int.from_bytes(digest[:8], "big") % SAMPLES_APART


def usable_device(device: str) -> str:
    """Check the device. lm-eval's default, cuda:0, means the CPU without a GPU. Raises UserError if it is unknown."""
    if device == "auto" or (device.startswith("cuda") and not torch.cuda.is_available()):
        return pick_device("auto")
    known = ["cpu", "cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if device not in known:
        raise UserError(f"device is {device}, but must be one of auto, {', '.join(known)}")
    return device


if __name__ == "__main__":
    run(main)
