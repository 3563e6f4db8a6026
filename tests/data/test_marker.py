"""Where a text ends with the marker, while it is written: the places that training and evaluation find."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pipeline.data.marker import ends_with, follow_marker
from tests.evaluation.perplexity.made_up import BYTE_FALLBACK, BYTE_LEVEL, METASPACE


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, METASPACE, BYTE_FALLBACK], ids=["bytes", "words", "fallback"])
@pytest.mark.parametrize("marker", ["A:", "\N{THEREFORE}"])
def test_a_text_so_far_ends_with_it_where_the_whole_text_follows_it(tokenizer: PreTrainedTokenizerFast, marker: str):
    """Also in a batch padded on the left, whatever was asked before."""
    ids = torch.tensor([tokenizer(f"Q: than {marker} 7 or A {marker}  {marker}")["input_ids"]])
    whole, rule = follow_marker(ids, marker, tokenizer, {})[0].tolist(), ends_with(marker, tokenizer)

    def padded(text: Tensor) -> Tensor:
        return torch.cat([torch.full((1, 7), tokenizer.pad_token_id or 0), text], dim=1)

    assert False in whole and (True in whole) == (marker in tokenizer.decode(ids[0]))  # words lack the sign
    assert [rule(ids[:, : stop + 1]).item() for stop in range(ids.shape[1])] == whole
    assert [rule(padded(ids[:, : stop + 1])).item() for stop in range(ids.shape[1])] == whole


def test_a_token_may_hold_the_end_of_the_marker_and_a_space():
    pieces = Tokenizer(models.BPE({"A": 0, ":": 1, " ": 2, "7": 3, ": ": 4}, [(":", " ")]))
    pieces.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces)
    ids = torch.tensor([tokenizer("A: 7")["input_ids"]])
    assert ids.tolist() == [[0, 4, 3]]
    assert follow_marker(ids, "A:", tokenizer, {}).tolist() == [[False, True, False]]
