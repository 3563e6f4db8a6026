"""The LM head: logits, and cross-entropies that never hold more than a chunk of them (paper, section 4.3).

The rows of a training step (B*N of the text, B*R*N*A that talk, B*R*N*K that thought) times the vocabulary are the
largest thing in Quiet-STaR. A row's weight in the loss is known before its logits are computed, so the gradients are
computed in the forward pass, chunk by chunk, and the logits are thrown away at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

IGNORED = -100
BANNED_LOGIT = -1e10
CHUNK_LOGITS = {"cpu": 2**23, "cuda": 2**26}  # held at once: 32 MiB in float32, 256 MiB where kernels are wide
LOW_PRECISION = 4  # times as many on a CPU


def chunk_logits(device: str, low: bool) -> int:
    """How many logits are held at once on this type of ``device``, by a head in ``low`` precision or not.

    In low precision a chunk's gradient of the weight is a product of its own, which is then added to the sum in
    float32: on a CPU that takes longer than the chunk, unless it is large.
    """
    return CHUNK_LOGITS.get(device, CHUNK_LOGITS["cpu"]) * (LOW_PRECISION if low and device == "cpu" else 1)


def chunk_rows(weight: Tensor) -> int:
    """How many rows of logits are held at once, by a head with this weight (V, D)."""
    return max(1, chunk_logits(weight.device.type, weight.dtype != exact_dtype(weight)) // len(weight))


@dataclass(frozen=True)
class Head:
    """The LM head: ``weight`` (V, D), ``bias`` (V,) or None; some models scale their logits, and some then cap them."""

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias)
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


def ban(logits: Tensor, banned: Sequence[int]) -> Tensor:
    """``logits`` (..., V), in at least float32, with those of ``banned`` ids at -1e10; in place if possible."""
    logits = logits.to(exact_dtype(logits))
    if banned:
        logits[..., list(banned)] = BANNED_LOGIT
    return logits


def exact_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of losses and probabilities: float32, or the tensor's dtype if that is wider."""
    return torch.promote_types(tensor.dtype, torch.float32)


@dataclass(frozen=True)
class Mixed:
    """States after thoughts: ``talk`` (B, R, p, A, D), and ``mixed`` (B, R, p, A, D) with the text's by ``weight``.

    ``weight`` (B, R, p, A) is the share of ``talk``.
    """

    mixed: Tensor
    talk: Tensor
    weight: Tensor


@dataclass(frozen=True)
class ThoughtLosses:
    """Cross-entropies in nats, 0 where there is no target: ``nll`` (B, R, p, A) after thoughts, ``without`` (B, p, A).

    ``rounding`` (B, R, p, A): about how far rounding may have moved the difference of the two.
    """

    nll: Tensor
    without: Tensor
    rounding: Tensor


