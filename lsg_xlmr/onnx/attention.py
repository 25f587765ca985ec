# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
LSG attention as ONNX functions: the attention written in ONNX operators, the sparse tokens traced from `sparsity.py`.

The two are functions of the domain "lsg" while the graph is made, and inlined before it is written: what is left are
standard operators. Shapes are those of `attention/pattern.py`.
"""

import onnxscript
import torch
from onnxscript import BOOL, FLOAT, INT64, graph, opset18 as op
from torch import nn
from torch.nn.functional import pad

from ..attention.pattern import AttentionInputs, hidden_score
from ..attention.sparsity import lsh_cluster_counts


LSG = onnxscript.values.Opset("lsg", 1)


@onnxscript.script(LSG, default_opset=op)
def Attention(  # an ONNX operator's name
    query,
    key,
    value,
    mask,
    bias,
    projections,
    hidden_states,
    block_size: int,
    sparse_block_size: int,
    step: int,
    num_global_tokens: int,
    scaling: float,
) -> FLOAT:  # pragma: no cover (onnxscript reads this, Python never runs it)
    """
    LSG attention of one layer: up to two blocks full attention, past them block by block.

    Args:
        query, key, value (`n h T d`): globals first.
        mask (bool, `n T`), bias (`n h 1 T`): the same twice, as `True` and 0 where a key may be seen, as `False` and
            [`hidden_score`] where not.
        projections (`h d p`): see [`SparseTokens`].
        hidden_states (`n T h*d`): what the layer was given, for its shape.

    Returns:
        the context, `n T h*d`.
    """
    zero = op.Constant(value_ints=[0])
    row_axis = op.Constant(value_ints=[1])
    axis = op.Constant(value_ints=[2])
    last_axis = op.Constant(value_ints=[3])
    b = op.Constant(value_int=block_size)
    s = op.Constant(value_int=sparse_block_size)
    sparse_step = op.Constant(value_int=step)
    num_globals = op.Constant(value_int=num_global_tokens)
    factor = op.CastLike(op.Constant(value_float=scaling), query)
    nothing = op.Constant(value_int=0)
    one = op.Constant(value_int=1)
    two = op.Constant(value_int=2)
    shape = op.Shape(hidden_states)
    # Of the mask, which is every layer's: the graph computes it once.
    length = op.Shape(mask, start=1, end=2)
    num_tokens = op.Squeeze(length) - num_globals
    if num_tokens <= two * b:
        scores = op.MatMul(query * factor, op.Transpose(key, perm=[0, 1, 3, 2])) + bias
        full_context = op.MatMul(op.Softmax(scores, axis=-1), value)
        context = op.Reshape(op.Transpose(full_context, perm=[0, 2, 1, 3]), shape)
    else:
        sparse_key, sparse_value, sparse_bias = LSG.SparseTokens(query, key, value, mask, projections)
        first_token = op.Unsqueeze(num_globals, zero)
        global_key = op.Slice(key, zero, first_token, axis)
        global_value = op.Slice(value, zero, first_token, axis)
        global_bias = op.Slice(bias, zero, first_token, last_axis)
        block_rows = op.Unsqueeze(b, zero)
        no_padding = op.Constant(value_ints=[0, 0, 0, 0, 0, 0])

        # Block by block, so that what is computed stays in cache. `Slice` cuts what reaches past the end.
        @graph()
        def attend(i: INT64, condition: BOOL):
            start = num_globals + i * b
            query_start = op.Unsqueeze(start, zero)
            query_stop = op.Unsqueeze(start + b, zero)
            near_start = op.Unsqueeze(op.Max(start - b, num_globals), zero)
            near_stop = op.Unsqueeze(start + two * b, zero)
            left = op.Max((i - one) * sparse_step, nothing)
            left_start = op.Unsqueeze(op.Max(left - s, nothing), zero)
            left_stop = op.Unsqueeze(left, zero)
            right = (i + two) * sparse_step
            right_start = op.Unsqueeze(right, zero)
            right_stop = op.Unsqueeze(right + s, zero)
            block_key = op.Concat(
                global_key,
                op.Slice(sparse_key, left_start, left_stop, axis),
                op.Slice(key, near_start, near_stop, axis),
                op.Slice(sparse_key, right_start, right_stop, axis),
                axis=2,
            )
            block_value = op.Concat(
                global_value,
                op.Slice(sparse_value, left_start, left_stop, axis),
                op.Slice(value, near_start, near_stop, axis),
                op.Slice(sparse_value, right_start, right_stop, axis),
                axis=2,
            )
            block_bias = op.Concat(
                global_bias,
                op.Slice(sparse_bias, left_start, left_stop, last_axis),
                op.Slice(bias, near_start, near_stop, last_axis),
                op.Slice(sparse_bias, right_start, right_stop, last_axis),
                axis=3,
            )
            block_query = op.Slice(query, query_start, query_stop, axis) * factor
            block_scores = op.MatMul(block_query, op.Transpose(block_key, perm=[0, 1, 3, 2])) + block_bias
            block_context = op.MatMul(op.Softmax(block_scores, axis=-1), block_value)
            # What a loop collects has the same shape each time: the last block is filled up.
            missing = block_rows - op.Shape(block_query, start=2, end=3)
            whole_block = op.Pad(block_context, op.Concat(no_padding, missing, zero, axis=0))
            going_on = op.Identity(condition)
            return going_on, whole_block

        num_blocks = (num_tokens + b - one) / b
        always = one == one  # a loop begins under a condition
        contexts = op.Loop(num_blocks, always, body=attend)  # blocks n h b d
        rows = op.Concat(op.Constant(value_ints=[0, -1]), op.Slice(shape, axis, last_axis, zero), axis=0)
        token_rows = op.Reshape(op.Transpose(contexts, perm=[1, 0, 3, 2, 4]), rows)
        token_context = op.Slice(token_rows, zero, op.Unsqueeze(num_tokens, zero), row_axis)
        # Its condition is a constant: one of the two is left. OpenVINO takes wrong shapes for what is empty.
        if num_globals > nothing:
            global_query = op.Slice(query, zero, first_token, axis) * factor
            global_scores = op.MatMul(global_query, op.Transpose(key, perm=[0, 1, 3, 2])) + bias
            global_context = op.MatMul(op.Softmax(global_scores, axis=-1), value)
            global_rows = op.Reshape(op.Transpose(global_context, perm=[0, 2, 1, 3]), rows)
            states = op.Concat(global_rows, token_context, axis=1)
        else:
            states = op.Identity(token_context)
        context = op.Reshape(states, shape)
    # OpenVINO infers no shape of what an `If` gives, and computes on with whatever it takes for one.
    return op.Reshape(context, shape)


class SparseTokens(nn.Module):
    """What the ONNX function "SparseTokens" is traced from."""

    def __init__(self, config):
        super().__init__()
        self.config = config

    def forward(self, query, key, value, mask, projections):
        """
        Args:
            query, key, value (`n h T d`), mask (bool, `n T`): globals first, any number of tokens.
            projections (`h d p`): those of all rounds of `lsh`, beside each other.

        Returns:
            sparse keys and values (`n h m d`) and their bias (`n h 1 m`).
        """
        num_tokens = key.shape[2] - self.config.num_global_tokens
        num_blocks = (num_tokens + self.config.block_size - 1) // self.config.block_size
        padding = num_blocks * self.config.block_size - num_tokens
        key, value = (pad(x, (0, 0, 0, padding)) for x in (key, value))
        sizes = [(count + 1) // 2 for count in lsh_cluster_counts(self.config)] if projections.numel() else []
        projections = projections.split(sizes, -1) if sizes else None
        inputs = AttentionInputs(
            query, key, value, pad(mask, (0, padding)), self.config, key.shape[3] ** -0.5, projections=projections
        )
        sparse_key, sparse_value, sparse_mask = inputs.sparse_tokens()
        n, h, m, _ = sparse_key.shape
        sparse_mask = mask.new_ones(n, 1, m) if sparse_mask is None else sparse_mask
        return sparse_key, sparse_value, additive(sparse_mask, key.dtype).expand(-1, h, -1)[:, :, None]


def additive(mask, dtype):
    """0 where `mask` (bool) is `True`, [`hidden_score`] elsewhere, of `dtype`."""
    return torch.where(mask, 0.0, hidden_score(dtype)).to(dtype)
