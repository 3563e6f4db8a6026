"""The LM head: logits, and cross-entropies that never hold more than a chunk of them (paper, section 4.3).

The rows of a training step (B*N of the text, B*R*N*A that talk, B*R*N*K that thought) times the vocabulary are the
largest thing in Quiet-STaR. How much each row's loss counts is known before its logits are, so the gradients are
computed in the forward pass, chunk by chunk, and the logits are thrown away at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

IGNORED = -100
BANNED_LOGIT = -1e10
CHUNK_LOGITS = 2**23  # logits held at once: 32 MiB in float32


@dataclass(frozen=True)
class Group:
    """Rows that the head predicts from: hidden states (..., D), targets (...) of which IGNORED ones cost nothing.

    ``weigh`` gives each row's weight (...) in the loss, from the cross-entropies of the groups before this one. Rows of
    weight 0 have no backward pass and, unless ``complete``, no forward pass either. ``banned`` tokens have no
    probability.
    """

    hidden: Tensor
    targets: Tensor
    weigh: Callable[[Sequence[Tensor]], Tensor]
    temperature: float = 1.0
    banned: Sequence[int] = ()
    complete: bool = True


@dataclass(frozen=True)
class Head:
    """``weight`` (V, D), ``bias`` (V,) or None, and the cap that some models put on their logits."""

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias)
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


def ban(logits: Tensor, banned: Sequence[int]) -> Tensor:
    """``logits`` (..., V), in at least float32, with those of ``banned`` ids at -1e10: in place where they can be."""
    logits = logits.to(exact_dtype(logits))
    if banned:
        logits[..., list(banned)] = BANNED_LOGIT
    return logits


def exact_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of losses and probabilities: at least float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


class HeadLosses:
    """The losses of one step. Every `losses` adds to one gradient of the head's weight, which `attach` hands on.

    Matrix products are in autocast's dtype where that is on, everything else is in at least float32.
    """

    def __init__(self, head: Head):
        self._head = head
        device = head.weight.device.type
        autocast = torch.is_autocast_enabled(device)
        self._weight = head.weight.detach().to(torch.get_autocast_dtype(device) if autocast else head.weight.dtype)
        self._exact = exact_dtype(self._weight)
        self._gradients = [
            torch.zeros_like(p, dtype=self._exact)
            if p is not None and p.requires_grad and torch.is_grad_enabled()
            else None
            for p in (head.weight, head.bias)
        ]

    def losses(self, groups: Sequence[Group]) -> tuple[Tensor, list[Tensor]]:
        """The weighted sum of all cross-entropies, differentiable in the hidden states, and each group's (...).

        In nats; 0 where a target is IGNORED, or a row of weight 0 left out. The loss must be added to the total as it
        is: the gradient of the head's weight is that of the sum.
        """
        loss, *nlls = _HiddenGradients.apply(self, groups, *(group.hidden for group in groups))
        return loss, nlls

    def attach(self, total: Tensor) -> Tensor:
        """The sum of all losses so far, differentiable in the head's weight and bias too."""
        if self._gradients == [None, None]:
            return total
        gradients, self._gradients = self._gradients, [None, None]
        return _WeightGradients.apply(gradients, total, self._head.weight, self._head.bias)

    def run(self, group: Group, hidden: Tensor, weights: Tensor, needed: bool) -> tuple[Tensor, Tensor | None]:
        """Cross-entropies (...) of a group, and the gradient of its ``hidden`` states where it is ``needed``."""
        states, targets, weights = hidden.flatten(0, -2), group.targets.flatten(), weights.flatten()
        nll = torch.zeros_like(targets, dtype=self._exact)
        space = self._weight.new_empty(max(1, CHUNK_LOGITS // len(self._weight)), len(self._weight), dtype=self._exact)
        gradient = torch.zeros_like(states) if needed else None
        learning = (weights != 0) & (needed or self._gradients != [None, None])
        counted = (targets != IGNORED) & ((weights != 0) | group.complete)
        for rows in (counted & ~learning).nonzero().squeeze(1).split(len(space)):
            nll[rows] = self._predict(group, states[rows], targets[rows], space[: len(rows)])[0]
        for rows in (counted & learning).nonzero().squeeze(1).split(len(space)):
            nll[rows], change = self._predict(group, states[rows], targets[rows], space[: len(rows)])
            scale = weights[rows, None].to(change.dtype) / group.temperature
            if gradient is not None:
                gradient[rows] = (change @ self._weight).mul_(scale).to(gradient.dtype)
            self._gather(change, states[rows].to(change.dtype), scale)
        return nll.view(group.targets.shape), None if gradient is None else gradient.view(hidden.shape)

    def _predict(self, group: Group, states: Tensor, targets: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Of rows (m, D): cross-entropies (m,), and their gradient (m, V) with respect to the head's product.

        ``logits`` (m, V) is the space to work in.
        """
        slope, softcap = 1.0, self._head.softcap
        if logits.dtype == self._weight.dtype:
            torch.mm(states.to(logits.dtype), self._weight.T, out=logits)
        else:
            logits.copy_(states.to(self._weight.dtype) @ self._weight.T)
        if self._head.bias is not None:
            logits.add_(self._head.bias)
        if softcap is not None:
            logits.div_(softcap).tanh_()
            slope = 1 - logits.square()
            logits.mul_(softcap)
        if group.banned:
            logits[:, list(group.banned)] = BANNED_LOGIT
        if group.temperature != 1:
            logits.div_(group.temperature)
        nll = _nll_and_softmax(logits, targets.unsqueeze(1))
        logits.scatter_add_(1, targets.unsqueeze(1), logits.new_full((len(targets), 1), -1.0))
        if group.banned:
            logits[:, list(group.banned)] = 0  # what is no function of the states has no gradient, even as a target
        return nll, (logits if softcap is None else logits.mul_(slope)).to(self._weight.dtype)

    def _gather(self, change: Tensor, states: Tensor, scale: Tensor) -> None:
        to_weight, to_bias = self._gradients
        if to_weight is not None and to_weight.dtype == change.dtype:
            to_weight.addmm_(change.T, states * scale)
        elif to_weight is not None:
            to_weight.add_(change.T @ (states * scale))
        if to_bias is not None:
            to_bias.add_((change * scale).sum(0))


class _HiddenGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, head: HeadLosses, groups: Sequence[Group], *hidden: Tensor) -> tuple[Tensor, ...]:
        nlls, ctx.gradients, total = [], [], 0.0
        with torch.autocast(hidden[0].device.type, enabled=False):
            for group, states, needed in zip(groups, hidden, ctx.needs_input_grad[2:], strict=True):
                weights = group.weigh(nlls)
                nll, gradient = head.run(group, states, weights, needed)
                nlls.append(nll)
                ctx.gradients.append(gradient)
                total = total + (nll * weights).sum()
        ctx.mark_non_differentiable(*nlls)
        return total, *nlls

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *scaled(ctx, gradient)


class _WeightGradients(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, gradients: list[Tensor | None], total: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.gradients = [g if g is None else g.to(weight.dtype) for g in gradients]
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, gradient, *scaled(ctx, gradient)


def scaled(ctx: FunctionCtx, gradient: Tensor) -> list[Tensor | None]:
    """``ctx.gradients``, computed in the forward pass, times ``gradient``: in place, as they are large, and once."""
    gradients, ctx.gradients = ctx.gradients, None
    if gradients is None:
        raise RuntimeError("a Quiet-STaR loss has one backward pass: its gradients were computed in the forward pass")
    return [g if g is None else g.mul_(gradient.to(g.dtype)) for g in gradients]


def _nll_and_softmax(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropies (m,) of ``targets`` (m, 1); ``logits`` (m, V) become probabilities, in place.

    The sum that normalises the softmax is one over its largest probability: no second pass of exponentials.
    """
    largest, wanted = logits.amax(-1), logits.gather(1, targets).squeeze(1)
    torch.softmax(logits, -1, out=logits)
    return largest - wanted - logits.amax(-1).log()
