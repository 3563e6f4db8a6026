"""Work on a slice of positions at a time, so that memory holds one slice's activations (gradient accumulation).

The loss is a sum over positions once the text has been read, so each slice's gradients can be computed right after its
own forward pass. They are added up and handed to autograd as those of the whole: to its caller the sum is an ordinary
differentiable function.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from .head import with_gradients

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
    cut = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in shared]
    inputs = [tensor for tensor in (*shared, *parameters) if tensor.requires_grad]
    wanted = [tensor for tensor in (*cut, *parameters) if tensor.requires_grad]
    sums: list[Tensor | None] = [None] * len(wanted)
    to_rows, total, reports = torch.empty_like(rows), 0.0, []
    for part in slices:
        own = rows[:, :, part].detach().requires_grad_()
        loss, report = run(part, own, cut)
        with torch.autocast(loss.device.type, enabled=False):
            to_rows[:, :, part], *new = torch.autograd.grad(loss, [own, *wanted], allow_unused=True)
        sums = [_plus(some, gradient) for some, gradient in zip(sums, new, strict=True)]
        reports.append(report)
        total = total + loss.detach()
        del own, loss, new  # or the next slice would find this one's gradients still in memory
    return with_gradients(total, [rows, *inputs], [to_rows, *sums]), reports


def _plus(total: Tensor | None, new: Tensor | None) -> Tensor | None:
    if total is None:
        return None if new is None else new.clone()  # autograd may hand out views of one buffer
    return total if new is None else total.add_(new)
