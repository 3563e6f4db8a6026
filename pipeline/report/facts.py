"""What was trained: the method, the model and the text, as facts and as a sentence."""

from pipeline.params import Params
from pipeline.report.estimates import counted, decimal, percent, whole
from pipeline.report.method import Method

LEARNED = {
    "quiet_star": "It learned to write a hidden thought of {tokens} after every token of a text. A thought is rewarded "
    "if it makes the next {ahead} easier to predict.",
    "pause": "It learned to predict a text with a pause of {tokens} after every token. A pause gives as much time to "
    "compute as a thought of that length, but its tokens are always the same.",
    "no_thought": "It learned to predict the next token in the ordinary way. This run is the control: it shows what "
    "reading the same text does without thoughts.",
}


def training_facts(train: dict, params: Params, method: Method) -> list[tuple[str, str]]:
    """(label, value) pairs from the metrics of training; the share of right workings only where it was measured."""
    first, last = train["heldout"]["first"], train["heldout"]["last"]
    given, scratch = params.base_model, params.base_model.scratch
    base_model = f"{scratch.architecture} of {counted(scratch.layers, 'layer')}, from scratch"
    if given.source == "hub":
        base_model = f"{given.path} at {given.revision}" if given.revision else str(given.path)
    text = f"micro-world, seed {params.corpus.seed}"
    if params.corpus.source == "hub":
        split = params.corpus.hub.train
        rows = None if split.rows is None else f"{split.rows:,} rows"
        text = ", ".join(filter(None, (split.path, split.name, split.split, rows)))
    base_loss = f"{decimal(first['base_loss'])} → {decimal(last['base_loss'])}"
    facts = [
        ("method", method.name),
        ("base model", base_model),
        ("parameters", whole(train["parameters"])),
        ("text", text),
        ("tokens of text read", whole(train["text_tokens"])),
        ("optimizer steps", whole(train["steps"])),
        ("seed", str(params.train.seed)),
    ]
    if not method.thinks:
        return [*facts, ("held-out loss, nats", base_loss)]
    talk_loss = f"{decimal(first['talk_loss'])} → {decimal(last['talk_loss'])}"
    facts += [
        (f"{method.one} at every token", counted(params.train.thought_tokens, "token")),
        (f"held-out loss without {method.many}, nats", base_loss),
        (f"held-out loss with {method.many}, nats", talk_loss),
    ]
    share = train["working_share"]
    if method.writes and share is not None:
        change = f"{percent(share['first'])} → {percent(share['last'])}"
        facts.append(("thoughts that contain the right working", change))
    return facts


def training_sentence(train: dict, params: Params, method: Method) -> str:
    """What was trained on how much text, and what it learned."""
    number = train["parameters"]
    size = whole(number)
    if number >= 1e6:
        size = f"{number / 1e9:.1f} billion" if number >= 1e9 else f"{number / 1e6:.1f} million"
    tokens, ahead = counted(params.train.thought_tokens, "token"), counted(params.train.lookahead, "token")
    learned = LEARNED[method.key].format(tokens=tokens, ahead=ahead)
    return f"A language model of {size} parameters read {whole(train['text_tokens'])} tokens of text. {learned}"
