"""Where a step thinks: how many positions, which, and that a text's choice is its own."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline import params
from pipeline.data.spans import IGNORED
from pipeline.errors import UserError
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.training.quiet_star.trainer import LOSS_COLUMNS
from pipeline.training.quiet_star.where import Where, share_of
from tests.thought.tiny import LLAMA, quiet_star, random_ids
from tests.training.quiet_star.test_trainer import TRAIN, some_spans, trainer

LENGTHS = (12, 9, 2, 12)
SPACE = 7  # a token


class Letters:
    """A tokenizer whose tokens are letters, and a space."""

    def batch_decode(self, texts: list[list[int]]) -> list[str]:
        return [
            "".join(" " if i == SPACE else chr(ord("a") + i) for i in text) for text in texts or [[]]
        ]  # one of none, as transformers 5


def batch_of(rows: list[int]) -> dict[str, Tensor]:
    ids = random_ids(4, 12)
    mask = (torch.arange(12) < torch.tensor(LENGTHS)[:, None]).long()
    every = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORED)}
    return {name: values[rows] for name, values in (every | {"text_keys": torch.arange(4)}).items()}


@pytest.fixture(scope="module")
def model() -> QuietStarForCausalLM:
    return quiet_star(LLAMA)


def where(kind: str, share: float = 0.25, marker: str = "A:") -> Where:
    return Where(params.Thinking(kind, share, marker), Letters())


@pytest.mark.parametrize(
    ("kind", "share", "counts"),
    [
        ("random", 0.25, [3, 2, 1, 3]),
        ("random", 1.0, [11, 8, 1, 11]),
        ("entropy", 0.5, [6, 4, 1, 6]),
        ("one", 1, [1] * 4),
    ],
)
def test_so_many_positions_of_each_text_think_whatever_the_batch(model, kind, share, counts):
    """A share of the positions that have a true next token, rounded up."""
    chooser = where(kind, share)
    chosen = chooser.thinks(model, batch_of([0, 1, 2, 3]), seed=1)
    assert chosen.sum(1).tolist() == counts
    assert not (chosen & (torch.arange(12) >= torch.tensor(LENGTHS)[:, None] - 1)).any()
    for row in range(4):
        assert torch.equal(chooser.thinks(model, batch_of([row]), seed=1)[0], chosen[row])
    other = chooser.thinks(model, batch_of([0, 1, 2, 3]), seed=2)
    assert torch.equal(other, chosen) == (kind == "entropy" or share == 1.0 and kind == "random")


def test_a_share_is_rounded_up_but_not_for_its_own_rounding():
    assert share_of(torch.tensor([50, 45, 7]), 0.3).tolist() == [15, 14, 3]
    assert share_of(torch.tensor([45, 100]), 0.6).tolist() == [27, 60]


def test_by_entropy_the_least_certain_predictions_think(model):
    batch = batch_of([0, 1])
    chosen = where("entropy").thinks(model, batch, seed=1)
    with torch.no_grad():
        logits = model(batch["input_ids"], batch["attention_mask"]).base_logits
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    for row, length in enumerate(LENGTHS[:2]):
        inside = torch.arange(12) < length - 1
        assert entropy[row][chosen[row]].min() > entropy[row][inside & ~chosen[row]].max()


def test_after_a_marker_of_several_tokens(model):
    ids = torch.tensor([[0, 1, 2, 1, 2, 0, 1, 2], [3, 2, 1, 0, 3, 1, 2, 3]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, "text_keys": torch.arange(2)}
    chooser = where("marker", marker="bc")
    for _ in range(2):  # the second time no token is new
        chosen = chooser.thinks(model, batch, seed=1)
        assert chosen.nonzero().tolist() == [[0, 2], [0, 4], [1, 6]]  # not the last token, which has no target
    spaced = dict.fromkeys(("input_ids", "labels"), torch.tensor([[1, 2, SPACE, 3, SPACE, 1, 2, 0]] * 2))
    assert chooser.thinks(model, batch | spaced, seed=1)[0].nonzero().flatten().tolist() == [1, 2, 6]
    nowhere = batch | {name: torch.zeros_like(ids) for name in ("input_ids", "labels")}
    assert not chooser.thinks(model, nowhere, seed=1).any()


def test_a_marker_that_no_text_has_is_refused(tmp_path: Path):
    spans = some_spans(tmp_path / "spans.arrow")
    where("marker", marker="c").check(spans, 2)
    with pytest.raises(UserError, match="train.thinking.marker is 'zz', but no token of the first 8 training texts"):
        where("marker", marker="zz").check(spans, 2)
    with pytest.raises(UserError, match="always within the last 10 positions, where no thought is rewarded"):
        where("marker", marker="c").check(spans, 9)


@pytest.mark.parametrize("kind", ["random", "entropy", "one"])
def test_micro_batches_think_where_the_whole_batch_does(kind: str, tmp_path: Path):
    """Their losses are means over the chosen positions of the whole step; held-out losses are over every position."""
    spans, logs = some_spans(tmp_path / "spans.arrow", last=6), []
    for parts in (1, 4):
        settings = replace(TRAIN, steps=2, batch_size=8 // parts, accumulation=parts)
        logs.append(trainer(quiet_star(LLAMA), spans, settings, where=where(kind)).run())
    for row, other in zip(*logs, strict=True):
        for name in set(row) & {*LOSS_COLUMNS, "eval_talk_loss"}:
            assert other[name] == pytest.approx(row[name], rel=1e-5, abs=1e-8), name
    every = trainer(quiet_star(LLAMA), spans, TRAIN).evaluate()
    assert logs[0][0]["eval_talk_loss"] == pytest.approx(every["eval_talk_loss"], rel=1e-6)
