# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Attention of the queries that see every key: the global tokens', and all of an input of up to two blocks."""

import torch
from torch.nn.functional import scaled_dot_product_attention


def full_attention(query, inputs):
    """The context `n q h d` of queries (`n h q d`) that see every key of `inputs` ([`AttentionInputs`])."""
    mask = None if inputs.mask is None else inputs.mask[:, None, None].expand(-1, -1, query.shape[2], -1)
    return product(query, inputs.key, inputs.value, mask, inputs).transpose(1, 2)


def with_globals(context, inputs):
    """The tokens' context (`n t h d`) with that of the global queries before it, `n T h d`."""
    if not inputs.num_global_queries:
        return context
    query = inputs.query[:, :, : inputs.num_global_queries]
    if inputs.num_blocks_ahead:
        global_context = full_attention(query, inputs)
    else:  # they see themselves alone
        key, value = (x[:, :, : inputs.num_global_tokens] for x in (inputs.key, inputs.value))
        global_context = product(query, key, value, None, inputs).transpose(1, 2)
    return torch.cat([global_context, context], 1)


def product(query, key, value, mask, inputs):
    """
    `scaled_dot_product_attention` with the dropout and the scaling of `inputs`; 0 for a query that `mask` shows
    nothing (since torch 2.5).
    """
    return scaled_dot_product_attention(query, key, value, mask, inputs.dropout, scale=inputs.scaling)
