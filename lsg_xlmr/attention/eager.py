# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""LSG attention by its definition: dense and simple, the only implementation that returns attention weights."""

import torch
from torch.nn.functional import dropout as apply_dropout

from .pattern import is_visible


def eager_attention(inputs):
    """
    Dense scores over tokens, sparse tokens and globals. A sparse token's weight is spread over its tokens.

    Args:
        inputs ([`AttentionInputs`]).

    Returns:
        the context `n T h d` and the weights `n h T-num_padding T-num_padding`.
    """
    query, num_global_tokens = inputs.query, inputs.num_global_tokens
    if inputs.is_full:
        weights = _full_weights(query, inputs)
    else:
        weights = [_full_weights(query[:, :, :num_global_tokens], inputs), _token_weights(inputs)]
        weights = torch.cat(weights, 2)
    weights, value = apply_dropout(weights, inputs.dropout), inputs.value
    if not inputs.num_padding:
        return (weights @ value).transpose(1, 2), weights
    # The weights handed out are those the context is made of, so that gradients reach them.
    kept = weights.shape[-1] - inputs.num_padding
    of_padding, to_padding, weights = weights[:, :, kept:], weights[:, :, :kept, kept:], weights[:, :, :kept, :kept]
    context = weights @ value[:, :, :kept] + to_padding @ value[:, :, kept:]
    return torch.cat([context, of_padding @ value], 2).transpose(1, 2), weights


def _token_weights(inputs):
    """What the tokens' queries pay to globals and tokens, `n h t T`."""
    key, config, t, num_global_tokens = inputs.key, inputs.config, inputs.num_tokens, inputs.num_global_tokens
    n, h, _, _ = key.shape
    # A sparse value is a weighted sum of values: with the identity in their place, the weights themselves come out.
    identity = torch.eye(t, dtype=key.dtype, device=key.device).expand(n, h, t, t)
    sparse_key, spread, sparse_mask = inputs.sparse_tokens(identity)  # n h m d, n h m t
    m = sparse_key.shape[2]
    index = torch.arange(t + m + num_global_tokens, device=key.device)
    visible = is_visible(index[:t, None], index, t, m, config.block_size, config.sparse_block_size)  # t t+m+G
    if inputs.mask is not None or sparse_mask is not None:
        visible = visible & inputs.key_mask(sparse_mask, m)[:, :, None]
    keys = inputs.with_sparse(key, sparse_key)
    scores = (inputs.query[:, :, num_global_tokens:] @ keys.transpose(2, 3)) * inputs.scaling
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    to_tokens, to_sparse, to_globals = weights.split((t, m, num_global_tokens), -1)
    return torch.cat([to_globals, to_tokens + to_sparse @ spread], -1)


def _full_weights(query, inputs):
    """What queries that see every key pay to them."""
    scores = (query @ inputs.key.transpose(2, 3)) * inputs.scaling
    if inputs.mask is not None:
        scores = scores.masked_fill(~inputs.mask[:, None, None], -torch.inf)
    return scores.softmax(-1)
