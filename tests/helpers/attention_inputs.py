"""Queries, keys and values as a layer makes them, and the encoder's attention of them."""

import torch

from lsg_xlmr.attention.encoder_attention import lsg_attention
from lsg_xlmr.attention.pattern import AttentionInputs
from lsg_xlmr.attention.sparsity import lsh_cluster_counts, lsh_projections


SPARSITY_TYPES = ("none", "norm", "pooling", "bos_pooling", "lsh", "stride", "block_stride")
HEADS, HEAD_DIM = 4, 8


def make_inputs(config, t, lengths=None, dtype=torch.float32):
    """Queries, keys and values `n h G+t d`, the positions' mask `n G+t` (or `None`) and projections for `lsh`."""
    positions = config.num_global_tokens + t
    inputs = [torch.randn(2, positions, HEADS, HEAD_DIM).to(dtype).transpose(1, 2) for _ in range(3)]
    mask = None
    if lengths is not None:
        mask = torch.ones(2, positions, dtype=torch.bool)
        for row, length in zip(mask, lengths):
            row[config.num_global_tokens + length :] = False
    projections = None
    if config.sparsity_type == "lsh":
        projections = lsh_projections(0, 0, HEADS, HEAD_DIM, lsh_cluster_counts(config), torch.device("cpu"))
    return inputs, mask, projections


def attend(query, key, value, mask, projections, config, implementation, dropout=0.0):
    """The context and the weights, if any; arguments as [`AttentionInputs`] has them."""
    inputs = AttentionInputs(query, key, value, mask, config, query.shape[-1] ** -0.5, dropout, projections)
    return lsg_attention(inputs, implementation)
