"""Thought attention for CPUs: no score outlives its block, and nothing that a mask would remove is computed.

Positions are taken in blocks. All thoughts of a block see the text up to the block's first position: this far text
needs no mask, so flash attention computes it. A small local softmax covers the rest: the near text, which are the few
tokens between the block's positions, and each row's own tokens. Both parts give a log-sum-exp of their scores, by which
they are merged (FlashAttention, Dao et al. 2022; shared prefixes: Hydragen, Juravsky et al. 2024).

In the backward pass, flash attention's own backward is given the *merged* output and log-sum-exp, so its gradients are
exact for the softmax over both parts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from .head import exact_dtype
from .rows import Rows, Style

BLOCK_QUERIES = 1024  # about as many query rows to a block, so that its scores stay in the cache
SMALLEST_BLOCK, LARGEST_BLOCK = 16, 64  # positions


@dataclass(frozen=True)
class Block:
    """Positions ``start .. stop - 1`` of the P: ``far`` text tokens before all of them, the near text up to ``near``.

    ``texts``, an index or a slice of all, are those that have a real row there. Where each text has positions of its
    own, ``far`` ends before the first position of any text, and ``near`` after the last of any. ``far`` is 0 without
    flash attention.
    """

    start: int
    stop: int
    far: int
    near: int
    texts: Tensor | slice

    @property
    def here(self) -> tuple[Tensor | slice, slice, slice]:
        """An index of the block in what is (B, G, P, ...)."""
        return self.texts, slice(None), slice(self.start, self.stop)

    @property
    def near_text(self) -> tuple[Tensor | slice, slice, slice]:
        """An index of its near tokens in what is (B, G, N, ...)."""
        return self.texts, slice(None), slice(self.far, self.near)

    @property
    def far_text(self) -> tuple[Tensor | slice, slice, slice]:
        """An index of its far tokens in what is (B, G, N, ...)."""
        return self.texts, slice(None), slice(0, self.far)


@dataclass(frozen=True)
class Plan:
    """A pass cut into blocks.

    ``near_bias`` (1 or B, P, N) and ``own_bias`` (M, S') are 0, or -inf where a row may not look.

    ``rationales``: R. ``tokens``: S. M, the queries of a position, is R*H/G*S.
    """

    blocks: list[Block]
    scaling: float
    near_bias: Tensor
    own_bias: Tensor
    rationales: int
    tokens: int


def attend(
    rows: Rows, query: Tensor, key: Tensor, value: Tensor, prefix: tuple[Tensor, Tensor], style: Style
) -> Tensor:
    """`rows.Attend`, for rows that are plain (`Rows.is_plain`)."""
    plan = make_plan(rows, query, prefix[0].shape[1], style.scaling)
    return _Blocked.apply(plan, query, key, value, *prefix).movedim(3, 1)


def make_plan(rows: Rows, query: Tensor, groups: int, scaling: float) -> Plan:
    """Cut ``query`` (B, H, R*P, S, C) into blocks of about BLOCK_QUERIES query rows a group."""
    at, flash = rows.at, has_flash(query)
    positions = len(at[0])
    rationales = query.shape[2] // positions
    folded = query.shape[1] // groups * rationales  # R*H/G
    size = min(max(BLOCK_QUERIES // (folded * rows.tokens), SMALLEST_BLOCK), LARGEST_BLOCK)
    blocks = []
    for start in range(0, positions, size):
        stop = min(start + size, positions)
        texts, here = slice(None), at
        if rows.real is not None:
            texts = rows.real[:, start:stop].any(1).nonzero().squeeze(1)
            if not len(texts):
                continue
            here = at if len(at) == 1 else [at[text] for text in texts.tolist()]
            texts = slice(None) if len(texts) == len(rows.real) else texts
        far, near = min(some[start] for some in here) + 1, max(some[stop - 1] for some in here) + 1
        blocks.append(Block(start, stop, far if flash else 0, near, texts))
    order = torch.arange(rows.text_position_ids.shape[1], device=query.device)
    near, own = (
        query.new_zeros(mask.shape, dtype=exact_dtype(query)).masked_fill_(~mask, float("-inf"))
        for mask in (rows.by_text.unsqueeze(-1) >= order, rows.own_mask(None))
    )
    return Plan(blocks, scaling, near, own.repeat(folded, 1), rationales, rows.tokens)


def has_flash(tensor: Tensor) -> bool:
    """Whether PyTorch has its private CPU operator that returns the log-sum-exp; without it all text is near."""
    return tensor.device.type == "cpu" and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")


class _Blocked(torch.autograd.Function):
    """query (B, H, R*P, S, C), key and value (B, G, R*P, S', C), the text's (B, G, N, C) -> (B, R*P, S, H, C).

    Inside, the queries of a position are next to each other: (B, G, P, M, C); its keys are (B, G, P, R, S', C). The
    output has the layout that the decoder's next layer wants, so that one copy serves that layer and ``backward``.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, plan: Plan, query: Tensor, key: Tensor, value: Tensor, text_key: Tensor, text_value: Tensor
    ) -> Tensor:
        positions, groups = plan.near_bias.shape[1], text_key.shape[1]
        query = _fold(query.permute(0, 2, 3, 1, 4), positions, groups)
        key, value = (x.unflatten(2, (-1, positions)).transpose(2, 3).contiguous() for x in (key, value))
        output, lse = torch.empty_like(query), query.new_empty(query.shape[:-1], dtype=exact_dtype(query))
        for block in plan.blocks:
            here, far, queries = block.here, block.far_text, query[block.here]
            scores = _local_scores(plan, block, queries, key[here], text_key)
            merged = scores.logsumexp(-1)
            if block.far:
                from_far, far_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                    queries.flatten(2, 3), text_key[far], text_value[far], scale=plan.scaling
                )
                far_lse = far_lse.view_as(merged)
                merged = torch.logaddexp(merged, far_lse)
                share = (far_lse - merged).exp_().unsqueeze(-1).to(query.dtype)
            local = _local_output(block, _weights(scores, merged, query.dtype), value[here], text_value)
            lse[here], output[here] = merged, from_far.view_as(local) * share + local if block.far else local
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
        by_row, own = (key.shape[3], -1), (..., slice(-key.shape[4], None))
        for block in plan.blocks:
            here, far, queries, gradients = block.here, block.far_text, query[block.here], gradient[block.here]
            merged = lse[here]
            scores = _local_scores(plan, block, queries, key[here], text_key)
            weights = _weights(scores, merged, query.dtype)
            # the gradient of the softmax: weights times how far the weights' gradient is from its mean
            change = _products(block, gradients, value[here], text_value).to(lse.dtype)
            change = change.sub_(drift[here]).mul_(weights).mul_(plan.scaling).to(query.dtype)
            to_key[here] = change[own].unflatten(3, by_row).mT @ queries.unflatten(3, by_row)
            to_value[here] = weights[own].unflatten(3, by_row).mT @ gradients.unflatten(3, by_row)
            to_query[here] = _local_output(block, change, key[here], text_key)
            for total, scored, rows in zip(to_text, (change, weights), (queries, gradients), strict=True):
                total[block.near_text] += scored[..., : block.near - block.far].flatten(2, 3).mT @ rows.flatten(2, 3)
            if block.far:
                to_far_query, *to_far = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                    gradients.flatten(2, 3),
                    queries.flatten(2, 3),
                    text_key[far],
                    text_value[far],
                    output[here].flatten(2, 3),
                    merged.flatten(2, 3),
                    0.0,
                    False,
                    scale=plan.scaling,
                )
                for total, new in zip(to_text, to_far, strict=True):
                    total[far] += new
                to_query[here] += to_far_query.view_as(queries)
        to_query = _unfold(to_query, plan).movedim(3, 1)
        to_key, to_value = (x.transpose(2, 3).flatten(2, 3) for x in (to_key, to_value))
        return None, to_query, to_key, to_value, *(total.to(query.dtype) for total in to_text)


