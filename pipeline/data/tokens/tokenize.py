"""The tokenize stage: texts in, a tokenizer and spans of token ids out. Texts are streamed."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from pipeline.data.spans import one_each, packed, write_spans
from pipeline.data.tokens.tokenizer import pretrained_tokenizer, train_tokenizer
from pipeline.errors import UserError
from pipeline.files import batches, checked_table, replacing
from pipeline.params import BaseModel, Tokenize

TEXT = pa.schema({"text": pa.string()})
TEXTS_AT_ONCE = 1000
SAMPLE = 50_000  # texts that the tokenizer is trained on: enough to find a corpus's words


def write_tokens(params: Tokenize, base_model: BaseModel, texts: Path, out: Path) -> None:
    """Write the tokenizer (a folder) and the spans of the pretrain, train and heldout texts (Arrow) to ``out``.

    Raises UserError where a split that is needed has no span.
    """
    if base_model.source == "scratch":
        tokenizer = train_tokenizer(islice(read_texts(texts / "pretrain.arrow"), SAMPLE), params.vocabulary)
    else:
        tokenizer = pretrained_tokenizer(base_model)
    with replacing(out) as folder:
        tokenizer.save_pretrained(folder / "tokenizer")
        for split in ("pretrain", "train", "heldout"):
            ids = encoded(read_texts(texts / f"{split}.arrow"), tokenizer)
            ids = tqdm(ids, desc=f"tokenize {split}", unit=" documents", mininterval=2)
            name = "pretrain_span" if split == "pretrain" else "span"
            if split == "pretrain" or params.packed:
                spans = packed(ids, getattr(params, name))
            else:
                spans = one_each(ids, params.span, tokenizer.pad_token_id, params.seed)
            needed = split != "pretrain" or base_model.pretrains
            if not write_spans(folder / f"{split}.arrow", spans) and needed:
                short = f"the {split} text is too short for one span"
                raise UserError(f"{short}: more documents, or a smaller tokenize.{name}")


def read_texts(path: Path) -> Iterator[str]:
    """Read the column ``text`` of an Arrow stream. Raises UserError at once where it is missing or broken."""
    checked_table(path, TEXT)
    stream = pa.ipc.open_stream(pa.OSFile(str(path)))  # read, not mapped: mapped pages would count as memory
    return (text for batch in stream for text in batch["text"].to_pylist())


def encoded(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[np.ndarray]:
    """Encode each text: its token ids (tokens,), with one end token last where the tokenizer has one."""
    encoder = tokenizer.backend_tokenizer  # a third faster than `tokenizer`, which makes masks and offsets too
    encoder.no_truncation()
    encoder.no_padding()
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for some in batches(texts, TEXTS_AT_ONCE):
        for encoding in encoder.encode_batch_fast(some):  # on as many threads as there are cores
            ids = encoding.ids
            yield np.array(ids if ids[-1:] == end else ids + end, np.int32)
