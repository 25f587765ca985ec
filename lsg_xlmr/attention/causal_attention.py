# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Causal LSG attention: from queries, keys, values and a mask to the context, by one of several implementations."""

import torch
from torch.nn.functional import dropout as apply_dropout, pad, scaled_dot_product_attention

from ..cpu.memory import keep_freed_memory
from ..cpu.threads import runs_in_pieces
from .blocks import causal_blocks
from .blockwise import blockwise_attention


def causal_attention(inputs, implementation):
    """
    All implementations give the same numbers.

    Args:
        inputs ([`CausalInputs`]).
        implementation (`str`): `"eager"`, dense by the definition; others: block by block on CPU, elsewhere (and when
            traced or compiled) `scaled_dot_product_attention` on all windows at once, or, after a cache and for short
            inputs, on all keys that are there.

    Returns:
        the context `n q h d` and, from `"eager"` without tokens that are missing, the attention weights `n h q T`
        (otherwise `None`). The rows of queries that are masked themselves carry no meaning.
    """
    if implementation == "eager":
        return _eager(inputs)
    sparse_key, sparse_value, _ = inputs.sparse
    if runs_in_pieces(inputs.query):
        keep_freed_memory()
        tensors = inputs.query, inputs.key, inputs.value, sparse_key, sparse_value
        return blockwise_attention(tensors, causal_blocks(inputs), inputs.scaling, inputs.dropout), None
    if inputs.num_global_queries and inputs.num_tokens > 2 * inputs.config.block_size:
        return _windowed(inputs), None
    keys, values = torch.cat([inputs.key, sparse_key], 2), torch.cat([inputs.value, sparse_value], 2)
    return _product(inputs.query, keys, values, inputs.visible(), inputs).transpose(1, 2), None


def _eager(inputs):
    (sparse_key, sparse_value, _), query = inputs.sparse, inputs.query
    scores = (query @ torch.cat([inputs.key, sparse_key], 2).transpose(2, 3)) * inputs.scaling
    weights = scores.masked_fill(~inputs.visible(), -torch.inf).softmax(-1)
    if inputs.past is not None:  # of missing tokens nobody could say what they weigh
        weights = apply_dropout(weights, inputs.dropout)
        return (weights @ torch.cat([inputs.value, sparse_value], 2)).transpose(1, 2), None
    weights, to_sparse = weights.split((inputs.key.shape[2], sparse_key.shape[2]), -1)
    if to_sparse.shape[-1]:
        # With the identity in the place of values, what sparse ones are made of comes out.
        n, h, forgotten = *query.shape[:2], inputs.num_forgotten
        identity = torch.eye(forgotten, dtype=query.dtype, device=query.device).expand(n, h, -1, -1)
        spread = inputs.sparse_tokens(identity)[1]  # n h m forgotten
        before, after = inputs.num_global_tokens, inputs.num_tokens - forgotten
        weights = weights + pad(to_sparse @ spread, (before, after))
    weights = apply_dropout(weights, inputs.dropout)
    return (weights @ inputs.value).transpose(1, 2), weights


def _windowed(inputs):
    """All tokens' windows at once, of `[globals | tokens of two blocks | sparse tokens]`."""
    (sparse_key, sparse_value, _), config = inputs.sparse, inputs.config
    num_global_tokens, t, b, s = (
        inputs.num_global_tokens,
        inputs.num_tokens,
        config.block_size,
        config.sparse_block_size,
    )
    step, num_blocks = inputs.step, -(-t // b)
    num_heads, padding = inputs.key.shape[1], num_blocks * b - t

    def windows(x, sparse):
        globals_, tokens = x.tensor_split([num_global_tokens], dim=2)
        parts = [globals_[:, :, None].expand(-1, -1, num_blocks, -1, -1)]
        parts.append(pad(tokens, (0, 0, b, padding)).unfold(2, 2 * b, b).transpose(3, 4))
        if sparse.shape[2]:
            parts.append(pad(sparse, (0, 0, step + s, 0)).unfold(2, s, step)[:, :, :num_blocks].transpose(3, 4))
        return torch.cat(parts, 3).flatten(1, 2)  # n h*num_blocks W d

    # What lies outside of the sequence at either end is `False` in the windows of the mask.
    mask, sparse_mask = inputs.key_mask().split((inputs.key.shape[2], sparse_key.shape[2]), 2)
    mask = windows(mask[..., None].expand(-1, num_heads, -1, -1), sparse_mask[..., None].expand(-1, num_heads, -1, -1))
    later = torch.ones(b, b, dtype=torch.bool, device=mask.device).triu(1)
    after = mask.shape[2] - num_global_tokens - 2 * b
    visible = mask.transpose(2, 3) & ~pad(later, (num_global_tokens + b, after))  # n h*num_blocks b W
    queries = pad(inputs.query[:, :, num_global_tokens:], (0, 0, 0, padding)).unflatten(2, (-1, b)).flatten(1, 2)
    keys, values = windows(inputs.key, sparse_key), windows(inputs.value, sparse_value)
    context = _product(queries, keys, values, visible, inputs)
    context = context.unflatten(1, (num_heads, -1)).flatten(2, 3)[:, :, :t]
    prefix = [x[:, :, :num_global_tokens] for x in (inputs.query, inputs.key, inputs.value)]
    return torch.cat([_product(*prefix, None, inputs), context], 2).transpose(1, 2)


def _product(query, key, value, mask, inputs):
    return scaled_dot_product_attention(query, key, value, mask, inputs.dropout, scale=inputs.scaling)
