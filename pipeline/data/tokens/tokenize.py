"""From documents to spans of token ids, and the tokenizer that does it."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
from datasets import IterableDataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from pipeline.data.spans import SPANS
from pipeline.data.tokens import documents
from pipeline.data.tokens import packing as spans
from pipeline.data.tokens.tokenizer import pretrained_tokenizer, train_tokenizer
from pipeline.errors import UserError
from pipeline.files import batches, new_path, write_tables
from pipeline.params import BaseModel, Tokenize

SPANS_AT_ONCE = 2000
TOKENIZER_DOCUMENTS = 50_000  # enough to find a corpus's words


def write_tokens(params: Tokenize, base_model: BaseModel, texts: Path, out: Path) -> None:
    """Write the tokenizer (a folder) and the spans of the pretrain, train and heldout texts (Arrow) to ``out``."""
    from_scratch = base_model.source == "scratch"
    if from_scratch:
        learned_from = documents.read(texts / "pretrain.arrow").take(TOKENIZER_DOCUMENTS)
        tokenizer = train_tokenizer((row["text"] for row in learned_from), params.vocabulary)
    else:
        tokenizer = pretrained_tokenizer(base_model)
    with new_path(out) as folder:
        tokenizer.save_pretrained(folder / "tokenizer")
        for split in ("pretrain", "train", "heldout"):
            rows = _spans(split, params, tokenizer, documents.read(texts / f"{split}.arrow"))
            tables = (_table(some) for some in batches(rows, SPANS_AT_ONCE))
            found = write_tables(folder / f"{split}.arrow", tables, SPANS)
            if not found and (from_scratch or split != "pretrain"):
                parameter = "tokenize.pretrain_span" if split == "pretrain" else "tokenize.span"
                raise UserError(f"the {split} text is too short for one span: more documents, or a smaller {parameter}")


def _spans(
    split: str, params: Tokenize, tokenizer: PreTrainedTokenizerBase, texts: IterableDataset
) -> Iterable[spans.Span]:
    ids = tqdm(documents.encoded(texts, tokenizer), desc=f"tokenize {split}", unit=" documents", mininterval=2)
    if split == "pretrain":
        return spans.packed(ids, params.pretrain_span)
    if params.packed:
        return spans.packed(ids, params.span)
    return spans.one_each(ids, params.span, tokenizer.pad_token_id, params.seed)


def _table(some: list[spans.Span]) -> pa.Table:
    ids, lengths = zip(*some, strict=True)
    return pa.table({"input_ids": list(ids), "length": lengths}, schema=SPANS)