class HeadLosses:
    """The cross-entropies of one step, in named parts of its loss.

    Every call of `cross_entropy` adds to the gradient of the head's weight and bias; `attach` hands it on to autograd.
    ``apart`` keeps one such gradient for each part, so that each part has its own backward pass; otherwise there is one
    for the sum of all parts. Matrix products are in autocast's dtype where that is on, the rest in at least float32.
    """

    def __init__(self, head: Head, apart: bool = False):
        self._head, self._apart = head, apart
        device = head.weight.device.type
        autocast = torch.is_autocast_enabled(device)
        self._weight = head.weight.detach().to(torch.get_autocast_dtype(device) if autocast else head.weight.dtype)
        self._exact = exact_dtype(self._weight)
        self._learned = [
            p if p is not None and p.requires_grad and torch.is_grad_enabled() else None
            for p in (head.weight, head.bias)
        ]
        self._learns = any(p is not None for p in self._learned)
        self._gradients: dict[str, list[Tensor | None]] = {}  # of weight and bias, by part

    def cross_entropy(
        self,
        part: str,
        hidden: Tensor,
        targets: Tensor,
        weights: Tensor,
        temperature: float = 1.0,
        banned: Sequence[int] = (),
        complete: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """The weighted sum of the cross-entropies of ``targets`` (...), and each of them (...), in nats.

        ``hidden`` (..., D) are the states that the head predicts from; the sum is differentiable in them. ``weights``
        (...) say what each cross-entropy counts. It is 0 where a target is IGNORED. Rows of weight 0 have no backward
        pass and, unless ``complete``, no forward pass either: their cross-entropy is then 0 too. ``banned`` ids have no
        probability. Add the sum to the loss as it is: the gradient of the head's weight is that of the sum.
        """
        needed = hidden.requires_grad and torch.is_grad_enabled()
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            states, wanted, counts = hidden.flatten(0, -2), targets.flatten(), weights.flatten()  # (M, D), (M,), (M,)
            nll = torch.zeros_like(wanted, dtype=self._exact)
            size = chunk_rows(self._weight)
            space = self._weight.new_empty(size, len(self._weight), dtype=self._exact)
            gradient = torch.zeros_like(states) if needed else None
            learning = (counts != 0) & (needed or self._learns)
            computed = (wanted != IGNORED) & ((counts != 0) | complete)
            for rows in (computed & ~learning).nonzero().squeeze(1).split(size):
                logits = self._logits(states[rows], space[: len(rows)])
                nll[rows] = self._losses(logits, wanted[rows], temperature, banned, learns=False)[0]
            for rows in (computed & learning).nonzero().squeeze(1).split(size):
                logits = self._logits(states[rows], space[: len(rows)])
                nll[rows], change, _ = self._losses(logits, wanted[rows], temperature, banned)
                change = self._backward(part, change, states[rows], counts[rows] / temperature)
                if gradient is not None:
                    gradient[rows] = change.to(gradient.dtype)
            nll = nll.view(targets.shape)
            total = (nll * weights).sum()
        return with_gradients(total, [hidden], [gradient if gradient is None else gradient.view(hidden.shape)]), nll

    def with_thoughts(
        self, part: str, states: Mixed, text: Tensor, places: Tensor, targets: Tensor, weights: Tensor
    ) -> tuple[Tensor, ThoughtLosses]:
        """The weighted sum of the cross-entropies of ``targets`` (B, p, A) after thoughts, and each of them.

        ``text`` (M, D): states of the text pass; ``places`` (B, p, A): which of them predicts each target without a
        thought. ``weights`` (A,): what a cross-entropy counts at each distance. The sum is differentiable in the mixed
        states. Not these but the two predictions' *logits* are mixed here, in at least float32. That is the same, as
        the head is linear, but the rounding of the text's logits is now the same with a thought and without: it cancels
        where the two are compared, and a reward is a small difference.
        """
        mixed, talk, mixing = states.mixed, states.talk, states.weight.detach()
        (rationales, _, lookahead), needed = mixed.shape[1:4], mixed.requires_grad and torch.is_grad_enabled()
        with torch.no_grad(), torch.autocast(mixed.device.type, enabled=False):
            exact, low = torch.finfo(self._exact).eps, torch.finfo(self._weight.dtype).eps
            zeros = torch.zeros_like(mixing, dtype=self._exact)
            losses = ThoughtLosses(zeros, zeros[:, 0].clone(), zeros.clone())
            gradient = torch.zeros_like(mixed) if needed else None
            size = max(1, chunk_rows(self._weight) // ((rationales + 1) * lookahead))
            some = (targets != IGNORED).any(-1).nonzero()
            for b, i in (pairs.unbind(1) for pairs in some.split(size) if len(pairs)):
                rows, here = places[b, i].unique(return_inverse=True)  # of the text: (u,), (m, A)
                real, wanted = targets[b, i] != IGNORED, targets[b, i].clamp(min=0)
                target = torch.zeros_like(rows)
                target[here[real]] = wanted[real]
                base, weight = self._logits(text[rows]), mixing[b, :, i].to(self._exact)  # (u, V), (m, R, A)
                logits = self._logits(talk[b, :, i].flatten(0, 2))
                in_full = logits.view(*weight.shape, -1)
                torch.lerp(base[here].unsqueeze(1), in_full, weight.unsqueeze(-1), out=in_full)
                losses.without[b, i] = without = self._losses(base, target, learns=False)[0][here] * real
                wanted = wanted.unsqueeze(1).expand(weight.shape).flatten()
                nll, change, largest = self._losses(logits, wanted, learns=needed or self._learns)
                real = real.unsqueeze(1)
                losses.nll[b, :, i] = nll = nll.view(weight.shape) * real
                rounding = exact * (nll + without.unsqueeze(1)) + low * weight.abs() * largest.view(weight.shape)
                losses.rounding[b, :, i] = rounding * real
                if change is not None:
                    scale = (real * weights).expand(weight.shape).flatten()
                    change = self._backward(part, change, mixed[b, :, i].flatten(0, 2), scale)
                if needed:
                    gradient[b, :, i] = change.view(*weight.shape, -1).to(gradient.dtype)
            total = (losses.nll * weights).sum()
        return with_gradients(total, [mixed], [gradient]), losses

    def divergence(
        self, part: str, hidden: Tensor, talk: Tensor, mixing: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The weighted sum of KL(mean prediction after R thoughts || prediction without), and each (B, p), in nats.

        ``hidden`` (B, p, D): the states that predict without a thought; the sum is differentiable in these alone.
        ``talk`` (B, R, p, D): the states after the thoughts, and ``mixing`` (B, R, p), their share; as constants.
        ``weights`` (B, p): what each divergence counts; it is 0 and not computed where that is 0.
        """
        rationales, needed = talk.shape[1], hidden.requires_grad and torch.is_grad_enabled()
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            found = torch.zeros_like(weights, dtype=self._exact)
            gradient = torch.zeros_like(hidden) if needed else None
            size = max(1, chunk_rows(self._weight) // (rationales + 1))
            for b, i in (pairs.unbind(1) for pairs in weights.nonzero().split(size) if len(pairs)):
                student = self._logits(hidden[b, i])  # (m, V)
                teacher = self._logits(talk[b, :, i].flatten(0, 1)).unflatten(0, (-1, rationales))  # (m, R, V)
                torch.lerp(student.unsqueeze(1), teacher, mixing[b, :, i].to(self._exact).unsqueeze(-1), out=teacher)
                cap, slope = self._head.softcap, 1.0
                if cap is not None:
                    student, teacher = ((logits / cap).tanh() * cap for logits in (student, teacher))
                    slope = 1 - (student / cap).square()
                teacher, student = teacher.softmax(-1).mean(1), student.log_softmax(-1)
                found[b, i] = torch.nn.functional.kl_div(student, teacher, reduction="none").sum(-1)
                if needed or self._learns:
                    change = ((student.exp() - teacher) * slope).to(self._weight.dtype)
                    change = self._backward(part, change, hidden[b, i], weights[b, i])
                if needed:
                    gradient[b, i] = change.to(gradient.dtype)
            total = (found * weights).sum()
        return with_gradients(total, [hidden], [gradient]), found

    def attach(self, total: Tensor, parts: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """``total``, the sum of ``parts``, now differentiable in the head's weight and bias as well, and the parts.

        With ``apart`` each part is too; otherwise the parts are detached.
        """
        if not self._learns:
            return total, dict(parts)
        if self._apart:
            parts = {name: self._attach(name, loss) for name, loss in parts.items()}
            return sum(parts.values()), parts
        return self._attach("", total), {name: loss.detach() for name, loss in parts.items()}

    def _attach(self, part: str, loss: Tensor) -> Tensor:
        gradients = [g if g is None else g.to(self._head.weight.dtype) for g in self._sums(part)]
        return with_gradients(loss, self._learned, gradients)

    def _sums(self, part: str) -> list[Tensor | None]:
        """Where the part's gradients of the head's weight (V, D) and bias (V,) are added up; None for what is fixed."""
        part = part if self._apart else ""
        if part not in self._gradients:
            self._gradients[part] = [p if p is None else torch.zeros_like(p, dtype=self._exact) for p in self._learned]
        return self._gradients[part]

    def _logits(self, states: Tensor, space: Tensor | None = None) -> Tensor:
        """Logits (m, V) of states (m, D) in at least float32, before any cap; in ``space`` (m, V) if given."""
        if space is None:
            space = self._weight.new_empty(len(states), len(self._weight), dtype=self._exact)
        if space.dtype == self._weight.dtype:
            torch.mm(states.to(space.dtype), self._weight.T, out=space)
        else:
            space.copy_(states.to(self._weight.dtype) @ self._weight.T)
        if self._head.bias is not None:
            space.add_(self._head.bias)
        return space if self._head.scale == 1 else space.mul_(self._head.scale)

    def _losses(
        self,
        logits: Tensor,
        targets: Tensor,
        temperature: float = 1.0,
        banned: Sequence[int] = (),
        learns: bool = True,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Cross-entropies (m,) of ``logits`` (m, V), which are lost, and their gradients (m, V) times the temperature.

        These are None unless it ``learns``. And the largest logits (m,), for how large their rounding is.
        """
        slope, softcap, targets = 1.0, self._head.softcap, targets.unsqueeze(1)
        if softcap is not None:
            logits.div_(softcap).tanh_()
            slope = 1 - logits.square()
            logits.mul_(softcap)
        if banned:
            logits[:, list(banned)] = BANNED_LOGIT
        if temperature != 1:
            logits.div_(temperature)
        # the sum that normalises the softmax is one over its largest probability: no second pass of exponentials
        largest, wanted = logits.amax(-1), logits.gather(1, targets).squeeze(1)
        torch.softmax(logits, -1, out=logits)
        nll = largest - wanted - logits.amax(-1).log()
        if not learns:
            return nll, None, largest.abs()
        logits.scatter_add_(1, targets, logits.new_full((len(targets), 1), -1.0))
        if banned:
            logits[:, list(banned)] = 0  # a constant logit has no gradient, even as a target
        change = (logits if softcap is None else logits.mul_(slope)).to(self._weight.dtype)
        return nll, change, largest.abs()

    def _backward(self, part: str, change: Tensor, states: Tensor, scale: Tensor) -> Tensor:
        """Add gradients (m, V) by logits, times ``scale`` (m,), to those of the head; return the states' (m, D)."""
        scale = scale.unsqueeze(1).to(change.dtype) * self._head.scale
        to_weight, to_bias = self._sums(part)
        if to_weight is not None and to_weight.dtype == change.dtype:
            to_weight.addmm_(change.T, states.to(change.dtype) * scale)
        elif to_weight is not None:
            to_weight.add_(change.T @ (states.to(change.dtype) * scale))
        if to_bias is not None:
            to_bias.add_((change * scale).sum(0))
        return (change @ self._weight).mul_(scale)


def with_gradients(total: Tensor, inputs: Sequence[Tensor | None], gradients: list[Tensor | None]) -> Tensor:
    """Make ``total`` differentiable in ``inputs`` as well, whose ``gradients`` the forward pass has computed.

    The backward pass scales these in place, as they are large. So there is only one: a second raises RuntimeError.
    """
    return _KnownGradients.apply(gradients, total, *inputs)


class _KnownGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, gradients: list[Tensor | None], total: Tensor, *_: Tensor | None) -> Tensor:
        ctx.gradients = gradients
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError(
                "a Quiet-STaR loss has one backward pass: its gradients were computed in the forward pass"
            )
        return None, gradient, *(g if g is None else g.mul_(gradient.to(g.dtype)) for g in gradients)
