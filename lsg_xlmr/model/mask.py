# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""From a user's `attention_mask` to the mask of all keys."""

import torch
from torch.nn.functional import pad
from transformers.utils.import_utils import is_tracing

from ..attention.lengths import is_open
from .checks import check_mask


def key_mask(attention_mask, batch_size, length, padding, config, device, num_prefix=0):
    """
    Args:
        attention_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*): 0 where a token is hidden.
        length (`int`): how many tokens there are, those in a cache included.
        padding (`int`): how many positions after them fill the last block.
        num_prefix (`int`): how many of the first are a prefix, before the first token.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, num_global_tokens + length + padding)`: `True` where a key may be
        seen; or `None` where all may.

    Raises:
        TypeError, ValueError: see [`check_mask`].
    """
    hides_first_token = config.mask_first_token and not config.is_decoder  # whose texts may begin with padding
    # Asked last whether there is padding: compiled, that ties a graph to the answer.
    if attention_mask is None and not hides_first_token and not is_open(length) and not padding:
        return None
    if attention_mask is None:
        mask = torch.ones(batch_size, length, dtype=torch.bool, device=device)
    else:
        check_mask(attention_mask, batch_size, length)
        mask = attention_mask.to(device) != 0
    if hides_first_token:
        mask = hide_token(mask, num_prefix)
    # Traced, the graph is to hold for all lengths and masks.
    if not is_tracing(mask) and not padding and mask.all():
        return None
    return pad(pad(mask, (0, padding), value=False), (config.num_global_tokens, 0), value=True)


def hide_token(mask, place, key=None):
    """
    `mask` (`torch.BoolTensor` of shape `n T`) with `False` at `place`. Where it is `None`, all of `key` (`n h T d`)
    may be seen else.
    """
    if mask is None:
        mask = torch.ones(key.shape[0], key.shape[2], dtype=torch.bool, device=key.device)
    return mask & (torch.arange(mask.shape[1], device=mask.device) != place)
