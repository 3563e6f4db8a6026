"""The micro-world: text made from a seed in which, as in real text, the reasoning is mostly left out.

Three kinds of document:

* *ring problems*: a running total of ``steps`` moves round a ring of ten seats (like GSM8K);
* *animal questions*: two-hop facts with five choices (like CommonsenseQA), and the one-hop facts behind them
  ("The lemur is a primate. A primate lives in trees.");
* *stories*: a few plain sentences.

In the pretraining split some documents carry an *aside* between em dashes: the full working, a restatement, or an
idle remark, each as long as a default thought (five word tokens). From it the base model learns that a useful working
may follow an em dash, as a web-scale model does from its corpus. The other splits leave asides out, so there the
working can only be a hidden thought.

No evaluation question occurs in any other text: ring problems are split by their numbers, whatever the wording, animal
questions by their (animal, relation) pair.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
# relation: (its index in a class's tuple, the fact, the question); a fact and its letter are five tokens long
RELATIONS = {
    "lives": (0, "{kind} lives in {value}", "where does the {animal} live"),
    "eats": (1, "{kind} mostly eats {value}", "what does the {animal} eat"),
}
PLACES = (*["pretrain"] * 3, "train", "train", "heldout", EVALUATION, EVALUATION)
PAIRS = {  # (class, animal, relation) triples by split; of train's, the base model has seen only the two hops
    split: [
        (kind, animal, relation)
        for kind, (_, _, members) in ANIMALS.items()
        for i, animal in enumerate(members.split())
        for j, relation in enumerate(RELATIONS)
        if PLACES[(i + 3 * j) % 8] == split
    ]
    for split in (*TEXT_SPLITS, EVALUATION)
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
    """A question with its answer, its full working, a restatement and the texts of its choices, if it has any."""

    question: str
    answer: str
    working: str
    restatement: str
    choices: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """The problem up to its answer, as the evaluation asks it."""
        return f"Q: {self.question}{_choice_lines(self.choices)}\nA:"


def ring_problem(rng: random.Random, split: str, steps: int) -> Problem:
    """Make a running total of ``steps`` moves modulo ten.

    A hash of the numbers decides which split may hold them: a tenth each goes to evaluation and to held-out text.
    """
    wanted = {EVALUATION: [0], "heldout": [1]}.get(split, range(2, 10))
    numbers = [rng.randrange(SEATS)]  # no moves yet; not drawing it would change the texts of every seed
    while len(numbers) == 1 or hashlib.sha256(bytes(numbers)).digest()[0] % 10 not in wanted:
        numbers = [rng.randrange(SEATS)] + [rng.randrange(1, SEATS) for _ in range(steps)]
    totals = [sum(numbers[: i + 1]) % SEATS for i in range(len(numbers))]
    moves = " ".join(map(str, numbers[1:]))
    question = rng.choice(RINGS).format(name=rng.choice(NAMES), start=numbers[0], moves=moves)
    return Problem(question, str(totals[-1]), " ".join(map(str, totals)), restatement=f"{numbers[0]} {moves}")


def animal_problem(rng: random.Random, split: str) -> Problem:
    """Make a two-hop question with five choices, whose (animal, relation) pair belongs to ``split``."""
    kind, animal, relation = rng.choice(PAIRS[split])
    index, fact, question = RELATIONS[relation]
    value, question = ANIMALS[kind][index], question.format(animal=animal)
    choices = [ANIMALS[k][index] for k in rng.sample([k for k in ANIMALS if k != kind], len(CHOICES) - 1)]
    place = rng.randrange(len(CHOICES))
    choices.insert(place, value)
    working = f"{fact.format(kind=kind, value=value)} {CHOICES[place]}"
    return Problem(f"{question.capitalize()}?", CHOICES[place], working, restatement=question, choices=tuple(choices))


def problem_document(rng: random.Random, problem: Problem, aside_share: float) -> str:
    """Prompt and answer; a share of the documents has an aside before the answer, half of the time the working."""
    kinds = (problem.working, problem.working, problem.restatement, rng.choice(REMARKS))
    aside = f" — {rng.choice(kinds)} —" if rng.random() < aside_share else ""
    return f"{problem.prompt}{aside} {problem.answer}"


def lookup_document(rng: random.Random) -> str:
    """A reading exercise: five lines with letters, then which line says what."""
    index = rng.randrange(2)
    values = rng.sample([values[index] for values in ANIMALS.values()], len(CHOICES))
    found = [f"{value} {letter}" for value, letter in zip(values, CHOICES, strict=True)]
    rng.shuffle(found)
    return f"Lines:{_choice_lines(values)}\nFound: {', '.join(found)}."


def _choice_lines(values: Sequence[str]) -> str:
    return "".join(f"\n({letter}) {value}" for letter, value in zip(CHOICES, values, strict=False))


def fact_document(rng: random.Random) -> str:
    """A few one-hop facts: sums on a ring of ten, an animal's class, where a class lives or what it eats."""
    sentences = []
    for _ in range(2):
        first, second = rng.randrange(SEATS), rng.randrange(1, SEATS)
        sentences.append(f"From {first} on by {second} is {(first + second) % SEATS}.")
        kind = rng.choice(tuple(ANIMALS))
        member = rng.choice(ANIMALS[kind][2].split())
        index, fact, _ = RELATIONS[rng.choice(tuple(RELATIONS))]
        sentences.append(f"The {member} is a {kind}. A {fact.format(kind=kind, value=ANIMALS[kind][index])}.")
    return " ".join(sentences)


def story_document(rng: random.Random, aside_share: float) -> str:
    """Three plain sentences; an aside in a story is an idle remark."""
    sentences = []
    for template in rng.sample(STORIES, 3):
        name, other = rng.sample(NAMES, 2)
        aside = f" — {rng.choice(REMARKS)} —" if rng.random() < aside_share / 3 else ""
        sentences.append(f"{template[:-1].format(name=name, other=other)}{aside}.")
    return " ".join(sentences)


def documents(split: str, count: int, seed: int, steps: int, aside_share: float) -> Iterator[str]:
    """Make ``count`` documents of a text split; only those of the pretraining split have asides."""
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


def probe(count: int, seed: int, steps: int) -> list[dict]:
    """Make held-out prompts with their full working, which a thought after the prompt may hold."""
    rng = random.Random(f"{seed}/probe")
    problems = [ring_problem(rng, "heldout", steps) for _ in range(count)]
    return [{"prompt": p.prompt, "working": p.working} for p in problems]


def gsm8k_questions(count: int, seed: int, steps: int) -> list[dict]:
    """Make evaluation questions in GSM8K's columns: ``question`` and ``answer``, which ends in ``#### 7``."""
    rng = random.Random(f"{seed}/gsm8k")
    problems = [ring_problem(rng, EVALUATION, steps) for _ in range(count)]
    return [{"question": p.question, "answer": f"{p.working}\n#### {p.answer}"} for p in problems]


def commonsense_qa_questions(count: int, seed: int) -> list[dict]:
    """Make evaluation questions in CommonsenseQA's columns: ``question``, ``choices.{label,text}``, ``answerKey``."""
    rng = random.Random(f"{seed}/commonsense_qa")
    problems = [animal_problem(rng, EVALUATION) for _ in range(count)]
    return [
        {"question": p.question, "choices": {"label": list(CHOICES), "text": list(p.choices)}, "answerKey": p.answer}
        for p in problems
    ]
