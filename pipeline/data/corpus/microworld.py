"""The micro-world: text made from a seed in which, as in real text, the reasoning is mostly left out.

Five kinds of document:

* *rings*: a running total of several moves round a ring of ten seats (like GSM8K);
* *animals*: two-hop questions with five choices (like CommonsenseQA);
* *lookups*: which of two to five lines says what;
* *facts*: the one-hop facts behind both problems ("The lemur is a primate. A primate lives in trees.");
* *stories*: a few plain sentences.

In the pretraining split half of the problems are *worked*, as textbooks have them: after "W:" comes the full working,
then the answer, or, of every other ring, after "N:" its numbers, which a working has to copy. The rest are answered
after "A:", most of them with an *aside* between em dashes: mostly a restatement or an idle remark, now and then the
working. So the base model can write a working but after "A:" seldom does, as a web-scale model seldom reasons unless it
is made to; which asides are worth writing is what it has to learn. The other splits have neither, so there the working
can only be a hidden thought.

No evaluation question occurs in any other text: ring problems are split by their numbers, whatever the wording, animal
questions by their (animal, relation) pair.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

SEATS = 10
CHOICES = "ABCDE"
TEXT_SPLITS = ("pretrain", "train", "heldout")
VALIDATION, TEST = "validation", "test"  # of questions: settings are chosen on the first
TASKS = RINGS_TASK, _ = ("rings", "animals")
# kinds of aside and how often each is written: workings are rare enough that a greedy thought is never one
ASIDES = {"working": 4, "restatement": 8, "remark": 8}
COPIED = 0.5  # of the rings that are worked: a base model learns to copy numbers, or to add them, one after the other
Moves = tuple[int, int]  # the fewest and the most moves of a ring problem

NAMES = ("Ana", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana")
RINGS = (
    "{name} starts on seat {start} of a ring of ten and moves on by {moves}. Which seat is it?",
    "On a ring of ten stops {name} gets on at {start} and rides on by {moves}. Which stop is it?",
    "A dial of ten marks shows {start} and {name} turns it on by {moves}. Which mark is it?",
)
# class: where it lives, what it eats, fears and likes; what is liked are words of the stories and remarks
TRAITS = {
    "primate": "trees fruit leopards bread",
    "fish": "water plankton herons ferry",
    "raptor": "cliffs mice crows bridge",
    "duck": "ponds weeds foxes rain",
    "goat": "mountains grass wolves hill",
    "rodent": "burrows seeds owls kettle",
    "whale": "oceans krill ships song",
    "beetle": "wood leaves spiders fire",
    "snake": "deserts eggs badgers market",
    "deer": "forests bark tigers window",
}
TRAITS = {kind: words.split() for kind, words in TRAITS.items()}
MEMBERS = {
    "primate": "lemur gibbon baboon marmoset tamarin macaque gorilla mandrill capuchin colobus langur bonobo",
    "fish": "trout carp herring salmon perch tench bream roach mackerel haddock sardine anchovy",
    "raptor": "falcon eagle buzzard kite osprey harrier kestrel goshawk merlin hobby condor vulture",
    "duck": "mallard teal wigeon pintail shoveler eider gadwall goldeneye pochard smew scaup merganser",
    "goat": "ibex markhor chamois serow goral tahr mouflon tur argali bharal takin urial",
    "rodent": "vole hamster gerbil lemming marmot gopher jerboa degu beaver squirrel dormouse agouti",
    "whale": "beluga narwhal orca minke humpback dolphin porpoise bowhead rorqual sei cachalot vaquita",
    "beetle": "weevil scarab chafer firefly ladybird longhorn carabid goliath rover sawyer borer sexton",
    "snake": "adder boa cobra mamba python viper asp krait anaconda taipan racer sidewinder",
    "deer": "elk moose caribou roe muntjac sika wapiti fallow barasingha pudu chital sambar",
}
MEMBERS = {kind: words.split() for kind, words in MEMBERS.items()}
# the fact, the question, and the question without the animal; a fact and its letter are five tokens long
RELATIONS = (
    ("{kind} lives in {value}", "where does the {animal} live", "where do they all live"),
    ("{kind} mostly eats {value}", "what does the {animal} eat", "what do they all eat"),
    ("{kind} often fears {value}", "what does the {animal} fear", "what do they all fear"),
    ("{kind} always likes {value}", "what does the {animal} like", "what do they all like"),
)
# Every animal is in two pretraining pairs. With one, a base model learns the pairs by heart and not where to find an
# animal's class: of pairs that it has not seen it then writes the right class in 0.62 of its workings
PLACES = (*["pretrain"] * 8, "train", "train", "heldout", VALIDATION, *[TEST] * 4)
PAIRS = {  # (class, animal, relation) by split; of train's pairs, the base model has seen only the two hops
    split: [
        (kind, animal, relation)
        for kind, members in MEMBERS.items()
        for i, animal in enumerate(members)
        for relation in range(len(RELATIONS))
        if PLACES[(5 * i + 4 * relation) % len(PLACES)] == split
    ]
    for split in (*TEXT_SPLITS, VALIDATION, TEST)
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
    """A question, its answer, its full working, a restatement, the texts of its choices (if any), and its group.

    Questions of one group stand or fall together: they ask for one fact, or have the same numbers.
    """

    question: str
    answer: str
    working: str
    restatement: str
    group: str
    choices: tuple[str, ...] = ()

    @property
    def asked(self) -> str:
        """The question with its choices."""
        return f"Q: {self.question}{_choice_lines(self.choices)}"

    @property
    def prompt(self) -> str:
        """The problem up to its answer, as the evaluation asks it."""
        return f"{self.asked}\nA:"


def ring_problem(rng: random.Random, split: str, moves: Moves) -> Problem:
    """Make a running total modulo ten of a number of moves that is drawn from ``moves``.

    A problem with fewer than the most moves ends in zeros, which its working leaves out: so a move is always as far
    from the place where the working needs it, without which a small model does not learn to write workings.
    A hash of the numbers decides which split may hold them: a tenth each goes to evaluation, held-out text, validation.
    """
    wanted = {TEST: [0], "heldout": [1], VALIDATION: [2]}.get(split, range(3, 10))
    count = rng.randint(*moves)
    numbers: list[int] = []
    while not numbers or hashlib.sha256(bytes(numbers)).digest()[0] % 10 not in wanted:
        numbers = [rng.randrange(SEATS)] + [rng.randrange(1, SEATS) for _ in range(count)]
    totals = [sum(numbers[: i + 1]) % SEATS for i in range(len(numbers))]
    moved = " ".join(map(str, numbers[1:] + [0] * (moves[1] - count)))
    question = rng.choice(RINGS).format(name=rng.choice(NAMES), start=numbers[0], moves=moved)
    working, group = " ".join(map(str, totals)), f"{numbers[0]} {moved}"
    # "by": a first token that no working has tells the two apart, and keeps each move where the working needs it
    return Problem(question, str(totals[-1]), working, f"by {moved}", group)


def animal_problem(rng: random.Random, split: str) -> Problem:
    """Make a two-hop question with five choices, whose (animal, relation) pair belongs to ``split``."""
    kind, animal, relation = rng.choice(PAIRS[split])
    value, (fact, question, restatement) = TRAITS[kind][relation], RELATIONS[relation]
    question = question.format(animal=animal).capitalize()
    choices = [TRAITS[k][relation] for k in rng.sample([k for k in TRAITS if k != kind], len(CHOICES) - 1)]
    place = rng.randrange(len(CHOICES))
    choices.insert(place, value)
    fact = fact.format(kind=kind, value=value)
    return Problem(f"{question}?", CHOICES[place], f"{fact} {CHOICES[place]}", restatement, fact, tuple(choices))


def problem_document(rng: random.Random, problem: Problem, aside_share: float, worked_share: float) -> str:
    """A worked problem, or prompt and answer, of which ``aside_share`` have an aside between them (`ASIDES`)."""
    if rng.random() < worked_share:
        if not problem.choices and rng.random() < COPIED:
            return f"{problem.asked}\nN: — {problem.group} —"  # the group of a ring is its numbers
        return f"{problem.asked}\nW: — {problem.working} — {problem.answer}"
    aside = ""
    if rng.random() < aside_share:
        kind = rng.choices(list(ASIDES), weights=list(ASIDES.values()))[0]
        aside = f" — {rng.choice(REMARKS) if kind == 'remark' else getattr(problem, kind)} —"
    return f"{problem.prompt}{aside} {problem.answer}"


def lookup_document(rng: random.Random) -> str:
    """A reading exercise: two to five lines with letters, then which line says what."""
    relation = rng.randrange(len(RELATIONS))
    # with always five lines a base model learns the letters late, at a moment that its seed decides
    values = rng.sample([words[relation] for words in TRAITS.values()], rng.randint(2, len(CHOICES)))
    found = [f"{value} {letter}" for value, letter in zip(values, CHOICES, strict=False)]
    rng.shuffle(found)
    return f"Lines:{_choice_lines(values)}\nFound: {', '.join(found)}."


def _choice_lines(values: Sequence[str]) -> str:
    return "".join(f"\n({letter}) {value}" for letter, value in zip(CHOICES, values, strict=False))


def fact_document(rng: random.Random) -> str:
    """A few one-hop facts: sums on a ring of ten, an animal's class, where a class lives, what it does."""
    sentences = []
    for _ in range(2):
        first, second = rng.randrange(SEATS), rng.randrange(1, SEATS)
        sentences.append(f"From {first} on by {second} is {(first + second) % SEATS}.")
        kind, relation = rng.choice(list(TRAITS)), rng.randrange(len(RELATIONS))
        member = rng.choice(MEMBERS[kind])
        fact = RELATIONS[relation][0].format(kind=kind, value=TRAITS[kind][relation])
        sentences.append(f"The {member} is a {kind}. A {fact}.")
    return " ".join(sentences)


