# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""LSG attention of a decoder, which is causal, with and without a cache."""

import torch
from torch.nn.functional import dropout as apply_dropout
from transformers.utils.import_utils import is_tracing

from ..cpu.memory import keep_freed_memory
from ..cpu.threads import runs_in_pieces
from .blockwise import blockwise_attention
from .eager import dense_weights, eager_attention
from .full import product
from .windowed import windowed_attention


def causal_attention(inputs, implementation):
    """
    All implementations give the same numbers.

    Args:
        inputs ([`CausalInputs`]).
        implementation (`str`): `"eager"`, dense by the definition; others: block by block on CPU, elsewhere (and when
            traced or compiled) `scaled_dot_product_attention` on all windows at once, or, after a cache and for short
            inputs, on all keys that are there.

    Returns:
        the context `n q h d` and, from `"eager"` without tokens that are missing, the attention weights of tokens to
        tokens `n h t t` (otherwise `None`). The rows of queries that are masked themselves carry no meaning.
    """
    if implementation == "eager":
        if inputs.past is None:
            return eager_attention(inputs)
        # Of missing tokens nobody could say what they weigh.
        weights = apply_dropout(dense_weights(inputs), inputs.dropout)
        return (weights @ inputs.with_sparse(inputs.value, inputs.sparse[1])).transpose(1, 2), None
    if inputs.query.shape[2] == 1 and not is_tracing(inputs.query):
        return _last_token_attention(inputs), None
    if runs_in_pieces(inputs.query):
        keep_freed_memory()
        return blockwise_attention(inputs), None
    if inputs.query.shape[2] == inputs.key.shape[2] and not inputs.is_full:  # queries of all positions
        return windowed_attention(inputs), None
    keys, values = (inputs.with_sparse(*x) for x in zip((inputs.key, inputs.value), inputs.sparse))
    return product(inputs.query, keys, values, inputs.visible(), inputs).transpose(1, 2), None


def _last_token_attention(inputs):
    """
    The context `n 1 h d` of the last token alone, after a cache: what it sees are slices of what is there, most often
    all of it.
    """
    num_global_tokens, block_size = inputs.num_global_tokens, inputs.config.block_size
    sparse_key, sparse_value, sparse_mask = inputs.sparse
    before = (inputs.num_tokens - 1) // block_size - 1  # the block before its own
    end = max(inputs.num_past_sparse + before * inputs.step, 0)
    sparse = slice(max(end - inputs.config.sparse_block_size, 0), end)
    near = num_global_tokens + max(before, 0) * block_size

    def seen(x, sparse_x):
        parts = [x] if near == num_global_tokens else [x[:, :, :num_global_tokens], x[:, :, near:]]
        parts += [sparse_x[:, :, sparse]] if sparse.start < sparse.stop else []
        return torch.cat(parts, 2) if len(parts) > 1 else x

    mask = None
    if inputs.mask is not None or sparse_mask is not None:
        ends = [inputs.num_tokens, inputs.num_tokens + sparse_key.shape[2]]
        of_tokens, of_sparse, of_globals = inputs.key_mask().tensor_split(ends, 2)
        mask = seen(torch.cat([of_globals, of_tokens], 2), of_sparse)[:, :, None]
    keys, values = seen(inputs.key, sparse_key), seen(inputs.value, sparse_value)
    return product(inputs.query, keys, values, mask, inputs).transpose(1, 2)
