# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
LSG attention by torch's FlexAttention: over `[tokens | sparse | globals]` of packed texts, without windows.

What is compiled has fixed sizes, of a few lengths: with sizes that are symbols torch 2.13's kernels for CPUs give
wrong numbers, and nobody would see it.
"""

from copy import copy
from functools import cache
from itertools import count

import torch
from torch.nn.attention.flex_attention import flex_attention as torch_flex_attention
from transformers.utils import logging
from transformers.utils.import_utils import is_tracing

from .block_mask import block_mask, blocks_of_queries, is_seen_by, seen_by
from .full import with_globals
from .packed import Packing


# Where FlexAttention is compiled to a fused kernel forward and backward.
FLEX_DEVICES = ("cuda",)
MIN_FLEX_HEAD_DIM = 16

_numbers = count()


def has_flex_attention(x):
    """Whether there are kernels for `x` (`torch.Tensor`) where it is."""
    return x.device.type in FLEX_DEVICES


def flex_attention_fits(inputs):
    """
    Whether FlexAttention has a fused kernel for `inputs`: on CUDA, without dropout, for heads of at least 16, and not
    within a graph that is traced or compiled, where sizes may be symbols.
    """
    query = inputs.query
    if not has_flex_attention(query) or query.shape[-1] < MIN_FLEX_HEAD_DIM or is_tracing(query):
        return False
    if inputs.dropout > 0:
        _warn_of_windows(inputs)
    return inputs.dropout == 0


def flex_attention(inputs):
    """The context `n T h d` of `inputs` ([`AttentionInputs`])."""
    context = [_packed_attention(inputs, texts, packing) for texts, packing in Packing.all_of(inputs)]
    return with_globals(torch.cat(context) if len(context) > 1 else context[0], inputs)


def _packed_attention(inputs, texts, packing):
    """The context `n t h d` of the tokens of some texts (`slice`), which `packing` ([`Packing`]) lays out."""
    sparse_key, sparse_value, sparse_mask = inputs.sparse
    h, device = inputs.key.shape[1], inputs.key.device
    tiles = copy(block_mask(packing, inputs.mask, (texts.start, texts.stop), sparse_mask is not None, device))
    if inputs.mask is None and sparse_mask is None:
        may_be_seen = torch.ones(h, sum(packing.sections), dtype=torch.bool, device=device)
    else:
        sizes = inputs.num_tokens, sparse_key.shape[2], inputs.num_global_tokens
        mask = inputs.key_mask()[texts, :, :, None].expand(-1, h, -1, -1)
        may_be_seen = packing.keys(*mask.split(sizes, 2))[0, :, :, 0].contiguous()
    tiles.mask_mod = _mask_mod(packing, may_be_seen)

    def keys(x, sparse):
        globals_, tokens = x[texts].tensor_split([inputs.num_global_tokens], dim=2)
        return packing.keys(tokens, sparse[texts].to(x.dtype), globals_)  # autocast makes some sparse ones float32

    query = packing.queries(inputs.query[texts, :, inputs.num_global_queries :])
    key, value = keys(inputs.key, sparse_key), keys(inputs.value, sparse_value)
    return packing.texts(compiled_flex_attention(query, key, value, tiles, inputs.scaling))


def _mask_mod(packing, may_be_seen):
    """
    The pattern with the keys of `may_be_seen` (`h K`, bool) alone, as FlexAttention calls it. All that depends on more
    than the sizes is in tensors.
    """
    block = blocks_of_queries(packing, may_be_seen.device)
    first, last, hole = seen_by(packing, may_be_seen.device)

    def mask_mod(batch, head, q, k):
        return is_seen_by(block[q], first[k], last[k], hole[k]) & may_be_seen[head, k]

    return mask_mod


def compiled_flex_attention(query, key, value, block_mask, scale):
    """
    torch's FlexAttention, compiled for the sizes of what it is given: one graph for each of them and dtype, forward
    and backward, however many there are. On CPU only without gradients, and not on a thread with another number of
    torch's threads than the process has: the kernel would use memory that it has not taken.

    Args:
        query, key, value (`torch.Tensor` of shape `1 h L d`, `1 h K d` and `1 h K d`).
        block_mask ([`BlockMask`]): what it and its `mask_mod` hold are tensors, but for what the sizes decide.
        scale (`float`): what scores are multiplied by.

    Returns:
        `torch.Tensor` of shape `1 h L d`.
    """
    with_gradients = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    shapes = query.shape, key.shape, value.shape
    kernel = _kernel(*shapes, query.dtype, query.device, scale, with_gradients)
    with torch.set_grad_enabled(with_gradients), torch.autocast(query.device.type, enabled=False):
        return kernel(query, key, value, block_mask)


@cache
def _kernel(query_shape, key_shape, value_shape, dtype, device, scale, with_gradients):
    """
    A function for each kind of arguments. torch counts compilations by the code of what is compiled, and after eight
    it would go on without a fused kernel: so each function has a code of its own, and `fullgraph` makes it an error.
    """

    def kernel(query, key, value, block_mask):
        return torch_flex_attention(query, key, value, block_mask=block_mask, scale=scale)

    kernel.__code__ = kernel.__code__.replace(co_name=f"flex_attention_{next(_numbers)}")
    # In training torch 2.6 finds no kernel otherwise (pytorch issue 146260).
    mode = "max-autotune-no-cudagraphs" if with_gradients and torch.__version__.startswith("2.6.") else None
    return torch.compile(kernel, dynamic=False, fullgraph=True, mode=mode)


def _warn_of_windows(inputs):
    config = inputs.config
    windows = 3 + (inputs.num_global_tokens + 2 * config.sparse_block_size * (inputs.step > 0)) / config.block_size
    logging.get_logger(__name__).warning_once(
        f"attention_probs_dropout_prob={inputs.dropout} in training, and FlexAttention has no dropout: the keys and "
        f"values of all windows are gathered instead, {windows:.1f} times as many as there are tokens, in every "
        "layer. Load the model with attention_probs_dropout_prob=0.0 to train with FlexAttention, or with "
        "attn_implementation='sdpa' to have windows without this warning."
    )
