"""What was trained: the method, the model and the text, as facts and as a sentence."""

from pathlib import Path

from pipeline.params import Params
from pipeline.report.estimates import counted, percent, whole
from pipeline.report.method import Method


def training_facts(train: dict, summary: dict, params: Params, method: Method) -> list[tuple[str, str]]:
    """(label, value) pairs from the metrics of training and the run's summary, of what was measured."""
    given, scratch = params.base_model, params.base_model.scratch
    base_model = f"{scratch.architecture} of {counted(scratch.layers, 'layer')}, from scratch"
    if given.source == "hub":
        pinned = given.revision and not Path(given.model).exists()  # a folder has no revisions
        base_model = f"{given.path} at {given.revision}" if pinned else str(given.path)
        if given.further.steps:
            base_model += f", pretrained further for {counted(given.further.steps, 'step')}"
    text = f"micro-world, seed {params.corpus.seed}"
    if params.corpus.source == "hub":
        split = params.corpus.hub.train
        rows = None if split.rows is None else f"{split.rows:,} rows"
        text = ", ".join(filter(None, (split.path, split.name, split.split, split.part, rows)))
    facts = [
        ("method", method.name),
        ("base model", base_model),
        ("base model's weights, SHA-256", train["base_weights"]),
        ("parameters", whole(train["parameters"])),
        ("text", text),
        ("tokens of text read", whole(train["text_tokens"])),
        ("optimizer steps", whole(train["steps"])),
        ("seed", str(params.arms.seeds[0])),
    ]
    if method.thinks:
        length = params.train.every_stage[-1].thought_tokens
        facts.append((f"a {method.one}, at most", counted(length, "token")))
        facts.append((f"mean length of a {method.one}", f"{summary['thought_length']:.1f} tokens"))
    share = train["working_share"]
    if method.writes and share is not None:
        change = f"{percent(share['first'])} → {percent(share['last'])}"
        facts.append(("thoughts that contain the right working", change))
    return facts


def training_sentence(train: dict, params: Params, method: Method) -> str:
    """What was trained on how much text, and how."""
    number = train["parameters"]
    size = whole(number)
    if number >= 1e6:
        size = f"{number / 1e9:.1f} billion" if number >= 1e9 else f"{number / 1e6:.1f} million"
    read = f"A language model of {size} parameters read {whole(train['text_tokens'])} tokens of text."
    return f"{read} {what_it_does(method, params)}"


def what_it_does(method: Method, params: Params) -> str:
    """What the method does, with the lengths and the places of this run."""
    stages, thinking = params.train.every_stage, params.train.thinking
    tokens, ahead = (
        ", then ".join(dict.fromkeys(counted(getattr(stage, size), "token") for stage in stages))
        for size in ("thought_tokens", "lookahead")
    )
    share = f"{percent(thinking.share)} of the tokens"
    where = {
        "every": "every token",
        "random": f"a random {share}",
        "entropy": f"the {share} whose next one is least certain",
        "gate": f"the {share} that its gate chooses",
        "one": "one random token",
        "marker": f"each “{thinking.marker}”",
    }[thinking.where]
    return method.what.format(tokens=tokens, ahead=ahead, where=where)
