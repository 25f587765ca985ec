# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""LSG attention by its definition: dense and simple, the only implementation that returns attention weights."""

import torch
from torch.nn.functional import dropout as apply_dropout, pad

from .lengths import is_open
from .pattern import hidden_score


def eager_attention(inputs):
    """
    The context `n T h d` of `inputs` ([`AttentionInputs`] or [`CausalInputs`] of which no token is missing), and what
    the tokens pay to the tokens, without globals and padding, `n h t-num_padding t-num_padding`. A sparse token's
    weight is spread over its tokens.
    """
    t, m, num_global_tokens = inputs.num_tokens, inputs.sparse[0].shape[2], inputs.num_global_tokens
    weights, to_sparse, to_globals = dense_weights(inputs).split((t, m, num_global_tokens), -1)
    if m:
        # A sparse value is a weighted sum of values: with the identity in their place, its weights come out.
        (n, h, _, _), c = inputs.key.shape, inputs.num_condensed
        identity = torch.eye(c, dtype=inputs.key.dtype, device=inputs.key.device).expand(n, h, c, c)
        spread = inputs.sparse_tokens(identity)[1]  # n h m c
        weights = weights + pad(to_sparse @ spread, (0, t - c))
    weights, value = apply_dropout(torch.cat([to_globals, weights], -1), inputs.dropout), inputs.value
    num_kept = t - inputs.num_padding
    if is_open(t):
        # Not a slice: of all there is where there are no globals, it would tie a graph to there being padding.
        kept = torch.arange(num_kept, device=weights.device)
        of_tokens = weights.index_select(2, inputs.num_global_queries + kept).index_select(3, num_global_tokens + kept)
        return (weights @ value).transpose(1, 2), of_tokens
    # The weights handed out are those the context is made of, so that gradients reach them.
    rows = [inputs.num_global_queries, inputs.num_global_queries + num_kept]
    ends = [num_global_tokens, num_global_tokens + num_kept]
    of_globals, of_tokens, of_padding = weights.tensor_split(rows, 2)
    parts = of_tokens.tensor_split(ends, 3)
    context = sum(part @ values for part, values in zip(parts, value.tensor_split(ends, 2)))
    context = torch.cat([of_globals @ value, context, of_padding @ value], 2)
    return context.transpose(1, 2), parts[1]


def dense_weights(inputs):
    """What every query pays to the keys in the order of [`is_visible`], `n h q t+m+G`."""
    keys = inputs.with_sparse(inputs.key, inputs.sparse[0])
    scores = (inputs.query @ keys.transpose(2, 3)) * inputs.scaling
    return scores.masked_fill(~inputs.visible(), hidden_score(scores.dtype)).softmax(-1)
