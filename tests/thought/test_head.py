"""The head's losses and gradients: against all logits at once and autograd, and what they hold meanwhile."""

import math
from collections.abc import Callable, Sequence
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.thought import head as head_module
from pipeline.thought.head import BANNED_LOGIT, IGNORED, Head, HeadLosses, ban, exact_dtype
from tests.thought.tiny import Largest, normal, rows_of, some_ignored

VOCABULARY, WIDTH = 7, 5
DOUBLE = torch.float64
EXACT = {torch.float64: 1e-12, torch.float32: 2e-6}


Group = dict[str, object]  # what one call of `HeadLosses.cross_entropy` gets
Losses = Callable[[Head, Sequence[Group]], tuple[Tensor, list[Tensor]]]


def some_head(
    bias: bool = False, softcap: float | None = None, scale: float = 1.0, dtype: torch.dtype = DOUBLE
) -> Head:
    own = normal(VOCABULARY, seed=4, dtype=dtype).requires_grad_() if bias else None
    return Head(normal(VOCABULARY, WIDTH, seed=3, dtype=dtype).requires_grad_(), own, softcap, scale)


def some_group(*shape: int, seed: int = 6, dtype: torch.dtype = DOUBLE, **options: object) -> Group:
    """Rows with a third of their targets ignored, and weights of both signs, a third of them 0, unless given."""
    hidden, weights = normal(*shape, WIDTH, seed=seed, dtype=dtype).requires_grad_(), normal(*shape, seed=5)
    targets = some_ignored(*shape, seed=seed + 1, below=VOCABULARY - len(options.get("banned", ())))
    weights = weights.masked_fill(weights.abs() < 0.4, 0.0).to(dtype)
    return {"hidden": hidden, "targets": targets, "weights": weights, **options}


def in_chunks(head: Head, groups: Sequence[Group]) -> tuple[Tensor, list[Tensor]]:
    losses = HeadLosses(head)
    found = [losses.cross_entropy("part", **group) for group in groups]
    assert not any(nll.requires_grad for _, nll in found)
    return losses.attach(sum(loss for loss, _ in found), {})[0], [nll for _, nll in found]


def at_once(head: Head, groups: Sequence[Group]) -> tuple[Tensor, list[Tensor]]:
    loss, nlls = torch.zeros((), dtype=exact_dtype(head.weight)), []
    for group in groups:
        logits, targets, weights = head.logits(group["hidden"]), group["targets"], group["weights"]
        banned = torch.tensor(group.get("banned", ()), dtype=torch.long)
        logits = logits.to(exact_dtype(logits)).index_fill(-1, banned, BANNED_LOGIT)
        rows = (logits / group.get("temperature", 1.0)).flatten(0, -2)
        nll = F.cross_entropy(rows, targets.flatten(), ignore_index=IGNORED, reduction="none").view(targets.shape)
        loss = loss + (nll * weights).sum()
        nlls.append(nll.detach() if group.get("complete", True) else nll.detach().masked_fill(weights == 0, 0.0))
    return loss, nlls


def results(losses: Losses, head: Head, groups: Sequence[Group], factor: float = 1.0) -> list[Tensor]:
    """Loss, cross-entropies and the gradients, of ``factor`` times the loss, of hidden states, weight and bias."""
    leaves = [*(group["hidden"] for group in groups), head.weight, *([] if head.bias is None else [head.bias])]
    loss, nlls = losses(head, groups)
    return [loss.detach(), *nlls, *torch.autograd.grad(factor * loss, leaves)]


def assert_close(actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    """Each to ``tolerance`` of its reference's largest entry."""
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        assert other.isfinite().all()
        largest = other.abs().max().item() if other.numel() else 1.0
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * max(1.0, largest))


HEADS = pytest.mark.parametrize(
    "options",
    [{}, {"bias": True}, {"softcap": 2.0}, {"bias": True, "softcap": 2.0, "scale": 0.3}],
    ids=["plain", "bias", "softcap", "all"],
)


