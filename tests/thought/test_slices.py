"""Sums over slices of positions: against plain autograd, and what they hold meanwhile."""

import gc
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.thought.slices import Run, slices_of, sum_over
from tests.thought.tiny import error, normal

TEXTS, THOUGHTS, POSITIONS, WIDTH = 2, 3, 7, 4


class Problem:
    """Rows and shared tensors that come from leaves of their own, and parameters that not every slice uses."""

    def __init__(self) -> None:
        self.leaf = normal(TEXTS, THOUGHTS, POSITIONS, 2, WIDTH).requires_grad_()
        self.text = normal(TEXTS, POSITIONS, WIDTH, seed=1).requires_grad_()
        self.fixed = normal(WIDTH, seed=2)
        self.always, self.early, self.late, self.never, self.frozen = (
            nn.Parameter(normal(WIDTH, WIDTH, seed=3 + i)) for i in range(5)
        )
        self.frozen.requires_grad_(False)
        self.parameters = [self.always, self.early, self.late, self.never, self.frozen]
        self.rows, self.shared = self.leaf.sin(), [self.text.exp(), self.fixed]
        self.calls: list[slice] = []
        self.needed: set[tuple[bool, ...]] = set()

    def run(self, part: slice, rows: Tensor, shared: Sequence[Tensor]) -> tuple[Tensor, slice]:
        self.calls.append(part)
        self.needed.add((rows.requires_grad, *(tensor.requires_grad for tensor in shared)))
        text, fixed = shared
        states = torch.tanh(rows @ self.always + text[:, None, part, None]) + text.sum(1)[:, None, None, None] * fixed
        states = states @ self.frozen
        if part.start == 0:
            states = states @ self.early
        if part.stop == POSITIONS:
            states = states * self.late.sum(0)
        return states.square().sum() * (1 + part.start), part

    def gradients(self) -> list[Tensor | None]:
        return [x.grad for x in (self.leaf, self.text, self.fixed, *self.parameters)]


def autograd(slices: Sequence[slice], run: Run, rows: Tensor, shared: Sequence[Tensor], _: object) -> tuple:
    """What `sum_over` stands for."""
    results = [run(part, rows[:, :, part], shared) for part in slices]
    return sum(loss for loss, _ in results), [report for _, report in results]


def solve(method: Callable, size: int | None) -> tuple[Problem, Tensor]:
    problem = Problem()
    slices = slices_of(POSITIONS, size)
    loss, problem.reports = method(slices, problem.run, problem.rows, problem.shared, problem.parameters)
    return problem, loss


@given(st.integers(0, 40), st.one_of(st.none(), st.integers(1, 50)))
def test_slices_cover_the_range_once(count, size):
    """In one slice without a position where there is none."""
    slices = slices_of(count, size)
    assert [i for part in slices for i in range(part.start, part.stop)] == list(range(count))
    assert all(part.stop - part.start == size for part in slices[:-1])
    assert len(slices) == 1 or 0 < slices[-1].stop - slices[-1].start <= size
    assert len(slices) == (max(1, -(-count // size)) if size else 1)


@pytest.mark.parametrize("size", [1, 2, 3, 6, POSITIONS, 100, None])
@pytest.mark.parametrize("factor", [1.0, -0.3])
def test_a_sum_has_the_gradients_of_autograd(size, factor):
    """With an upstream factor and another loss beside it. Each slice runs once, its report is in its place."""
    (actual, loss), (expected, other) = solve(sum_over, size), solve(autograd, size)
    assert actual.calls == actual.reports == slices_of(POSITIONS, size)
    assert actual.needed == {(True, True, False)}
    for problem, total in ((actual, loss), (expected, other)):
        (factor * total + problem.leaf.sum() + problem.always.square().sum()).backward()
    torch.testing.assert_close(loss, other, rtol=1e-12, atol=0)
    for one, wanted in zip(actual.gradients(), expected.gradients(), strict=True):
        assert (one is None) == (wanted is None)
        if wanted is not None:
            assert wanted.any()
            assert error(one, wanted) < 1e-12
    assert actual.never.grad is actual.frozen.grad is actual.fixed.grad is None


def test_gradients_that_are_one_tensor_are_added_up_apart():
    """Autograd gives both terms of a sum the same gradient tensor."""
    rows, one, other = (normal(1, 1, 4, seed=i).requires_grad_() for i in range(3))
    loss, _ = sum_over(
        slices_of(4, 1), lambda part, own, shared: (((shared[0] + shared[1]) * own).sum(), None), rows, [one, other], []
    )
    loss.backward()
    for tensor in (one, other):
        torch.testing.assert_close(tensor.grad, rows.detach().sum().expand(1, 1, 4), rtol=1e-12, atol=0)


def test_a_slice_finds_no_gradients_of_the_one_before():
    """But their sums: one tensor of the parameter's size, beside the parameter."""
    parameter, found = torch.ones(12_345, requires_grad=True), []

    def run(part: slice, rows: Tensor, shared: Sequence[Tensor]) -> tuple[Tensor, None]:
        gc.collect()
        tensors = [x for x in gc.get_objects() if isinstance(x, Tensor) and x.numel() == parameter.numel()]
        found.append(len({x.untyped_storage().data_ptr() for x in tensors}))
        return (parameter * rows.sum()).sum(), None

    sum_over(slices_of(6, 2), run, torch.ones(1, 1, 6, requires_grad=True), [], [parameter])
    assert found == [1, 2, 2]
