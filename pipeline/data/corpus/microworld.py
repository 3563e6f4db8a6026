"""A micro-world: text from a seed in which, as in real text, the reasoning is mostly left out.

Three kinds of document:

* *ring problems*, a running total of ``steps`` moves round a ring of ten seats (GSM8K's shape);
* *animal questions*, two-hop facts with five choices (CommonsenseQA's shape), and the one-hop facts behind them
  ("The lemur is a primate. A primate lives in trees.");
* *stories*, a few plain sentences.

In the pretraining split some documents carry an *aside* between em dashes: the full working, a restatement, or an
idle remark, each as long as a default thought (five word tokens). That is where the base model picks up that an em
dash may be followed by a useful working, as a web-scale model does from its corpus. Every other split leaves the
asides out, so there the working can only be a hidden thought.

No evaluation question occurs in any other text: rings are split by their numbers whatever the wording, animal
questions by their (animal, relation) pair.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

SEATS = 10
CHOICES = "ABCDE"
TEXT_SPLITS = ("pretrain", "train", "heldout")
EVALUATION = "evaluation"

NAMES = ("Ana", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana")
RINGS = (
    "{name} starts on seat {start} of a ring of ten and moves on by {moves}. Which seat is it?",
    "On a ring of ten stops {name} gets on at {start} and rides on by {moves}. Which stop is it?",
    "A dial of ten marks shows {start} and {name} turns it on by {moves}. Which mark is it?",
)
# class: (where it lives, what it eats, its members)
ANIMALS = {
    "primate": ("trees", "fruit", "lemur gibbon baboon marmoset tamarin macaque gorilla mandrill"),
    "fish": ("water", "plankton", "trout carp herring salmon perch tench bream roach"),
    "raptor": ("cliffs", "mice", "falcon eagle buzzard kite osprey harrier kestrel goshawk"),
    "duck": ("ponds", "weeds", "mallard teal wigeon pintail shoveler eider gadwall goldeneye"),
    "goat": ("mountains", "grass", "ibex markhor chamois serow goral tahr mouflon tur"),
    "rodent": ("burrows", "seeds", "vole hamster gerbil lemming marmot gopher jerboa degu"),
    "whale": ("oceans", "krill", "beluga narwhal orca minke humpback dolphin porpoise bowhead"),
    "beetle": ("wood", "leaves", "weevil scarab chafer firefly ladybird longhorn carabid stag"),
}
# relation: (its index in ANIMALS, the fact, the question); a fact and its letter are five tokens long
RELATIONS = {
    "lives": (0, "{kind} lives in {value}", "where does the {animal} live"),
    "eats": (1, "{kind} mostly eats {value}", "what does the {animal} eat"),
}
REMARKS = (
    "the weather was fine today",
    "it was a quiet morning",
    "someone whistled an old song",
    "the kettle was still warm",
    "nobody was in a hurry",
)
STORIES = (
    "{name} walked to the market in the morning.",
    "The rain stopped and {name} opened the window.",
    "{name} and {other} shared some bread by the fire.",
    "In the evening {name} wrote a letter to {other}.",
    "The old bridge was closed, so {name} took the ferry.",
    "{other} waved from the hill and {name} waved back.",
)


@dataclass(frozen=True)
class Problem:
    """A question with its answer, its full working and a restatement; ``choices`` is empty where it has none."""

    question: str
    answer: str
    working: str
    restatement: str
    choices: tuple[str, ...] = ()


def ring_split(numbers: list[int]) -> str:
    """The split that may hold the ring with these numbers: a tenth each to evaluation and held-out text."""
    bucket = hashlib.sha256(bytes(numbers)).digest()[0] % SEATS
    return {0: EVALUATION, 1: "heldout"}.get(bucket, "text")


def pair_split(animal_index: int, relation_index: int) -> str:
    """The split that may ask for this (animal, relation) pair; of a class's eight animals three are pretraining's.

    The pairs on which Quiet-STaR trains are new to the base model: it knows both hops, never their conclusion.
    """
    place = (animal_index + 3 * relation_index) % 8
    return ("pretrain", "pretrain", "pretrain", "train", "train", "heldout", EVALUATION, EVALUATION)[place]


def ring_problem(rng: random.Random, split: str, steps: int) -> Problem:
    """A running total of ``steps`` moves modulo ten, whose numbers belong to ``split``."""
    wanted = split if split in ("heldout", EVALUATION) else "text"
    numbers = [rng.randrange(SEATS)]
    while ring_split(numbers) != wanted or len(numbers) == 1:
        numbers = [rng.randrange(SEATS)] + [rng.randrange(1, SEATS) for _ in range(steps)]
    totals = [sum(numbers[: i + 1]) % SEATS for i in range(len(numbers))]
    return Problem(
        question=rng.choice(RINGS).format(
            name=rng.choice(NAMES), start=numbers[0], moves=" ".join(map(str, numbers[1:]))
        ),
        answer=str(totals[-1]),
        working=" ".join(map(str, totals)),
        restatement=" ".join(map(str, numbers)),
    )


def animal_problem(rng: random.Random, split: str) -> Problem:
    """A two-hop question with five choices, whose (animal, relation) pair belongs to ``split``."""
    kind, animal, relation = rng.choice(_pairs(split))
    index, fact, question = RELATIONS[relation]
    others = rng.sample([k for k in ANIMALS if k != kind], len(CHOICES) - 1)
    choices = [ANIMALS[k][index] for k in others]
    place = rng.randrange(len(CHOICES))
    choices.insert(place, ANIMALS[kind][index])
    question = question.format(animal=animal)
    return Problem(
        question=question.capitalize() + "?",
        answer=CHOICES[place],
        working=f"{fact.format(kind=kind, value=ANIMALS[kind][index])} {CHOICES[place]}",
        restatement=question,
        choices=tuple(choices),
    )


@cache
def _pairs(split: str) -> list[tuple[str, str, str]]:
    return [
        (kind, animal, relation)
        for kind, (_, _, members) in ANIMALS.items()
        for i, animal in enumerate(members.split())
        for j, relation in enumerate(RELATIONS)
        if pair_split(i, j) == split
    ]


def prompt(problem: Problem) -> str:
    """The problem up to its answer, in the evaluation's own prompt (method.md, "Evaluation")."""
    return f"Q: {problem.question}{_lines(problem.choices)}\nA:"


