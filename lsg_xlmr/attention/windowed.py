# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""LSG attention by `scaled_dot_product_attention`: all windows at once, each block's gathered into one tensor."""

import torch
from torch.nn.functional import pad

from .full import product, with_globals
from .lengths import is_old_onnx_export


def windowed_attention(inputs):
    """
    The context `n T h d` of `inputs` ([`AttentionInputs`] or [`CausalInputs`] with queries of all positions). Fused
    kernels wherever torch has them; memory grows with `t`. Can be traced, exported and compiled.
    """
    (sparse_key, sparse_value, _), t, b = inputs.sparse, inputs.num_tokens, inputs.config.block_size
    num_heads, is_causal = inputs.key.shape[1], not inputs.num_blocks_ahead
    keys = _windows(inputs.with_sparse(inputs.key, sparse_key), inputs)  # n h*t/b W d
    values = _windows(inputs.with_sparse(inputs.value, sparse_value), inputs)
    # What lies outside of the sequence at either end is `False` in the windows of the mask.
    key_mask = inputs.key_mask().expand(-1, num_heads, -1)
    visible = _windows(key_mask[..., None], inputs).transpose(2, 3)  # n h*t/b 1 W
    queries = inputs.query[:, :, inputs.num_global_queries :]
    if is_causal:
        later = torch.ones(b, b, dtype=torch.bool, device=visible.device).triu(1)
        before = inputs.num_global_tokens + b
        visible = visible & ~pad(later, (before, visible.shape[3] - before - b))  # n h*t/b b W
        queries = pad(queries, (0, 0, 0, _num_blocks(inputs) * b - t))
    queries = queries.unflatten(2, (-1, b)).flatten(1, 2)  # n h*t/b b d
    context = product(queries, keys, values, visible, inputs)
    context = context.unflatten(1, (num_heads, -1)).flatten(2, 3)[:, :, :t]
    return with_globals(context.transpose(1, 2), inputs)


def _windows(x, inputs):
    """Windows of all blocks at once, of `[tokens | sparse | globals]` (`n h t+m+G e`): `n h*t/b W e`."""
    b, s, t, step = inputs.config.block_size, inputs.config.sparse_block_size, inputs.num_tokens, inputs.step
    tokens, sparse, global_part = x.split((t, x.shape[2] - t - inputs.num_global_tokens, inputs.num_global_tokens), 2)
    blocks, ahead = _num_blocks(inputs), inputs.num_blocks_ahead
    near = pad(tokens, (0, 0, b, (blocks + ahead) * b - t))
    parts = [global_part[:, :, None].expand(-1, -1, blocks, -1, -1), _slices(near, (2 + ahead) * b, b)]
    if inputs.config.has_sparse_tokens:
        sides = [pad(sparse, (0, 0, step + s, 0))]
        if ahead:
            sides.append(pad(sparse, (0, 0, 0, 2 * step + s))[:, :, 2 * step :])
        parts += [_slices(side, s, step)[:, :, :blocks] for side in sides]
    return torch.cat(parts, 3).flatten(1, 2)


def _num_blocks(inputs):
    return (inputs.num_tokens + inputs.config.block_size - 1) // inputs.config.block_size


def _slices(x, size, step):
    """Slices of `x` (`n h t e`) of `size` positions, `step` apart: `n h slices size e`."""
    if not is_old_onnx_export():  # which cannot write `unfold` for all lengths
        return x.unfold(2, size, step).transpose(3, 4)
    starts = torch.arange(0, x.shape[2] - size + 1, step, device=x.device)
    return x.index_select(2, (starts[:, None] + torch.arange(size, device=x.device)).flatten()).unflatten(
        2, (-1, size)
    )
