"""See what a trained model thinks: after each token of a text, or while it writes.

    python -m pipeline.think models/release "Q: What does the bonobo fear?"   # each token, its benefit and thought
    python -m pipeline.think models/release                                   # a chat: lines in, answers out
    python -m pipeline.think models/release --gate                            # thinks only where its gate wants to

A token's benefit is its loss without the thought before it, less its loss with it, in nats: green where the thought
made the token likelier, red where it made it less likely. Thoughts are greedy.
"""

import argparse
import html
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase

from pipeline.data.marker import ends_with
from pipeline.errors import UserError, run
from pipeline.files import replacing
from pipeline.models.base import read_tokenizer
from pipeline.models.device import pick_device
from pipeline.models.prompts import prompt_ids
from pipeline.models.trained import check_room, load_trained
from pipeline.report.quotes import CONTROLS
from pipeline.thought.generation import GATE
from pipeline.thought.model import QuietStarForCausalLM

STEPS = (0.05, 0.3, 1.0, 2.0)  # nats: from each on a colour is stronger
# ANSI's colour, and the same for a picture, from no benefit to much
HELPS = ((None, None), (194, "#d7ffd7"), (157, "#afffaf"), (120, "#87ff87"), (83, "#5fff5f"))
HURTS = ((None, None), (224, "#ffd7d7"), (217, "#ffafaf"), (210, "#ff8787"), (203, "#ff5f5f"))
DIM, BLACK_ON, PLAIN = "\x1b[2m", "\x1b[30;48;5;{}m", "\x1b[0m"
CHARACTER, LINE = 8.4, 20  # of a picture, in pixels
BROKEN = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer makes of a part of a character
FONT = "font-family='ui-monospace, Menlo, Consolas, monospace' font-size='14'"
WIDEST = 96  # characters of a picture's line


@dataclass(frozen=True)
class Seen:
    """A token as text, its benefit in nats and the thought before it; None: it has none, or has it as pauses."""

    text: str
    benefit: float | None = None
    thought: str | None = None


def main(arguments: list[str] | None = None) -> None:
    """Show a text or chat. Raises UserError for a folder without a model that thinks and for a text without room."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.think", description="See what a trained model thinks.")
    parser.add_argument("model", type=Path, help="the folder of a trained model")
    parser.add_argument("text", nargs="?", help=r"a text to read, with \n for a new line; none: a chat")
    parser.add_argument("--hide", action="store_true", help="show no thoughts")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most (64)")
    parser.add_argument("--temperature", type=float, default=0.0, help="of an answer (0: greedy)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--gate", action="store_true", help="answer with thoughts where the model's gate wants them")
    where.add_argument("--marker", metavar="TEXT", help="answer with thoughts right after this text alone")
    parser.add_argument("--svg", type=Path, help="write the text as a picture, too")
    options = parser.parse_args(arguments)
    if options.tokens < 1 or not 0 <= options.temperature < math.inf:
        raise UserError("--tokens must be at least 1, and --temperature a number of at least 0")
    if options.svg is not None and options.text is None:
        raise UserError("--svg writes a text as a picture: give a text")
    if options.svg is not None and options.svg.is_dir():
        raise UserError(f"--svg: {options.svg} is a folder, not a picture")
    if (options.gate or options.marker) and options.text is not None:
        raise UserError("--gate and --marker are for a chat: give no text, of which every token's thought is shown")
    if options.marker == "":
        raise UserError("--marker is empty: name the text after which to think")
    model, tokenizer = load_trained(options.model).to(pick_device("auto")), read_tokenizer(options.model)
    if not model.has_thoughts:
        raise UserError(f"the model in {options.model} has no thoughts: its method is {model.config.method}")
    if options.gate and model.gate is None:
        raise UserError(f"the model in {options.model} has no gate: train one with train.gate")
    if options.text is None:
        chat(model, tokenizer, options)
        return
    try:
        options.text.encode()
    except UnicodeEncodeError as error:
        raise UserError("the text is not UTF-8") from error
    seen = see(model, tokenizer, prompt_ids(tokenizer, options.text.replace(r"\n", "\n")))
    print(coloured(seen))
    if not options.hide:
        print(table(seen))
    if options.svg is not None:
        with replacing(options.svg) as part:
            part.write_text(picture(seen, hide=options.hide), encoding="utf-8", newline="\n")


@torch.no_grad()
def see(
    model: QuietStarForCausalLM, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], start: int = 0
) -> list[Seen]:
    """Each token of a text (N,) from ``start`` on, with its benefit and the thought before it; the first has neither.

    Raises UserError for fewer than two tokens, and where the text has no room.
    """
    if len(ids) < 2:
        raise UserError("the text has fewer than two tokens: there is nothing to predict")
    check_room(model, len(ids) + model.config.thought_room, "the text")
    text = torch.tensor([list(ids)], device=model.device)
    begin = max(start, 1)
    output = model(text, positions=torch.arange(begin - 1, len(ids) - 1, device=model.device))
    without, with_thought = (
        F.cross_entropy(logits[0].float(), text[0, begin:], reduction="none")
        for logits in (output.base_logits, output.logits)
    )
    thoughts = [None] * (len(ids) - begin)
    if output.thoughts is not None:
        kept = zip(output.thoughts.ids[0, 0].tolist(), output.thoughts.lengths[0, 0].tolist(), strict=True)
        thoughts = [tokenizer.decode(thought[:length]) for thought, length in kept]
    texts = pieces(tokenizer, ids)
    rest = zip(texts[begin:], (without - with_thought).tolist(), thoughts, strict=True)
    return [*map(Seen, texts[start:begin]), *(Seen(*each) for each in rest)]


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text that each token adds to those before it: what is decoded alone may lack its space.

    A character of several tokens is the last one's.
    """
    ends = [tokenizer.decode(list(ids[:stop]), clean_up_tokenization_spaces=False) for stop in range(len(ids) + 1)]
    for stop in range(1, len(ids)):
        if ends[stop].endswith(BROKEN):
            ends[stop] = ends[stop - 1]
    return [after[len(before) :] for before, after in pairwise(ends)]