def problem_document(rng: random.Random, problem: Problem, aside_share: float) -> str:
    """Prompt and answer, before which a share of the documents has an aside: half of them hold the working."""
    kinds = (problem.working, problem.working, problem.restatement, rng.choice(REMARKS))
    aside = f" — {rng.choice(kinds)} —" if rng.random() < aside_share else ""
    return f"{prompt(problem)}{aside} {problem.answer}"


def lookup_document(rng: random.Random) -> str:
    """A reading exercise: five lines with letters, then which line says what."""
    index = rng.randrange(2)
    values = rng.sample([values[index] for values in ANIMALS.values()], len(CHOICES))
    found = list(zip(values, CHOICES, strict=True))
    rng.shuffle(found)
    return f"Lines:{_lines(values)}\nFound: {', '.join(f'{value} {letter}' for value, letter in found)}."


def _lines(values: Sequence[str]) -> str:
    return "".join(f"\n({letter}) {value}" for letter, value in zip(CHOICES, values, strict=False))


def fact_document(rng: random.Random) -> str:
    """A few one-hop facts: sums on a ring of ten, an animal's class, where a class lives, what it eats."""
    sentences = []
    for _ in range(2):
        first, second = rng.randrange(SEATS), rng.randrange(1, SEATS)
        sentences.append(f"From {first} on by {second} is {(first + second) % SEATS}.")
        kind = rng.choice(tuple(ANIMALS))
        member = rng.choice(ANIMALS[kind][2].split())
        index, fact, _ = RELATIONS[rng.choice(tuple(RELATIONS))]
        sentences.append(f"The {member} is a {kind}.")
        sentences.append(f"A {fact.format(kind=kind, value=ANIMALS[kind][index])}.")
    return " ".join(sentences)


def story_document(rng: random.Random, aside_share: float) -> str:
    """Three plain sentences; an aside in a story is an idle remark."""
    sentences = []
    for template in rng.sample(STORIES, 3):
        name, other = rng.sample(NAMES, 2)
        sentence = template.format(name=name, other=other)
        if rng.random() < aside_share / 3:
            sentence = f"{sentence[:-1]} — {rng.choice(REMARKS)} —."
        sentences.append(sentence)
    return " ".join(sentences)


def documents(split: str, count: int, seed: int, steps: int, aside_share: float) -> Iterator[str]:
    """``count`` documents of a text split; only the pretraining split has asides."""
    rng = random.Random(f"{seed}/{split}")
    share = aside_share if split == "pretrain" else 0.0
    for _ in range(count):
        kind = rng.random()
        if kind < 0.38:
            yield problem_document(rng, ring_problem(rng, split, steps), share)
        elif kind < 0.66:
            yield problem_document(rng, animal_problem(rng, split), share)
        elif kind < 0.86:
            yield lookup_document(rng)
        elif kind < 0.95:
            yield fact_document(rng)
        else:
            yield story_document(rng, share)


def probe(count: int, seed: int, steps: int) -> Iterator[dict]:
    """Prompts of ring problems with their full working, which a thought after the prompt may hold."""
    rng = random.Random(f"{seed}/probe")
    for _ in range(count):
        problem = ring_problem(rng, "heldout", steps)
        yield {"prompt": prompt(problem), "working": problem.working}


def gsm8k_questions(count: int, seed: int, steps: int) -> list[dict]:
    """Evaluation questions in GSM8K's columns: ``question`` and ``answer`` ending in ``#### 7``."""
    rng = random.Random(f"{seed}/gsm8k")
    problems = [ring_problem(rng, EVALUATION, steps) for _ in range(count)]
    return [{"question": p.question, "answer": f"{p.working}\n#### {p.answer}"} for p in problems]


def commonsense_qa_questions(count: int, seed: int) -> list[dict]:
    """Evaluation questions in CommonsenseQA's columns: ``question``, ``choices.{label,text}``, ``answerKey``."""
    rng = random.Random(f"{seed}/commonsense_qa")
    problems = [animal_problem(rng, EVALUATION) for _ in range(count)]
    return [
        {
            "question": p.question,
            "choices": {"label": list(CHOICES), "text": list(p.choices)},
            "answerKey": p.answer,
        }
        for p in problems
    ]