def story_document(rng: random.Random, aside_share: float) -> str:
    """Three plain sentences; an aside in a story is an idle remark."""
    sentences = []
    for template in rng.sample(STORIES, 3):
        name, other = rng.sample(NAMES, 2)
        aside = f" — {rng.choice(REMARKS)} —" if rng.random() < aside_share / 3 else ""
        sentences.append(f"{template[:-1].format(name=name, other=other)}{aside}.")
    return " ".join(sentences)


def documents(
    split: str,
    count: int,
    seed: int,
    moves: Moves,
    aside_share: float,
    worked_share: float,
    kinds: Mapping[str, float],
) -> Iterator[str]:
    """Make ``count`` documents of a text split.

    ``worked_share`` of its problems are worked, ``aside_share`` of the others have an aside. ``kinds``: how often each
    kind is drawn (rings, animals, lookups, facts, stories), in proportion.
    """
    rng = random.Random(f"{seed}/{split}")
    makers = {
        "rings": lambda: problem_document(rng, ring_problem(rng, split, moves), aside_share, worked_share),
        "animals": lambda: problem_document(rng, animal_problem(rng, split), aside_share, worked_share),
        "lookups": lambda: lookup_document(rng),
        "facts": lambda: fact_document(rng),
        "stories": lambda: story_document(rng, aside_share),
    }
    weights = [kinds[kind] for kind in makers]
    for _ in range(count):
        [make] = rng.choices(list(makers.values()), weights)
        yield make()


