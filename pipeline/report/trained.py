"""What was trained: the method, the model, the text, in facts and in one sentence."""

from collections.abc import Callable

from pipeline.params import HubSplit, Params
from pipeline.report.estimates import decimal, percent, whole
from pipeline.report.method import Method
from pipeline.report.reading import Metrics

LEARNED = {
    "quiet_star": "It learned to write a hidden thought of {tokens} after every token of a text, where a thought is "
    "rewarded that makes the next {ahead} easier to predict.",
    "pause": "It learned to predict a text after a pause of {tokens} at every token: the same time to compute as a "
    "thought of that length, but nothing to choose and nothing to say.",
    "no_thought": "It learned in the ordinary way, to predict the next token and nothing else: the control that shows "
    "what reading the same text does without any thought.",
}


def training_facts(train: Metrics, params: Params, method: Method) -> list[tuple[str, str]]:
    """(label, value) pairs; the share of right workings only where it was measured."""
    facts = [
        ("method", method.name),
        ("base model", base_model(params)),
        ("parameters", whole(train.number("parameters"))),
        ("text", training_text(params)),
        ("tokens of text read", whole(train.number("text_tokens"))),
        ("optimizer steps", whole(train.number("steps"))),
        ("seed", str(params.train.seed)),
    ]
    if method.thinks:
        facts.append((f"{method.one} at every token", _counted(params.train.thought_tokens, "token")))
    return facts + _changes(train, method)


def training_sentence(train: Metrics, params: Params, method: Method) -> str:
    learned = LEARNED[method.key].format(
        tokens=_counted(params.train.thought_tokens, "token"), ahead=_counted(params.train.lookahead, "token")
    )
    size, read = _rounded(train.number("parameters")), whole(train.number("text_tokens"))
    return f"A language model of {size} parameters read {read} tokens of text. {learned}"


def base_model(params: Params) -> str:
    given, scratch = params.base_model, params.base_model.scratch
    if given.source == "hub":
        return f"{given.path} at {given.revision}" if given.revision else str(given.path)
    return f"{scratch.architecture} of {_counted(scratch.layers, 'layer')}, from scratch"


def training_text(params: Params) -> str:
    if params.corpus.source == "microworld":
        return f"micro-world, seed {params.corpus.seed}"
    return _split(params.corpus.hub.train)


def _split(split: HubSplit) -> str:
    rows = "" if split.rows is None else f", {split.rows:,} rows"
    return f"{split.path}, {split.name + ', ' if split.name else ''}{split.split}{rows}"


def _changes(train: Metrics, method: Method) -> list[tuple[str, str]]:
    if not method.thinks:
        return [("held-out loss, nats", _change(train, decimal, "heldout", "base_loss"))]
    facts = [
        (f"held-out loss without {method.many}, nats", _change(train, decimal, "heldout", "base_loss")),
        (f"held-out loss with {method.many}, nats", _change(train, decimal, "heldout", "talk_loss")),
    ]
    if method.writes and train.at("working_share") is not None:
        facts.append(("thoughts that hold the right working", _change(train, percent, "working_share")))
    return facts


def _change(train: Metrics, show: Callable[[float], str], section: str, *keys: str) -> str:
    first, last = (show(train.number(section, when, *keys)) for when in ("first", "last"))
    return f"{first} → {last}"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _rounded(number: float) -> str:
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.1f} {name}"
    return whole(number)
