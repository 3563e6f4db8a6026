"""What the page's intervals rest on, and how many there are, so that a reader knows how many mislead by chance."""

from pipeline.report.estimates import whole
from pipeline.report.method import Method


def seeds_sentence(arms: list[dict]) -> str:
    """How many runs and questions the figures of the arms (rows of results/compare/figures.csv) rest on."""
    if not arms:
        return "No other ways of training were compared with this run."
    seeds, questions = (_range({row[name] for row in arms}) for name in ("seeds", "n"))
    unit = "seed" if seeds == "1" else "seeds"
    return f"{seeds} {unit} for each way of training, {questions} questions for each task."


def coverage_sentence(arms: list[dict]) -> str:
    """Whether the intervals cover the choice of seed."""
    if any(row["seeds"] > 1 for row in arms):
        covered = "The intervals of the ways of training cover the choice of seed as well"
        return f"{covered}, but with few seeds they are too narrow."
    return "They do not cover the choice of seed."


def compared(tasks: dict, reasoning: dict, comparisons: list[dict], bars: int, method: Method) -> dict[str, int]:
    """How many differences with an interval the page shows, by subject; ``bars``: groups of held-out tokens."""
    counts = {"ways of training against each other": len(comparisons)}
    if method.thinks:
        on_off = f"{method.many} on against off"
        counts |= {
            f"{on_off}: accuracy and probability of each task": 2 * len(tasks),
            f"{on_off} with written reasoning": sum(len(task["difference"]) for task in reasoning.values()),
            f"{on_off}: loss on held-out text": 1,
            "improvement by group of held-out tokens": bars,
        }
    return {subject: count for subject, count in counts.items() if count}


def chance_sentence(counts: dict[str, int]) -> str:
    total = sum(counts.values())
    if not total:
        return "This page compares nothing."
    return (
        f"This page shows {whole(total)} differences with an interval. Even if nothing had any effect, about "
        f"{whole(max(1, total / 20))} of them (one in twenty) would exclude zero, so a single one proves little. The "
        "intervals are not corrected for multiple comparisons."
    )


def _range(numbers: set[float]) -> str:
    low, high = whole(min(numbers)), whole(max(numbers))
    return low if low == high else f"{low} to {high}"
