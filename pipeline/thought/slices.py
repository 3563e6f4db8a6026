"""Work on a slice of positions at a time, so that memory holds one slice's activations (gradient accumulation).

The loss is a sum over positions once the text has been read, so each slice's gradients can be computed right after its
own forward pass. They are added up and handed to autograd as those of the whole: to its caller the sum is an ordinary
differentiable function.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from .head import scaled

Report = TypeVar("Report")
Run = Callable[[slice, Tensor, Sequence[Tensor]], tuple[Tensor, Report]]


def slices_of(count: int, size: int | None) -> list[slice]:
    """``range(count)`` in slices of ``size``; in one where that is None."""
    size = size or max(count, 1)
    return [slice(start, min(start + size, count)) for start in range(0, max(count, 1), size)]


def sum_over(
    slices: Sequence[slice], run: Run, rows: Tensor, shared: Sequence[Tensor], parameters: Sequence[Tensor]
) -> tuple[Tensor, list[Report]]:
    """The sum of the losses that ``run(slice, its part of rows, shared)`` gives, and what it reports of each slice.

    ``rows`` (B, R, N, ...) are cut along N; ``parameters`` are whatever else the losses depend on. With one slice, or
    without gradients, this is a plain loop.
    """
    if len(slices) == 1 or not torch.is_grad_enabled():
        results = [run(part, rows[:, :, part], shared) for part in slices]
        return sum(loss for loss, _ in results), [report for _, report in results]
    reports: list[Report] = []
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    return _SumOverSlices.apply(slices, run, reports, len(shared), rows, *shared, *parameters), reports


class _SumOverSlices(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        slices: Sequence[slice],
        run: Run,
        reports: list[Report],
        count: int,
        rows: Tensor,
        *others: Tensor,
    ) -> Tensor:
        shared = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in others[:count]]
        wanted = [tensor for tensor in (*shared, *others[count:]) if tensor.requires_grad]
        sums: list[Tensor | None] = [None] * len(wanted)
        to_rows = torch.empty_like(rows)
        total = 0.0
        for part in slices:
            own = rows[:, :, part].detach().requires_grad_()
            with torch.enable_grad():
                loss, report = run(part, own, shared)
            with torch.autocast(loss.device.type, enabled=False):
                to_rows[:, :, part], *new = torch.autograd.grad(loss, [own, *wanted], allow_unused=True)
            sums = [_plus(some, gradient) for some, gradient in zip(sums, new, strict=True)]
            reports.append(report)
            total = total + loss.detach()
            del own, loss, new  # or the next slice would find this one's gradients still in memory
        found = iter(sums)
        ctx.gradients = [to_rows, *(next(found) if x.requires_grad else None for x in (*shared, *others[count:]))]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, None, *scaled(ctx, gradient)


def _plus(total: Tensor | None, new: Tensor | None) -> Tensor | None:
    if total is None:
        return None if new is None else new.clone()  # autograd may hand out views of one buffer
    return total if new is None else total.add_(new)
