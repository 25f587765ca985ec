# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""LSG attention by torch's FlexAttention: over `[tokens | sparse | globals]`, without windows."""

from functools import lru_cache

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention as torch_flex_attention
from transformers.integrations.flex_attention import compile_friendly_flex_attention

from .full import with_globals
from .pattern import is_visible


# Where FlexAttention is compiled to a fused kernel; elsewhere it would materialize all scores.
FLEX_DEVICES = ("cuda",)
MIN_FLEX_HEAD_DIM = 16


def flex_attention_fits(inputs):
    """Whether FlexAttention has a fused kernel for `inputs`: not off CUDA, with dropout, or for heads below 16."""
    query = inputs.query
    return query.device.type in FLEX_DEVICES and inputs.dropout == 0 and query.shape[-1] >= MIN_FLEX_HEAD_DIM


def flex_attention(inputs):
    """
    The context `n T h d` of `inputs` ([`AttentionInputs`]): one kernel with a block mask of the LSG pattern,
    compiled by torch on first use, except on CPU.
    """
    query, key, config = inputs.query, inputs.key, inputs.config
    num_global_tokens, t = inputs.num_global_tokens, inputs.num_tokens
    sparse_key, sparse_value, sparse_mask = inputs.sparse
    m = sparse_key.shape[2]
    block_mask = _block_mask(t, m, num_global_tokens, config.block_size, config.sparse_block_size, key.device)
    if inputs.mask is not None or sparse_mask is not None:
        block_mask = _with_key_mask(block_mask, inputs.key_mask().expand(-1, key.shape[1], -1))
    attention = torch_flex_attention if key.device.type == "cpu" else compile_friendly_flex_attention
    context = attention(
        query[:, :, inputs.num_global_queries :],
        inputs.with_sparse(key, sparse_key),
        inputs.with_sparse(inputs.value, sparse_value),
        block_mask=block_mask,
        scale=inputs.scaling,
    )
    return with_globals(context.transpose(1, 2), inputs)


@lru_cache(maxsize=32)
def _block_mask(t, m, num_global_tokens, block_size, sparse_block_size, device):
    """The pattern's block mask, the same for every layer, head and sequence."""

    def mask_mod(batch, head, q, k):
        return is_visible(q, k, t, m, block_size, sparse_block_size)

    return create_block_mask(mask_mod, None, None, t, t + m + num_global_tokens, device=device)


def _with_key_mask(block_mask, key_mask):
    """`block_mask` with the keys of `key_mask` (`n h t+m+G`) alone: none of its blocks can count as full any more."""
    blocks = block_mask.to_dense()
    pattern = block_mask.mask_mod

    def mask_mod(batch, head, q, k):
        return pattern(batch, head, q, k) & key_mask[batch, head, k]

    return BlockMask.from_kv_blocks(
        blocks.sum(-1, dtype=torch.int32),
        blocks.argsort(dim=-1, descending=True, stable=True).to(torch.int32),
        BLOCK_SIZE=block_mask.BLOCK_SIZE,
        mask_mod=mask_mod,
        seq_lengths=block_mask.seq_lengths,
    )
