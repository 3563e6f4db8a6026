"""Tokenizers of three families, with all that a test of reading their tokens needs."""

from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from pipeline.data.tokens.tokenizer import train_tokenizer
from tests.local_hub import word_tokenizer

TEXTS = ["some text to learn from, and more text (A) to learn: don't 12.\n"] * 3
BYTE_LEVEL = train_tokenizer(TEXTS, 300)  # a leading space is a part of the word; any other character is bytes
METASPACE = word_tokenizer()  # SentencePiece-like: `▁` before words, dropped where a text is decoded from there


def byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama 2's: `▁`, and tokens like <0xC3> for what has no token; decoding drops one space at the start."""
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
