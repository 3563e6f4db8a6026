"""Thought attention for CPUs: no score outlives its block, and nothing is computed that a mask would throw away.

Positions are taken in blocks. A block's thoughts all see the text up to its first position: that part needs no mask
and is left to flash attention. What remains, the few text tokens between the block's positions and each row's own
tokens, is a small local softmax. Both parts give a log-sum-exp of their scores, by which they are merged
(FlashAttention, Dao et al. 2022; shared prefixes: Hydragen, Juravsky et al. 2024).

Backward, flash attention's own backward is given the *merged* output and log-sum-exp, so its gradients are exact for
the softmax over both parts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from .rows import Rows, Style

BLOCK_QUERIES = 1024  # query rows of a block, about: its scores stay in the cache
SMALLEST_BLOCK, LARGEST_BLOCK = 16, 64  # positions


@dataclass(frozen=True)
class Block:
    """Positions ``start .. stop - 1`` (of the P): their far text ends at ``far``, their near text at ``near``."""

    start: int
    stop: int
    far: int
    near: int

    @property
    def here(self) -> tuple[slice, slice, slice]:
        """The index of this block in a (B, G, P, ...) tensor."""
        return slice(None), slice(None), slice(self.start, self.stop)


@dataclass(frozen=True)
class Plan:
    """How a pass is cut into blocks; ``near_bias`` (P, N) and ``own_bias`` (R*H/G*S, S') are 0 or -inf.

    ``rationales``: R. ``tokens``: S.
    """

    blocks: list[Block]
    flash: bool
    scaling: float
    near_bias: Tensor
    own_bias: Tensor
    rationales: int
    tokens: int


def attend(
    rows: Rows, query: Tensor, key: Tensor, value: Tensor, prefix: tuple[Tensor, Tensor], style: Style
) -> Tensor:
    """`rows.Attend`, for `Rows.is_plain` rows."""
    plan = make_plan(rows, query, prefix[0].shape[1], style.scaling)
    return _Blocked.apply(plan, query, key, value, *prefix).movedim(3, 1)


def make_plan(rows: Rows, query: Tensor, groups: int, scaling: float) -> Plan:
    """Blocks of about BLOCK_QUERIES folded rows of ``query`` (B, H, R*P, S, C)."""
    at, flash = rows.at, has_flash(query)
    folded = query.shape[1] // groups * query.shape[2] // len(at)  # R*H/G
    size = min(max(BLOCK_QUERIES // (folded * rows.tokens), SMALLEST_BLOCK), LARGEST_BLOCK)
    blocks = []
    for start in range(0, len(at), size):
        some = at[start : start + size]
        blocks.append(Block(start, start + len(some), far=min(some) + 1 if flash else 0, near=max(some) + 1))
    order = torch.arange(rows.text_position_ids.shape[1], device=query.device)
    near = _bias(rows.positions[:, None] >= order, query)
    own = _bias(rows.own_mask(None), query).repeat(folded, 1)
    return Plan(blocks, flash, scaling, near, own, query.shape[2] // len(at), rows.tokens)


def has_flash(tensor: Tensor) -> bool:
    """Whether PyTorch's private CPU operator, which returns the log-sum-exp, is there; without it all text is near."""
    return tensor.device.type == "cpu" and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")


def _bias(mask: Tensor, like: Tensor) -> Tensor:
    return like.new_zeros(mask.shape, dtype=_exact(like.dtype)).masked_fill_(~mask, float("-inf"))


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class _Blocked(torch.autograd.Function):
    """query (B, H, R*P, S, C), key and value (B, G, R*P, S', C), the text's (B, G, N, C) -> (B, R*P, S, H, C).

    Inside, a position's queries stand side by side: (B, G, P, M, C) with M = R*H/G*S, its keys in (B, G, P, R, S', C).
    The output is laid out as the decoder's next layer wants it, so that one copy serves that layer and ``backward``.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, plan: Plan, query: Tensor, key: Tensor, value: Tensor, text_key: Tensor, text_value: Tensor
    ) -> Tensor:
        positions, groups = len(plan.near_bias), text_key.shape[1]
        query = _fold(query.permute(0, 2, 3, 1, 4), positions, groups)
        key, value = (x.unflatten(2, (-1, positions)).transpose(2, 3).contiguous() for x in (key, value))
        output, lse = torch.empty_like(query), query.new_empty(query.shape[:-1], dtype=_exact(query.dtype))
        for block in plan.blocks:
            here = block.here
            scores = _local_scores(plan, block, query[here], key[here], text_key)
            lse[here] = scores.logsumexp(-1)
            if plan.flash:
                output[here] = _merge_far(plan, block, query[here], text_key, text_value, lse[here])
            local = _local_output(block, _weights(scores, lse[here], query.dtype), value[here], text_value)
            output[here] = output[here] + local if plan.flash else local
        output = _unfold(output, plan)
        ctx.plan = plan
        ctx.save_for_backward(query, key, value, text_key, text_value, output, lse)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        plan = ctx.plan
        query, key, value, text_key, text_value, output, lse = ctx.saved_tensors
        gradient, output = (_fold(x, query.shape[2], query.shape[1]) for x in (gradient, output))
        drift = (gradient * output).sum(-1, keepdim=True, dtype=lse.dtype)
        to_query, to_key, to_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        to_text = torch.zeros_like(text_key, dtype=lse.dtype), torch.zeros_like(text_value, dtype=lse.dtype)
        for block in plan.blocks:
            here = block.here
            scores = _local_scores(plan, block, query[here], key[here], text_key)
            weights = _weights(scores, lse[here], query.dtype)
            change = _to_local_weights(block, gradient[here], value[here], text_value).to(lse.dtype)
            change = change.sub_(drift[here]).mul_(weights).mul_(plan.scaling).to(query.dtype)
            to_key[here], to_value[here] = _to_own(change, weights, query[here], gradient[here], key[here])
            to_query[here] = _local_output(block, change, key[here], text_key)
            near = slice(block.far, block.near)
            for total, scored, rows in zip(to_text, (change, weights), (query[here], gradient[here]), strict=True):
                total[:, :, near] += scored[..., : block.near - block.far].flatten(2, 3).mT @ rows.flatten(2, 3)
            if plan.flash:
                far = _far_backward(plan, block, gradient, query, text_key, text_value, output, lse, to_text)
                to_query[here] += far
        to_query = _unfold(to_query, plan).movedim(3, 1)
        to_key, to_value = (x.transpose(2, 3).flatten(2, 3) for x in (to_key, to_value))
        return None, to_query, to_key, to_value, *(total.to(query.dtype) for total in to_text)


def _fold(x: Tensor, positions: int, groups: int) -> Tensor:
    """(B, R*P, S, H, C) as (B, G, P, R*H/G*S, C), contiguous."""
    x = x.unflatten(3, (groups, -1)).unflatten(1, (-1, positions))  # (B, R, P, S, G, H/G, C)
    return x.permute(0, 4, 2, 1, 5, 3, 6).flatten(3, 5).contiguous()


def _unfold(x: Tensor, plan: Plan) -> Tensor:
    """The inverse of `_fold`, contiguous: (B, G, P, R*H/G*S, C) as (B, R*P, S, H, C)."""
    x = x.unflatten(3, (plan.rationales, -1, plan.tokens))  # (B, G, P, R, H/G, S, C)
    return x.permute(0, 3, 2, 5, 1, 4, 6).flatten(4, 5).flatten(1, 2)


def _local_scores(plan: Plan, block: Block, query: Tensor, key: Tensor, text_key: Tensor) -> Tensor:
    """Masked scores (B, G, p, M, near + S') of a block's queries (B, G, p, M, C), in at least float32."""
    near = query.flatten(2, 3) @ text_key[:, :, block.far : block.near].mT
    own = query.unflatten(3, (key.shape[3], -1)) @ key.mT  # (B, G, p, R, H/G*S, S')
    scores = torch.cat([near.view(*query.shape[:-1], -1), own.flatten(3, 4)], dim=-1)
    scores = scores.to(_exact(query.dtype)).mul_(plan.scaling)
    scores[..., : near.shape[-1]] += plan.near_bias[block.start : block.stop, None, block.far : block.near]
    scores[..., near.shape[-1] :] += plan.own_bias
    return scores


def _weights(scores: Tensor, lse: Tensor, dtype: torch.dtype) -> Tensor:
    return scores.sub_(lse.unsqueeze(-1)).exp_().to(dtype)


def _local_output(block: Block, weights: Tensor, own: Tensor, text: Tensor) -> Tensor:
    """Sums (B, G, p, M, C) of the near ``text`` (B, G, N, C) and the ``own`` tokens (B, G, p, R, S', C)."""
    near = block.near - block.far
    output = (weights[..., near:].unflatten(3, (own.shape[3], -1)) @ own).flatten(3, 4)
    if near:
        output += (weights[..., :near].flatten(2, 3) @ text[:, :, block.far : block.near]).view_as(output)
    return output


def _to_local_weights(block: Block, gradient: Tensor, value: Tensor, text_value: Tensor) -> Tensor:
    """The gradient (B, G, p, M, near + S') of the weights, from the output's (B, G, p, M, C)."""
    near = gradient.flatten(2, 3) @ text_value[:, :, block.far : block.near].mT
    own = gradient.unflatten(3, (value.shape[3], -1)) @ value.mT
    return torch.cat([near.view(*gradient.shape[:-1], -1), own.flatten(3, 4)], dim=-1)


def _to_own(change: Tensor, weights: Tensor, query: Tensor, gradient: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients (B, G, p, R, S', C) of a block's own keys and values."""
    own = (..., slice(-key.shape[4], None))
    rows = (key.shape[3], -1)
    to_key = change[own].unflatten(3, rows).mT @ query.unflatten(3, rows)
    return to_key, weights[own].unflatten(3, rows).mT @ gradient.unflatten(3, rows)


def _merge_far(plan: Plan, block: Block, query: Tensor, text_key: Tensor, text_value: Tensor, lse: Tensor) -> Tensor:
    """The far text's share (B, G, p, M, C) of the output; ``lse`` (B, G, p, M) becomes that of both parts."""
    far = slice(0, block.far)
    output, far_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query.flatten(2, 3), text_key[:, :, far], text_value[:, :, far], scale=plan.scaling
    )
    far_lse = far_lse.view_as(lse)
    torch.logaddexp(lse, far_lse, out=lse)
    return output.view_as(query) * (far_lse - lse).exp_().unsqueeze(-1).to(output.dtype)


def _far_backward(
    plan: Plan,
    block: Block,
    gradient: Tensor,
    query: Tensor,
    text_key: Tensor,
    text_value: Tensor,
    output: Tensor,
    lse: Tensor,
    to_text: tuple[Tensor, Tensor],
) -> Tensor:
    """The far text's share of the queries' gradient (B, G, p, M, C); its keys' and values' are added to ``to_text``."""
    far, here = slice(0, block.far), block.here
    to_query, *to_far = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        gradient[here].flatten(2, 3),
        query[here].flatten(2, 3),
        text_key[:, :, far],
        text_value[:, :, far],
        output[here].flatten(2, 3),
        lse[here].flatten(2, 3),
        0.0,
        False,
        scale=plan.scaling,
    )
    for total, new in zip(to_text, to_far, strict=True):
        total[:, :, far] += new
    return to_query.view_as(query[here])
