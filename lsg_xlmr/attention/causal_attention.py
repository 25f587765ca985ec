# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""LSG attention of a decoder, which is causal, with and without a cache."""

from torch.nn.functional import dropout as apply_dropout

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
    if runs_in_pieces(inputs.query):
        keep_freed_memory()
        return blockwise_attention(inputs), None
    if inputs.num_global_queries and not inputs.is_full:
        return windowed_attention(inputs), None
    keys, values = (inputs.with_sparse(*x) for x in zip((inputs.key, inputs.value), inputs.sparse))
    return product(inputs.query, keys, values, inputs.visible(), inputs).transpose(1, 2), None
