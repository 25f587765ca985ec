# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
What the inputs of a model must be, said before torch fails within: a `TypeError` for what is no tensor, a
`ValueError` for a wrong dtype, shape, place or value. Values are looked at on the CPU alone.
"""

import torch
from transformers.utils.import_utils import is_tracing


ID_DTYPES = (torch.int64, torch.int32)  # those of torch's embedding
OWN_GLOBALS = "LSG attention has global tokens of its own beside the text's, as many as `num_global_tokens` says"
# Arguments of other models and of older ones, which the stock heads drop without a word.
OF_OTHERS = {
    "global_attention_mask": f"{OWN_GLOBALS}, which see and are seen by all. Leave it out.",
    "head_mask": "transformers 5 has none. Set columns of `attention.output.dense.weight` to 0, a head's each.",
}


def check_arguments(kwargs):
    """
    Raises:
        TypeError: one of `kwargs` (`dict`) is an argument of other models whose effect would be missed.
    """
    for name, instead in OF_OTHERS.items():
        if kwargs.get(name) is not None:
            raise TypeError(f"LSG models take no `{name}`: {instead}")


def check_ids(name, ids, size, shape=None):
    """
    Args:
        name (`str`): of the argument.
        ids (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): numbers of rows of a table.
        size (`int`): how many rows the table has.
        shape (`tuple`, *optional*): batch size and length, of which the first may be 1 in `ids`.
    """
    if ids is None:
        return
    _check_tensor(name, ids)
    if ids.ndim != 2 or ids.dtype not in ID_DTYPES:
        raise ValueError(
            f"`{name}` must be whole numbers (int64 or int32) of shape (batch_size, sequence_length), got {ids.dtype} "
            f"of shape {tuple(ids.shape)}. A tokenizer gives them with return_tensors='pt'."
        )
    if shape is not None and (ids.shape[1] != shape[1] or ids.shape[0] not in (1, shape[0])):
        raise ValueError(f"`{name}` has shape {tuple(ids.shape)}, and must have that of the input, {tuple(shape)}.")
    if not _can_be_looked_at(ids):
        return
    lowest, highest = (int(x) for x in ids.aminmax())
    if lowest < 0 or highest >= size:
        raise ValueError(
            f"`{name}` holds {lowest if lowest < 0 else highest}, and must be from 0 to {size - 1}: is it made for "
            "another checkpoint?"
        )


def check_states(name, states, hidden_size, batch_size=None):
    """
    Args:
        name (`str`): of the argument.
        states (`torch.Tensor` of shape `(batch_size, length, hidden_size)`, *optional*).
    """
    if states is None:
        return
    _check_tensor(name, states)
    if states.ndim != 3 or states.shape[2] != hidden_size or batch_size not in (None, states.shape[0]):
        raise ValueError(
            f"`{name}` must be of shape ({batch_size or 'batch_size'}, length, {hidden_size}), got "
            f"{tuple(states.shape)}."
        )
    if not states.is_floating_point():
        raise ValueError(f"`{name}` must be of a floating dtype, as the model's weights are, got {states.dtype}.")


def check_mask(mask, batch_size, length):
    """Of `mask` (`torch.Tensor` of shape `(batch_size, length)`): 0 where a token is hidden, 1 elsewhere."""
    _check_tensor("attention_mask", mask)
    if mask.shape != (batch_size, length):
        raise ValueError(
            f"`attention_mask` has shape {tuple(mask.shape)}, but LSG attention takes one value per token, those in "
            f"the cache included: {(batch_size, length)}."
        )
    if mask.dtype == torch.bool or not _can_be_looked_at(mask):
        return
    lowest, highest = (x.item() for x in mask.aminmax())
    if not lowest >= 0:
        found, meant = lowest, "masks that are added to scores have other numbers."
    elif highest > 1:
        found, meant = highest, f"{OWN_GLOBALS}, and no token of the text is marked as one."
    else:
        return
    raise ValueError(
        f"`attention_mask` holds {found}, where LSG attention takes 1 for a token and 0 for padding; {meant}"
    )


def check_place(name, tensor, weight):
    """That `tensor` is on the device of `weight`, and of no floats that its dtype cannot hold."""
    if tensor is None:
        return
    if tensor.device != weight.device:
        raise ValueError(
            f"`{name}` is on the device {tensor.device}, and the model on {weight.device}: move one to the other by "
            ".to(device)."
        )
    is_wider = tensor.is_floating_point() and torch.promote_types(tensor.dtype, weight.dtype) != weight.dtype
    if is_wider and not torch.is_autocast_enabled(weight.device.type):
        raise ValueError(
            f"`{name}` is of {tensor.dtype}, and the model's weights of {weight.dtype}: convert one to the other by "
            ".to(dtype)."
        )


def _check_tensor(name, value):
    if not isinstance(value, torch.Tensor):
        raise TypeError(
            f"`{name}` must be a torch.Tensor, got {type(value).__name__}. A tokenizer gives one with "
            "return_tensors='pt'."
        )
    if value.layout != torch.strided or value.is_nested:
        raise ValueError(f"`{name}` must be an ordinary tensor, not a sparse or nested one: .to_dense() makes it one.")


def _can_be_looked_at(x):
    """Off the CPU a look would make it wait, and a graph is to hold for other values."""
    return x.device.type == "cpu" and not is_tracing(x) and x.numel() > 0
