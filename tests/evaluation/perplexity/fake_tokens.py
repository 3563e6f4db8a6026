"""Made-up tables of tokens."""

from dataclasses import replace

import numpy as np
import pandas as pd
from hypothesis import strategies as st

from pipeline.evaluation.perplexity.groups import with_improvement
from pipeline.evaluation.perplexity.kinds import KINDS
from pipeline.params import Perplexity

PARAMS = Perplexity(seed=1, texts=9, batch_size=2, thought_temperature=0.0, bootstrap_samples=2000, device="cpu")
FEW = replace(PARAMS, bootstrap_samples=20)
NATS = st.one_of(st.sampled_from([0.0, 0.5, 2.0]), st.floats(0, 12))
WEIGHTS = st.one_of(st.sampled_from([0.0, -0.0, 0.1]), st.floats(-2, 2))


def random_tokens(texts: int, longest: int, seed: int = 0) -> pd.DataFrame:
    """Texts of different lengths; thoughts help the tokens of one text about equally."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, texts)
    text = np.repeat(np.arange(texts), lengths)
    base = rng.exponential(2, len(text))
    weight = rng.normal(0, 0.2, len(text))
    gain = 0.3 * rng.normal(size=texts)[text] + weight + rng.normal(0, 0.2, len(text))
    return table(text, np.concatenate([np.arange(1, n + 1) for n in lengths]), base, base - gain, weight, rng)


def table(text, position, base, mixed, weight, rng: np.random.Generator | None = None) -> pd.DataFrame:
    rng = rng or np.random.default_rng(0)
    columns = {
        "text": text,
        "position": position,
        "token": "a",
        "kind": rng.choice(KINDS[:4], len(text)),
        "nll_no_thought": base,
        "nll_thought": mixed,
        "weight": weight,
        "thought": "b",
    }
    return with_improvement(pd.DataFrame(columns))


@st.composite
def any_tokens(draw: st.DrawFn) -> pd.DataFrame:
    """A few tokens, among them many equal numbers."""
    lengths = draw(st.lists(st.integers(1, 20), min_size=1, max_size=5))
    count = sum(lengths)
    many = [draw(st.lists(values, min_size=count, max_size=count)) for values in (NATS, NATS, WEIGHTS)]
    position = np.concatenate([np.arange(1, n + 1) for n in lengths])
    return table(np.repeat(np.arange(len(lengths)), lengths), position, *map(np.array, many))


def slow_interval(texts: list[list], statistic, samples: int = 2000) -> tuple[float, float]:
    """The 95 % interval of ``statistic`` (of a list of tokens) over draws of whole texts."""
    rng = np.random.default_rng(7)
    drawn = [
        statistic([x for i in rng.integers(len(texts), size=len(texts)) for x in texts[i]]) for _ in range(samples)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return low, high