def chat(model: QuietStarForCausalLM, tokenizer: PreTrainedTokenizerBase, options: argparse.Namespace) -> None:
    r"""Read lines until the end of input and answer each, with the thought before each token unless they are hidden.

    A tokenizer with a chat template gets the whole conversation; without one each line (``\n``: a new line) is
    continued on its own. With ``--gate`` or ``--marker`` only some tokens are thought about; their share is shown.
    """
    think = GATE if options.gate else ends_with(options.marker, tokenizer) if options.marker else True
    messages: list[dict[str, str]] = []
    sampling = {"do_sample": True, "temperature": options.temperature} if options.temperature else {"do_sample": False}
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").replace(r"\n", "\n")
        except EOFError:
            return
        except UnicodeDecodeError as error:
            raise UserError("a line is not UTF-8") from error
        if not line:
            continue
        ids = prompt_ids(tokenizer, line)
        if tokenizer.chat_template:
            messages.append({"role": "user", "content": line})
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        if not ids:  # the text of the end token, say
            continue
        check_room(model, len(ids) + options.tokens + model.config.thought_room, "the conversation")
        settings = sampling | {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
        prompt = torch.tensor([ids], device=model.device)
        settings |= {"think": think, "return_dict_in_generate": True}
        output = model.generate(prompt, max_new_tokens=options.tokens, **settings)
        written = output.sequences[0].tolist()
        answer = tokenizer.decode(written[len(ids) :], skip_special_tokens=True)
        messages.append({"role": "assistant", "content": answer})
        print(answer if options.hide or think is not True else inline(see(model, tokenizer, written, len(ids))))
        if think is not True:
            print(f"{DIM}thought about {output.thought_share.item():.0%} of the tokens{PLAIN}")


def inline(seen: Sequence[Seen]) -> str:
    """Tokens in one text, each after the thought before it, dim."""
    return "".join(
        f"{DIM}⟨{token.thought}⟩{PLAIN}{_shaded(token)}" if token.thought else _shaded(token) for token in seen
    )


def coloured(seen: Sequence[Seen]) -> str:
    """A text, each token in the colour of its benefit."""
    return "".join(map(_shaded, seen))


def table(seen: Sequence[Seen]) -> str:
    """A line for each token that has a thought before it: its benefit in nats, itself and the thought."""
    rows = [(f"{token.benefit:+.2f}", repr(token.text), token.thought or "") for token in seen[1:]]
    width = max(len(text) for _, text, _ in rows)
    lines = [f"{benefit:>7}  {text:<{width}}  {thought!r}" for benefit, text, thought in rows]
    return "\n".join([f"{'benefit':>7}  {'token':<{width}}  thought before it", *lines])


def picture(seen: Sequence[Seen], hide: bool) -> str:
    """The text in its colours as an SVG, and below it the tokens that thoughts helped most, with those thoughts."""
    boxes, x, y = [], 0, 1
    for token in seen:
        for part in token.text.translate(CONTROLS).splitlines(keepends=True):
            text = part.rstrip("\n")
            if x + len(text) > WIDEST:
                x, y = 0, y + 1
            boxes += _drawn(text, x, y, _colour(token.benefit)[1])
            x += len(text)
            if part.endswith("\n"):
                x, y = 0, y + 1
    helped = [token for token in seen if token.thought and token.benefit > 0]
    best = [] if hide else sorted(helped, key=lambda token: -token.benefit)[:3]
    for number, token in enumerate(best):
        told = f"{token.benefit:+.2f} nats: before {token.text!r} it thought {token.thought!r}"
        boxes += _drawn(told[:WIDEST], 0, y + 2 + number, None)
    width, height = WIDEST * CHARACTER, (y + len(best) + 2) * LINE
    head = f"<svg xmlns='http://www.w3.org/2000/svg' width='{width:.0f}' height='{height}' {FONT} xml:space='preserve'>"
    return "\n".join([head, "<rect width='100%' height='100%' fill='white'/>", *boxes, "</svg>\n"])


def _drawn(text: str, x: int, y: int, fill: str | None) -> list[str]:
    left, width = x * CHARACTER, len(text) * CHARACTER
    box = f"<rect x='{left:.1f}' y='{y * LINE - 15}' width='{width:.1f}' height='{LINE}' fill='{fill}'/>"
    label = f"<text x='{left:.1f}' y='{y * LINE}' textLength='{width:.1f}'>{html.escape(text)}</text>"
    return [*([box] if fill else []), *([label] if text else [])]


def _colour(benefit: float | None) -> tuple[int | None, str | None]:
    strength = sum(abs(benefit or 0.0) >= step for step in STEPS)
    return (HELPS if (benefit or 0.0) > 0 else HURTS)[strength]


def _shaded(token: Seen) -> str:
    """A token in its colour, line by line, as some terminals colour the rest of a line that ends in colour."""
    code = _colour(token.benefit)[0]
    if code is None:
        return token.text
    lines = token.text.split("\n")
    return "\n".join(f"{BLACK_ON.format(code)}{line}{PLAIN}" if line else "" for line in lines)


def command() -> None:
    """The command line, in any folder."""
    run(main, anywhere=True)


if __name__ == "__main__":
    command()
