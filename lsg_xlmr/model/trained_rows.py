# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""An embedding of which the first rows alone are trained."""

import torch
from torch import nn


class TrainedRows(nn.Embedding):
    """
    The first `count` rows of `embedding` as its parameter, so that neither weight decay nor the optimizer's state can
    touch the others. Saved and loaded it is the whole embedding, under the same name.

    Args:
        embedding (`nn.Embedding`): with `weight` of shape `(rows, hidden_size)`.
        count (`int`): how many rows there are to train.
    """

    def __init__(self, embedding, count):
        weight = embedding.weight.detach()
        super().__init__(count, weight.shape[1], _weight=weight[:count].clone())
        self.register_buffer("kept", weight[count:].clone(), persistent=False)
        self.register_state_dict_post_hook(_join)
        self.register_load_state_dict_pre_hook(_split)


def _join(module, state_dict, prefix, local_metadata):
    name = f"{prefix}weight"
    state_dict[name] = torch.cat([state_dict[name], module.kept.to(state_dict[name])])


def _split(module, state_dict, prefix, *args):
    name = f"{prefix}weight"
    if name in state_dict:
        state_dict[name], kept = state_dict[name].tensor_split([module.num_embeddings])
        module.kept.copy_(kept)
