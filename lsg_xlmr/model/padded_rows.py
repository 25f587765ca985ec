# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
A decoder's texts that begin with padding, one by one: blocks are counted from a text's first token, so that it gets
the answer it gets alone.
"""

import torch
from torch.nn.functional import pad
from transformers.utils.import_utils import is_tracing


def left_padding(mask, layer, config):
    """
    How many positions of padding each text begins with.

    Args:
        mask (`torch.BoolTensor` of shape `(batch_size, num_global_tokens + tokens)`, or `None`): of all tokens, those
            in the cache included.
        layer ([`LSGCacheLayer`], *optional*): before the new tokens.
        config ([`LSGConfig`]).

    Returns:
        a list of `int`, or `None` where no text begins so, where it makes no difference, and in a traced graph, which
        cannot know.
    """
    if layer is not None and layer.cumulative_length:
        if layer.rows is None:
            return None
        if mask is None or all(row.cumulative_length for row in layer.rows):
            return [layer.cumulative_length - row.cumulative_length for row in layer.rows]
    elif mask is None or is_tracing(mask):
        return None
    is_padding = mask[:, config.num_global_tokens :].cumsum(1) == 0
    if layer is None and is_padding.shape[1] <= 2 * config.block_size or not is_padding.any():
        return None
    return is_padding.sum(1).tolist()


def attend_row_by_row(attend, padding, query, key, value, mask, layer, config):
    """
    Args:
        attend (`Callable`): from one text's query, key, value (`1 h T d`), mask and layer to the context `1 T h d` and
            the attention weights (`1 h t t` or `None`).
        padding (`list[int]`): what [`left_padding`] gives.
        query, key, value (`torch.Tensor` of shape `n h T d`): of the globals, where the cache does not have them, and
            of the new tokens.
        mask, layer, config: as [`left_padding`] takes them.

    Returns:
        the context `n T h d` and the weights (`n h t t` or `None`), 0 at the padding.
    """
    before = 0 if layer is None else layer.cumulative_length
    num_globals = 0 if before else config.num_global_tokens
    num_tokens = key.shape[2] - num_globals
    layers = [None] * len(padding) if layer is None else layer.by_row(len(padding), num_tokens)
    contexts, weights = [], []
    for i, num_hidden in enumerate(padding):
        row, row_mask = slice(i, i + 1), None
        if mask is not None:
            row_mask = _without(mask[row], config.num_global_tokens, num_hidden, dim=1)
            row_mask = None if row_mask.all() else row_mask
        num_new_hidden = min(max(num_hidden - before, 0), num_tokens)
        tensors = (_without(x[row], num_globals, num_new_hidden, dim=2) for x in (query, key, value))
        context, of_row = attend(*tensors, row_mask, layers[i])
        of_globals, of_tokens = context.tensor_split([num_globals], 1)
        contexts.append(torch.cat([of_globals, pad(of_tokens, (0, 0, 0, 0, num_new_hidden, 0))], 1))
        if of_row is not None:
            weights.append(pad(of_row, (num_new_hidden, 0, num_new_hidden, 0)))
    return torch.cat(contexts), torch.cat(weights) if weights else None


def _without(x, start, length, dim):
    """`x` without `length` positions from `start` on."""
    return torch.cat([x.narrow(dim, 0, start), x.narrow(dim, start + length, x.shape[dim] - start - length)], dim)