@given(
    shapes=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=1, max_size=3),
    chunk_logits=st.integers(1, 80),
    bias=st.booleans(),
    softcap=st.sampled_from([None, 2.0]),
    scale=st.sampled_from([1.0, 0.3, 4.0]),
    dtype=st.sampled_from(list(EXACT)),
    factor=st.sampled_from([1.0, 3.0, -0.25, 0.0]),
    options=st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([1.0, 0.5, 3.0]),
            "banned": st.sampled_from([[], [6], [5, 6]]),
            "complete": st.booleans(),
        }
    ),
)
def test_losses_and_gradients_are_those_of_all_logits_at_once(
    shapes, chunk_logits, bias, softcap, scale, dtype, factor, options
):
    """In chunks of any size, for groups without rows too. No product has more rows than a chunk."""
    head = some_head(bias, softcap, scale, dtype)
    groups = [some_group(*shape, seed=10 * i, dtype=dtype, **options) for i, shape in enumerate(shapes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(head_module.CHUNK_LOGITS, "cpu", chunk_logits)
        counts = rows_of(HeadLosses, "_logits", patch)
        actual = results(in_chunks, head, groups, factor)
    assert_close(actual, results(at_once, head, groups, factor), EXACT[dtype])
    assert max(counts, default=0) <= max(1, chunk_logits // VOCABULARY)


@HEADS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_never_exceed_a_chunk(monkeypatch, options, dtype):
    monkeypatch.setitem(head_module.CHUNK_LOGITS, "cpu", 6 * VOCABULARY)
    head, groups = some_head(**options, dtype=dtype), [some_group(4, 10, dtype=dtype, banned=[6])]
    chunk = 6 * (1 if dtype == torch.float32 else head_module.LOW_PRECISION)
    for losses, rows in ((in_chunks, chunk), (at_once, 40)):
        with Largest(VOCABULARY) as largest:
            results(losses, head, groups)
        assert largest.elements == rows * VOCABULARY


@pytest.mark.parametrize("complete", [True, False])
def test_rows_of_weight_0_have_a_forward_pass_only_if_complete(monkeypatch, complete):
    weights = torch.tensor([0.0, 2.0, 0.0, 0.0, -1.0], dtype=DOUBLE)
    targets = torch.tensor([1, 2, 3, IGNORED, 4])
    head = some_head()
    group = some_group(5, targets=targets, weights=weights, complete=complete)
    nll, gradient = results(at_once, head, [group])[1:3]
    counts = rows_of(HeadLosses, "_logits", monkeypatch)
    actual = results(in_chunks, head, [group])
    assert sum(counts) == (4 if complete else 2)
    assert actual[1].ne(0).tolist() == [complete, True, complete, False, True]
    assert actual[2].any(-1).tolist() == [False, True, False, False, True]
    assert_close(actual[1:3], [nll, gradient], 1e-12)


def test_a_banned_target_is_a_constant():
    """As in a given thought that holds a meta-token: its logit does not depend on the states."""
    weights, head = torch.ones(4, dtype=DOUBLE), some_head()
    group = some_group(4, targets=torch.tensor([6, 1, 6, 2]), weights=weights, banned=(6,), temperature=3.0)
    assert_close(results(in_chunks, head, [group]), results(at_once, head, [group]), 1e-12)


@pytest.mark.parametrize("learns", [flags for flags in product([True, False], repeat=3) if any(flags)], ids=str)
def test_what_is_frozen_changes_no_other_gradient(learns):
    """Hidden states, weight and bias, each learning or frozen. Two backward passes add up."""
    head, group = some_head(bias=True), some_group(2, 6)
    expected = results(at_once, head, [group])[2:]
    leaves = [group["hidden"], head.weight, head.bias]
    for leaf, learning in zip(leaves, learns, strict=True):
        leaf.requires_grad_(learning)
    for _ in range(2):
        in_chunks(head, [group])[0].backward()
    for leaf, learning, gradient in zip(leaves, learns, expected, strict=True):
        assert (leaf.grad is not None) == learning
        if learning:
            assert_close([leaf.grad], [2 * gradient], 1e-12)


def test_parts_that_are_kept_apart_have_gradients_of_their_own():
    """And the sum of all parts has the sum of theirs."""
    head, groups = some_head(bias=True, softcap=2.0), [some_group(3, i + 1, seed=10 * i) for i in range(3)]
    losses = HeadLosses(head, apart=True)
    found = {name: losses.cross_entropy(name, **group)[0] for name, group in zip("abc", groups, strict=True)}
    total, parts = losses.attach(sum(found.values()), found)
    torch.testing.assert_close(total, sum(parts.values()))
    for part, group in zip(parts.values(), groups, strict=True):
        gradients = torch.autograd.grad(part, [group["hidden"], head.weight, head.bias])
        assert_close(gradients, results(at_once, head, [group])[2:], 1e-12)


@pytest.mark.parametrize("frozen", [False, True], ids=["learning head", "frozen head"])
def test_there_is_one_backward_pass(frozen):
    head = some_head()
    head.weight.requires_grad_(not frozen)
    loss, _ = in_chunks(head, [some_group(2, 6)])
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        loss.backward()


@HEADS
@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16", "autocast"])
def test_low_precision_is_close_to_float32(options, autocast):
    """Cross-entropies are float32, gradients of the parameters' dtype."""

    def solve(dtype: torch.dtype) -> list[Tensor]:
        groups = [some_group(4, 8, dtype=dtype, temperature=2.0)]
        return results(in_chunks, some_head(**options, dtype=dtype), groups)

    expected, own = solve(torch.float32), torch.float32 if autocast else torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        actual = solve(own)
    assert {tensor.dtype for tensor in actual[:2]} == {torch.float32}
    assert {tensor.dtype for tensor in actual[2:]} == {own}
    assert_close([tensor.float() for tensor in actual], expected, 0.03)
    assert all(one.ne(other).any() for one, other in zip(actual, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("order", [[0, 1], [1, 0]], ids=["last", "first"])
def test_improbable_targets_have_exact_losses(dtype, order):
    """One of probability e^-200, whose softmax is 0 in float32."""
    rows = torch.tensor([[0.0, -200.0]], dtype=dtype)[:, order].requires_grad_()
    head = Head(torch.eye(2, dtype=dtype, requires_grad=True))
    group = {"hidden": rows, "targets": torch.tensor([order.index(1)]), "weights": torch.ones(1)}
    _, nll, gradient, _ = results(in_chunks, head, [group])
    assert nll.item() == 200.0
    assert gradient[:, order].tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize("dtype", EXACT, ids=str)
def test_large_logits_have_exact_losses(dtype):
    """A constant that all logits share changes nothing, and a certain target costs nothing."""
    rows = torch.tensor([[1000.0, 1000.0], [1000.0, 0.0], [-1000.0, -1000.0]], dtype=dtype)
    group = {"hidden": rows, "targets": torch.tensor([0, 0, 1]), "weights": torch.ones(3)}
    _, (nll,) = in_chunks(Head(torch.eye(2, dtype=dtype)), [group])
    assert nll.tolist() == pytest.approx([math.log(2), 0.0, math.log(2)])


def test_logits_are_linear_up_to_their_cap():
    head, hidden = some_head(bias=True), normal(3, 4, WIDTH)
    expected = hidden @ head.weight.T + head.bias
    torch.testing.assert_close(head.logits(hidden), expected)
    capped = Head(head.weight, head.bias, 2.0).logits(hidden)
    torch.testing.assert_close(capped, 2 * torch.tanh(expected / 2))
    assert capped.abs().max() < 2 < expected.abs().max()


def test_ban_leaves_the_other_logits_and_makes_them_at_least_float32():
    logits = torch.randn(2, 5)
    banned = ban(logits.clone(), [1, 4])
    assert (banned[:, [1, 4]] == BANNED_LOGIT).all()
    assert torch.equal(banned[:, [0, 2, 3]], logits[:, [0, 2, 3]])
    for dtype, exact in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (DOUBLE, DOUBLE)):
        assert ban(logits.to(dtype), []).dtype == exact_dtype(logits.to(dtype)) == exact
