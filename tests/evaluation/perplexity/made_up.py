"""Tokenizers of three families, files of spans, and made-up tables of tokens."""

from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from pipeline.data.spans import SPANS, Spans
from pipeline.data.tokens.tokenizer import train_tokenizer
from pipeline.evaluation.perplexity.groups import with_improvement
from pipeline.evaluation.perplexity.kinds import KINDS
from pipeline.files import write_rows
from tests.local_hub import word_tokenizer

NATS = st.one_of(st.sampled_from([0.0, 0.5, 2.0]), st.floats(0, 12))
WEIGHTS = st.one_of(st.sampled_from([0.0, -0.0, 0.1]), st.floats(-2, 2))
TEXTS = ["some text to learn from, and more text (A) to learn: don't 12.\n"] * 3
BYTE_LEVEL = train_tokenizer(TEXTS, 300)  # a leading space is a part of the word; any other character is bytes
METASPACE = word_tokenizer()  # SentencePiece-like: `▁` before words, dropped if a text is decoded from there


def byte_fallback() -> PreTrainedTokenizerFast:
    """Like Llama 2's: `▁`, and tokens like <0xC3> for what has no token; decoding drops one space at the start."""
    pieces = ["<unk>", "<s>", "▁", "▁the", "a", "ing", "7", *(f"<0x{byte:02X}>" for byte in range(256))]
    model = models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>")


BYTE_FALLBACK = byte_fallback()


def byte_ids(text: bytes) -> list[int]:
    """Each byte of ``text`` as its own token of `BYTE_FALLBACK`."""
    return BYTE_FALLBACK.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in text])


def write_spans(path: Path, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Spans:
    """A span for each text, padded with tokens that must not show."""
    rows = [tokenizer(text)["input_ids"] for text in texts]
    longest, pad = max(map(len, rows)) + 3, tokenizer.convert_tokens_to_ids("q")
    spans = ({"input_ids": ids + [pad] * (longest - len(ids)), "length": len(ids)} for ids in rows)
    write_rows(path, spans, SPANS)
    return Spans(path, len(tokenizer))


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
        "nll_before": np.asarray(base)[::-1],  # of which groups and cells are made, and not of the next
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
    draws = (rng.integers(len(texts), size=len(texts)) for _ in range(samples))
    return tuple(np.quantile([statistic([x for i in draw for x in texts[i]]) for draw in draws], [0.025, 0.975]))
