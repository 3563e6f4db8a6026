"""Spans: documents as rows of equally many token ids."""

import random
from collections.abc import Iterable, Iterator
from itertools import chain

from transformers import PreTrainedTokenizerBase

from pipeline.files import batches

DOCUMENTS_AT_ONCE = 1000
SHORTEST = 2  # tokens: a text of one token predicts nothing

Span = dict[str, object]


def document_ids(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """The token ids of each document, its end token last (where the tokenizer has one)."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for some in batches(texts, DOCUMENTS_AT_ONCE):
        encoded = tokenizer(some, return_attention_mask=False, verbose=False)["input_ids"]
        yield from (ids if ids[-1:] == end else ids + end for ids in encoded)


def packed(documents: Iterable[list[int]], span: int) -> Iterator[Span]:
    """The documents one after the other, cut every ``span`` tokens; the last, shorter piece is dropped."""
    for ids in batches(chain.from_iterable(documents), span):
        if len(ids) == span:
            yield {"input_ids": ids, "length": span}


def one_each(documents: Iterable[list[int]], span: int, pad: int, seed: int) -> Iterator[Span]:
    """A random span of each document, padded on the right if the document is shorter (paper, section 5)."""
    rng = random.Random(seed)
    for ids in documents:
        if len(ids) < SHORTEST:
            continue
        start = rng.randrange(max(1, len(ids) - span + 1))
        kept = ids[start : start + span]
        yield {"input_ids": kept + [pad] * (span - len(kept)), "length": len(kept)}
