# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""LSG attention by `scaled_dot_product_attention` on all windows at once, each block's gathered into one tensor."""

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from .full import with_globals


def windowed_attention(inputs):
    """
    Fused kernels wherever torch has them; memory grows with `t`. Can be traced, exported and compiled.

    Args:
        inputs ([`AttentionInputs`]).

    Returns:
        the context `n T h d`.
    """
    sparse_key, sparse_value, sparse_mask = inputs.sparse_tokens()
    num_heads, m = inputs.key.shape[1], sparse_key.shape[2]
    keys = _windows(inputs.with_sparse(inputs.key, sparse_key), inputs)  # n h*t/b W d
    values = _windows(inputs.with_sparse(inputs.value, sparse_value), inputs)
    # The windows at both ends reach outside the sequence, where the padding of the mask is `False`.
    key_mask = inputs.key_mask(sparse_mask, m).expand(-1, num_heads, -1)
    window_mask = _windows(key_mask[..., None], inputs).transpose(2, 3)  # n h*t/b 1 W
    queries = inputs.query[:, :, inputs.num_global_tokens :]
    queries = queries.unflatten(2, (-1, inputs.config.block_size)).flatten(1, 2)  # n h*t/b b d
    context = scaled_dot_product_attention(queries, keys, values, window_mask, inputs.dropout, scale=inputs.scaling)
    context = context.unflatten(1, (num_heads, -1)).flatten(2, 3).transpose(1, 2)  # n t h d
    return with_globals(context, inputs)


def _windows(x, inputs):
    """Windows of all blocks at once, of `[tokens | sparse | globals]` (`n h t+m+G e`): `n h*t/b W e`."""
    b, s, t = inputs.config.block_size, inputs.config.sparse_block_size, inputs.num_tokens
    tokens, sparse, global_part = x.split((t, x.shape[2] - t - inputs.num_global_tokens, inputs.num_global_tokens), 2)
    blocks = t // b
    parts = [global_part[:, :, None].expand(-1, -1, blocks, -1, -1), pad(tokens, (0, 0, b, b)).unfold(2, 3 * b, b)]
    parts[1] = parts[1].transpose(3, 4)
    if sparse.shape[2]:
        step = sparse.shape[2] // blocks
        left = pad(sparse, (0, 0, step + s, 0))
        right = pad(sparse, (0, 0, 0, 2 * step + s))[:, :, 2 * step :]
        parts += [side.unfold(2, s, step)[:, :, :blocks].transpose(3, 4) for side in (left, right)]
    return torch.cat(parts, 3).flatten(1, 2)
