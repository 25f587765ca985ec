# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
LSG attention block by block as one operator in the graphs of `torch.compile`: the compiler sees no loop, so that a
graph is short, holds for any number of blocks, and runs the code of `blockwise.py` as it is.
"""

import re
from contextlib import contextmanager
from itertools import count
from types import SimpleNamespace

import torch

from ..cpu.dropout import draw_dropout
from ..cpu.threads import PIECEWISE_DEVICES
from .blocks import blocks_of_sequences
from .blockwise import attend, attend_backward
from .lengths import is_exporting
from .pattern import AttentionInputs


def _free_namespace():
    """
    A namespace of torch's operators that has none of these yet. This code may be imported several times in a process,
    by other names and by the same (transformers does so when the file has changed): operators defined again would
    take the place of those that the models made before still call.
    """
    module = re.sub(r"\W", "_", __name__)
    names = (f"{module}_{number}" for number in count())
    return next(name for name in names if not hasattr(getattr(torch.ops, name), "attention_backward"))


NAMESPACE = _free_namespace()


def is_compiled(x):
    """Whether `x` (`torch.Tensor`) is traced by `torch.compile` for a device that works in pieces."""
    # An exported graph is to run where these operators are not known.
    return torch.compiler.is_dynamo_compiling() and not is_exporting() and x.device.type in PIECEWISE_DEVICES


def compiled_attention(inputs):
    """The context `n T h d` of `inputs` ([`AttentionInputs`])."""
    sparse_key, sparse_value, sparse_mask = inputs.sparse
    # What is dropped is drawn again in the backward pass, from its seed.
    seed = torch.randint(2**62, (1,)) if inputs.dropout > 0 else None
    config = inputs.config
    # As keys a prefix is more globals; how many of them are queries the shapes tell.
    return _attention_operator(
        *(inputs.query, inputs.key, inputs.value, sparse_key, sparse_value),
        *(inputs.mask, sparse_mask, seed),
        [inputs.num_global_tokens, config.block_size, config.sparse_block_size, config.sparsity_factor],
        inputs.scaling,
        inputs.dropout,
    )


# Schemas are written out: torch 2.6 infers none from `list[int]`.
@torch.library.custom_op(
    f"{NAMESPACE}::attention",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, Tensor sparse_key, Tensor sparse_value, Tensor? mask, "
    "Tensor? sparse_mask, Tensor? seed, SymInt[] sizes, float scaling, float dropout) -> Tensor",
)
def _attention_operator(query, key, value, sparse_key, sparse_value, mask, sparse_mask, seed, sizes, scaling, dropout):
    tensors = query, key, value, sparse_key, sparse_value
    with _seeded(seed):
        return attend(tensors, _operator_blocks(tensors, mask, sparse_mask, sizes), scaling, dropout)[0]


@_attention_operator.register_fake
def _(query, *args):
    return query.transpose(1, 2).new_empty(query.transpose(1, 2).shape)


@torch.library.custom_op(
    f"{NAMESPACE}::attention_backward",
    mutates_args=(),
    schema="(Tensor grad_context, Tensor context, Tensor[] tensors, Tensor? mask, Tensor? sparse_mask, Tensor? seed, "
    "SymInt[] sizes, float scaling, float dropout) -> Tensor[]",
)
def _attention_backward_operator(grad_context, context, tensors, mask, sparse_mask, seed, sizes, scaling, dropout):
    blocks = _operator_blocks(tensors, mask, sparse_mask, sizes)
    with _seeded(seed):
        return attend_backward(
            grad_context, context, tensors, blocks, scaling, dropout, lambda shape: draw_dropout(shape, dropout)
        )


@_attention_backward_operator.register_fake
def _(grad_context, context, tensors, *args):
    return [
        torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2) for x in tensors
    ]


def _setup_context(ctx, inputs, output):
    *tensors, mask, sparse_mask, seed, ctx.sizes, ctx.scaling, ctx.dropout = inputs
    ctx.save_for_backward(output, *tensors, mask, sparse_mask, seed)


def _backward(ctx, grad_context):
    context, *tensors, mask, sparse_mask, seed = ctx.saved_tensors
    grads = _attention_backward_operator(
        grad_context, context, tensors, mask, sparse_mask, seed, ctx.sizes, ctx.scaling, ctx.dropout
    )
    return *grads, *[None] * 6


_attention_operator.register_autograd(_backward, setup_context=_setup_context)


def _operator_blocks(tensors, mask, sparse_mask, sizes):
    names = "num_global_tokens", "block_size", "sparse_block_size", "sparsity_factor"
    config = SimpleNamespace(**dict(zip(names, sizes)), has_sparse_tokens=tensors[3].shape[2] > 0)
    return blocks_of_sequences(AttentionInputs(*tensors[:3], mask, config, 1.0, _sparse=(*tensors[3:], sparse_mask)))


@contextmanager
def _seeded(seed):
    """torch's random numbers from `seed` (`torch.LongTensor` of one element, `None` where none are drawn)."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(seed))
        yield
