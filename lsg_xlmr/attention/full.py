# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Attention of the queries that see every key: the global tokens', and all of an input of up to two blocks."""

import torch
from torch.nn.functional import scaled_dot_product_attention


def full_attention(query, inputs):
    """
    Args:
        query (`torch.Tensor` of shape `n h q d`).
        inputs ([`AttentionInputs`]): whose keys and values they see.

    Returns:
        the context `n q h d`.
    """
    mask = None if inputs.mask is None else inputs.mask[:, None, None].expand(-1, -1, query.shape[2], -1)
    context = scaled_dot_product_attention(query, inputs.key, inputs.value, mask, inputs.dropout, scale=inputs.scaling)
    return context.transpose(1, 2)


def with_globals(context, inputs):
    """The tokens' context (`n t h d`) with that of the global queries before it, `n T h d`."""
    return torch.cat([full_attention(inputs.query[:, :, : inputs.num_global_tokens], inputs), context], 1)
