"""From documents to spans of token ids, and the tokenizer that does it."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from pipeline.errors import UserError
from pipeline.files import new_path, read_rows, write_rows
from pipeline.params import BaseModel, Tokenize
from pipeline.tokens import spans
from pipeline.tokens.tokenizer import pretrained_tokenizer, train_tokenizer

SPANS = pa.schema({"input_ids": pa.list_(pa.int32()), "length": pa.int32()})
TOKENIZER_DOCUMENTS = 50_000  # enough to find a corpus's words


def write_tokens(params: Tokenize, base_model: BaseModel, texts: Path, out: Path) -> None:
    """Write the tokenizer (a folder) and the spans of the pretrain, train and heldout texts (Parquet) to ``out``."""
    from_scratch = base_model.source == "scratch"
    if from_scratch:
        tokenizer = train_tokenizer(islice(_texts(texts, "pretrain"), TOKENIZER_DOCUMENTS), params.vocabulary)
    else:
        tokenizer = pretrained_tokenizer(base_model)
    with new_path(out) as folder:
        tokenizer.save_pretrained(folder / "tokenizer")
        rows = spans.packed(_ids(texts, "pretrain", tokenizer), params.pretrain_span)
        _write(rows, folder / "pretrain.parquet", "tokenize.pretrain_span", needed=from_scratch)
        for split in ("train", "heldout"):
            ids = _ids(texts, split, tokenizer)
            if params.packed:
                rows = spans.packed(ids, params.span)
            else:
                rows = spans.one_each(ids, params.span, tokenizer.pad_token_id, params.seed)
            _write(rows, folder / f"{split}.parquet", "tokenize.span", needed=True)


def _texts(folder: Path, split: str) -> Iterable[str]:
    return (row["text"] for row in read_rows(folder / f"{split}.parquet"))


def _ids(folder: Path, split: str, tokenizer: PreTrainedTokenizerBase) -> Iterable[list[int]]:
    return spans.document_ids(
        tqdm(_texts(folder, split), desc=f"tokenize {split}", unit=" documents", mininterval=2), tokenizer
    )


def _write(rows: Iterable[spans.Span], path: Path, parameter: str, needed: bool) -> None:
    if write_rows(path, rows, SPANS) == 0 and needed:
        raise UserError(f"the {path.stem} text is too short for one span: more documents, or a smaller {parameter}")