def _fold(x: Tensor, positions: int, groups: int) -> Tensor:
    """(B, R*P, S, H, C) as (B, G, P, M, C), contiguous."""
    x = x.unflatten(3, (groups, -1)).unflatten(1, (-1, positions))  # (B, R, P, S, G, H/G, C)
    return x.permute(0, 4, 2, 1, 5, 3, 6).flatten(3, 5).contiguous()


def _unfold(x: Tensor, plan: Plan) -> Tensor:
    """The inverse of `_fold`, contiguous: (B, G, P, M, C) as (B, R*P, S, H, C)."""
    x = x.unflatten(3, (plan.rationales, -1, plan.tokens))  # (B, G, P, R, H/G, S, C)
    return x.permute(0, 3, 2, 5, 1, 4, 6).flatten(4, 5).flatten(1, 2)


def _products(block: Block, rows: Tensor, own: Tensor, text: Tensor) -> Tensor:
    """Products (B, G, p, M, near + S') of ``rows`` (B, G, p, M, C) with the near ``text`` and their ``own`` tokens."""
    with_near = rows.flatten(2, 3) @ text[block.near_text].mT
    with_own = rows.unflatten(3, (own.shape[3], -1)) @ own.mT  # (B, G, p, R, H/G*S, S')
    return torch.cat([with_near.view(*rows.shape[:-1], -1), with_own.flatten(3, 4)], dim=-1)


def _local_scores(plan: Plan, block: Block, query: Tensor, key: Tensor, text_key: Tensor) -> Tensor:
    """Masked scores (B, G, p, M, near + S') of a block's queries (B, G, p, M, C), in at least float32."""
    scores = _products(block, query, key, text_key).to(exact_dtype(query)).mul_(plan.scaling)
    near = block.near - block.far
    bias = plan.near_bias if len(plan.near_bias) == 1 else plan.near_bias[block.texts]
    scores[..., :near] += bias[:, None, block.start : block.stop, None, block.far : block.near]
    scores[..., near:] += plan.own_bias
    return scores


def _weights(scores: Tensor, lse: Tensor, dtype: torch.dtype) -> Tensor:
    return scores.sub_(lse.unsqueeze(-1)).exp_().to(dtype)


def _local_output(block: Block, weights: Tensor, own: Tensor, text: Tensor) -> Tensor:
    """Weighted sums (B, G, p, M, C) of the near ``text`` (B, G, N, C) and the ``own`` tokens (B, G, p, R, S', C)."""
    near = block.near - block.far
    output = (weights[..., near:].unflatten(3, (own.shape[3], -1)) @ own).flatten(3, 4)
    if near:
        output += (weights[..., :near].flatten(2, 3) @ text[block.near_text]).view_as(output)
    return output
