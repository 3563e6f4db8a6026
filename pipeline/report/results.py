"""The run's own results in sentences: each task, each task with written reasoning, and held-out text.

The arguments are the metrics of the stages evaluate, chain_of_thought and perplexity, as their JSON files have them.
"""

from pipeline.report import estimates
from pipeline.report.estimates import Estimate, Finding, decimal, nats, p_value, percent, points, spoken, whole
from pipeline.report.method import Method

# the key in the metrics: the name on the page, and the prefix of the keys of its interval
MEASURES = {"accuracy": ("accuracy", ""), "prob": ("probability of the right answer", "prob_")}
VERBS = {estimates.ABOVE: "helps", estimates.BELOW: "hurts"}


def own_findings(tasks: dict, text: dict, method: Method) -> list[Finding]:
    """Whether thoughts help on each task and on held-out text. Empty for a method without thoughts."""
    if not method.thinks:
        return []
    found = []
    for name, task in tasks.items():
        difference = task["difference"]
        gain = Estimate.of(difference, "accuracy")
        found.append(_accuracy_finding(name, "accuracy", task, gain, difference["p_value"], method))
    gain = Estimate.of(text["improvement"])
    without, with_thoughts = (decimal(text["loss"][way]) for way in method.contrast)
    change = f"the loss is {without} without {method.many} and {with_thoughts} with, an improvement of "
    size = spoken(gain, nats, "nats per token", f"{whole(text['n_texts'])} texts")
    return [*found, Finding(f"{_opening(gain, 'held-out text', method)}: {change}{size}.", gain.verdict)]


def reasoning_findings(reasoning: dict, method: Method) -> list[Finding]:
    """Whether thoughts help on each task with written reasoning, by the largest majority."""
    found = []
    for name, task in reasoning.items() if method.thinks else ():
        measure, difference = list(task["difference"].items())[-1]
        where, gain = f"{name} with written reasoning", Estimate.of(difference)
        found.append(_accuracy_finding(where, measure, task, gain, difference.get("p_value"), method))
    return found


def _accuracy_finding(where: str, measure: str, task: dict, gain: Estimate, p: float | None, method: Method) -> Finding:
    without, with_thoughts = (percent(task[way][measure]) for way in method.contrast)
    change = f"{measure} is {without} without {method.many} and {with_thoughts} with"
    size = spoken(gain, points, "points", p_value(p), f"{whole(task['n'])} questions")
    return Finding(f"{_opening(gain, where, method)}: {change}, {size}.", gain.verdict)


def _opening(gain: Estimate, where: str, method: Method) -> str:
    return f"{method.act} {VERBS[gain.verdict]} on {where}" if gain.verdict in VERBS else f"Undecided on {where}"
