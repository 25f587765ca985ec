# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
A decoder's texts that begin with padding: blocks are counted from a text's first token, so that it gets the answer
it gets alone. Without a cache the padding is moved to the end; with one, where texts then end at different places of
their blocks, they are read one by one.
"""

import torch
from torch.nn.functional import pad
from transformers.utils.import_utils import is_tracing


def attend_from_first_tokens(attend, query, key, value, mask, layer, update, config):
    """
    Args:
        attend (`Callable`): from query, key, value (`n h T d`), mask, layer and what updates it to the context
            `n T h d` and the attention weights (`n h t t` or `None`).
        query, key, value (`torch.Tensor` of shape `n h T d`): of the globals, where the cache does not have them, and
            of the new tokens.
        mask (`torch.BoolTensor` of shape `n G+t`, or `None`): of all tokens, those in the cache included.
        layer ([`LSGCacheLayer`], *optional*).
        update (`Callable`, *optional*): puts keys and values in `layer`.
        config ([`LSGConfig`]).

    Returns:
        what `attend` gives, by position; what stands at padding carries no meaning.
    """
    if layer is None:
        if mask is None or not is_tracing(mask) and not _begins_padded(mask, config):
            return attend(query, key, value, mask, None, None)
        return _attend_shifted(attend, query, key, value, mask, config.num_global_tokens)
    if layer.rows is None and (layer.cumulative_length or mask is None or not _begins_padded(mask, config, 0)):
        return attend(query, key, value, mask, layer, update)
    return _attend_row_by_row(attend, query, key, value, mask, layer, config.num_global_tokens)


def _begins_padded(mask, config, num_blocks=2):
    """Whether any text does, among more tokens than `num_blocks` blocks have: in so few borders make no difference."""
    tokens = mask[:, config.num_global_tokens :]
    return not is_tracing(mask) and tokens.shape[1] > num_blocks * config.block_size and not tokens[:, 0].all()


def _padding(mask, num_global_tokens):
    """How many positions of padding each text begins with, `n`."""
    return (mask[:, num_global_tokens:].long().cumsum(1) == 0).sum(1)


def _attend_shifted(attend, query, key, value, mask, num_global_tokens):
    padding, num_tokens = _padding(mask, num_global_tokens), mask.shape[1] - num_global_tokens
    globals_, tokens = (torch.arange(size, device=mask.device) for size in (num_global_tokens, num_tokens))

    def places(shift):  # n T
        moved, size = tokens + shift[:, None], tokens[-1:] + 1  # a tensor, for exporters
        moved = torch.where(moved < 0, moved + size, torch.where(moved < size, moved, moved - size))
        return torch.cat([globals_.expand(mask.shape[0], -1), num_global_tokens + moved], 1)

    there, back = places(padding), places(-padding)
    tensors = (x.gather(2, there[:, None, :, None].expand_as(x)) for x in (query, key, value))
    context, weights = attend(*tensors, mask.gather(1, there), None, None)
    context = context.gather(1, back[:, :, None, None].expand_as(context))
    if weights is not None:
        back = back[:, num_global_tokens:] - num_global_tokens
        weights = weights.gather(2, back[:, None, :, None].expand_as(weights))
        weights = weights.gather(3, back[:, None, None].expand_as(weights))
    return context, weights


def _attend_row_by_row(attend, query, key, value, mask, layer, num_global_tokens):
    before = layer.cumulative_length
    num_globals = 0 if before else num_global_tokens
    num_tokens = key.shape[2] - num_globals
    rows = layer.by_row(len(key), num_tokens)
    if mask is None:
        padding = [before - row.cumulative_length for row in rows]
    else:
        padding = _padding(mask, num_global_tokens).tolist()
    contexts, weights = [], []
    for i, num_hidden in enumerate(padding):
        row, row_mask = slice(i, i + 1), None
        if mask is not None:
            row_mask = _without(mask[row], num_global_tokens, num_hidden, dim=1)
            row_mask = None if row_mask.all() else row_mask
        num_new_hidden = min(max(num_hidden - before, 0), num_tokens)
        tensors = (_without(x[row], num_globals, num_new_hidden, dim=2) for x in (query, key, value))
        context, of_row = attend(*tensors, row_mask, rows[i], rows[i].update)
        of_globals, of_tokens = context.tensor_split([num_globals], 1)
        contexts.append(torch.cat([of_globals, pad(of_tokens, (0, 0, 0, 0, num_new_hidden, 0))], 1))
        if of_row is not None:
            weights.append(pad(of_row, (num_new_hidden, 0, num_new_hidden, 0)))
    return torch.cat(contexts), torch.cat(weights) if weights else None


def _without(x, start, length, dim):
    """`x` without `length` positions from `start` on."""
    return torch.cat([x.narrow(dim, 0, start), x.narrow(dim, start + length, x.shape[dim] - start - length)], dim)
