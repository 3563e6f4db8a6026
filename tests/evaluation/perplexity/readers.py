"""Tokenizers of three families, with all that a test of reading their tokens needs, and files of spans."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from pipeline.data.spans import SPANS, Spans
from pipeline.data.tokens.tokenizer import train_tokenizer
from pipeline.files import write_rows
from tests.local_hub import word_tokenizer

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