def problems(task: str, split: str, count: int, seed: int, moves: Moves) -> list[Problem]:
    """Make ``count`` problems of a ``task`` (`TASKS`) from a split."""
    rng = random.Random(f"{seed}/{split}/{task}")
    return [ring_problem(rng, split, moves) if task == RINGS_TASK else animal_problem(rng, split) for _ in range(count)]


def probe(tasks: Sequence[str], count: int, seed: int, moves: Moves) -> list[dict]:
    """Make held-out prompts of each task with their full working, which a thought after the prompt may hold."""
    return [
        {"task": task, "prompt": problem.prompt, "working": problem.working}
        for task in tasks
        for problem in problems(task, "heldout", count, seed, moves)
    ]


def questions(task: str, split: str, count: int, seed: int, moves: Moves) -> list[dict]:
    """Make questions in the columns of GSM8K (rings) or CommonsenseQA (animals), with their group beside them.

    GSM8K's are ``question`` and ``answer``, which ends in ``#### 7``; CommonsenseQA's ``question``,
    ``choices.{label,text}`` and ``answerKey``. Rings also have their number of ``moves``, without the zeros at the end.
    """
    rows = []
    for p in problems(task, split, count, seed, moves):
        if p.choices:
            row = {"choices": {"label": list(CHOICES), "text": list(p.choices)}, "answerKey": p.answer}
        else:
            row = {"answer": f"{p.working}\n#### {p.answer}", "moves": len(p.working.split()) - 1}
        rows.append({"question": p.question, "group": p.group} | row)
    return rows
