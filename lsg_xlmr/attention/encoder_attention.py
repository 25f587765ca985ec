# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""LSG attention of an encoder: from queries, keys, values and a mask to the context, by several implementations."""

from ..cpu.memory import keep_freed_memory
from ..cpu.threads import runs_in_pieces
from .blockwise import blockwise_attention
from .compiled import compiled_attention, is_compiled
from .eager import eager_attention
from .flex import flex_attention, flex_attention_fits
from .full import full_attention
from .windowed import windowed_attention


IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention")


def lsg_attention(inputs, implementation):
    """
    All implementations give the same numbers.

    Args:
        inputs ([`AttentionInputs`]).
        implementation (`str`): `"eager"`; `"sdpa"`: block by block on CPU, elsewhere (and when traced or compiled)
            `scaled_dot_product_attention` on all windows at once; `"flex_attention"`, for which `"sdpa"` stands in
            where it has no fused kernel: off CUDA, with dropout, for heads smaller than 16, and when traced or
            compiled.

    Returns:
        the context `n T h d` and, from `"eager"`, the attention weights of tokens to tokens without padding (otherwise
        `None`). The rows of queries that are masked themselves carry no meaning.
    """
    in_pieces = runs_in_pieces(inputs.query)
    if in_pieces:
        keep_freed_memory()
    if implementation == "eager":
        return eager_attention(inputs)
    if inputs.is_full:
        return full_attention(inputs.query, inputs), None
    if implementation == "flex_attention" and flex_attention_fits(inputs):
        return flex_attention(inputs), None
    if in_pieces:
        return blockwise_attention(inputs), None
    return (compiled_attention if is_compiled(inputs.query) else windowed_attention)(inputs), None
