# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
LSG attention one block of queries at a time, with its backward: the block's window of keys is gathered in a buffer
that stays in cache. Blocks are shared out among threads, each of which works on its own.
"""

import threading

import torch

from ..cpu.dropout import draw_dropout, dropout_scale, kept_elements
from ..cpu.threads import num_parallel, run_in_parallel
from .blocks import blocks_of_sequences
from .pattern import hidden_score


# Pieces of work a thread has at least, so that threads end together.
PIECES_A_THREAD = 4
# Floats of the widest vector register: rows of scores that are not whole vectors make their product a fifth slower.
VECTOR_SIZE = 16

WAY_OUT = "Load the model with attn_implementation='eager', or call model.set_attn_implementation('eager')."


def blockwise_attention(inputs):
    """
    The context `n q h d` of `inputs` ([`AttentionInputs`] or [`CausalInputs`]). For CPU: no tensor is as large as
    `t x window`, and blocks of padding cost nothing.

    Raises:
        RuntimeError: second derivatives or a transform of `torch.func` are asked for.
    """
    tensors = inputs.query, inputs.key, inputs.value, *inputs.sparse[:2]
    is_half = inputs.query.dtype == torch.float16
    if is_half:  # scores have a wider range than what they are made of
        tensors = [x.float() for x in tensors]
    try:
        context = _BlockwiseAttention.apply(*tensors, blocks_of_sequences(inputs), inputs.scaling, inputs.dropout)
        return context.half() if is_half else context
    except RuntimeError as error:
        if "setup_context" not in str(error):
            raise
        raise RuntimeError(f"torch.func cannot transform LSG attention block by block. {WAY_OUT}") from error


class _BlockwiseAttention(torch.autograd.Function):
    """
    The products of every [`Block`]. Nothing of the size `t x window` is kept but a byte a weight where there is
    dropout: the backward pass computes each block's weights again (as FlashAttention does; Dao et al., 2022, arXiv
    2205.14135).
    """

    @staticmethod
    def forward(ctx, query, key, value, sparse_key, sparse_value, blocks, scaling, dropout):
        tensors = query, key, value, sparse_key, sparse_value
        context, ctx.draws = attend(tensors, blocks, scaling, dropout)
        ctx.blocks, ctx.scaling, ctx.dropout = blocks, scaling, dropout
        ctx.save_for_backward(*tensors, context)
        return context

    @staticmethod
    def backward(ctx, grad_context):
        grads = _BlockwiseGradients.apply(
            grad_context, *ctx.saved_tensors, ctx.blocks, ctx.scaling, ctx.dropout, ctx.draws
        )
        return *grads, None, None, None


class _BlockwiseGradients(torch.autograd.Function):
    """
    The backward pass of [`_BlockwiseAttention`]. It has none itself and says so where one is asked for: marked as
    `once_differentiable` it would be left out of second derivatives without a word.
    """

    @staticmethod
    def forward(ctx, grad_context, *args):
        *tensors, context, blocks, scaling, dropout, draws = args
        draws = iter(draws)
        return tuple(
            attend_backward(grad_context, context, tensors, blocks, scaling, dropout, lambda shape: next(draws))
        )

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(f"LSG attention block by block has no second derivatives. {WAY_OUT}")


def attend(tensors, blocks, scaling, dropout):
    """
    Args:
        tensors: queries (`n h q d`), keys, values (`n h T d`), sparse keys and sparse values (`n h m d`).
        blocks (list): of [`blocks_of_sequences`].
        scaling, dropout (`float`): as in [`AttentionInputs`].

    Returns:
        the context, by position as the queries, and what was drawn for dropout, block by block.
    """
    inputs, draws = [_by_position(x) for x in tensors], []
    num_positions = inputs[0].shape[1]
    # Blocks of padding are left out below, and must still be finite.
    complete = all(sum(block.num_queries for block in of_sequence) == num_positions for of_sequence in blocks)
    context = (tensors[0].new_empty if complete else tensors[0].new_zeros)(inputs[0].shape)  # n T h d
    buffers = _Buffers(context)

    def attend_block(piece):
        block, (q, k, v, sk, sv, out) = piece
        queries = block.queries
        keys, values = buffers.gather("keys", block, k, sk), buffers.gather("values", block, v, sv)
        weights = _block_weights(buffers, q[queries].transpose(0, 1), keys, block, scaling)
        if dropout > 0:
            draws.append(draw_dropout(weights.shape, dropout))
            weights.mul_(buffers.kept(weights.shape, draws[-1]))
        out[queries] = buffers.product("context", weights, values, dropout_scale(dropout)).transpose(0, 1)

    with torch.autocast("cpu", enabled=False):
        run_in_parallel(attend_block, _pieces(blocks, *inputs, context))
    return context, draws


def attend_backward(grad_context, context, tensors, blocks, scaling, dropout, draw):
    """
    Args:
        grad_context (`torch.Tensor` of shape `n T h d`): the gradient of `context`; the others are as [`attend`] takes
            and returns them.
        draw (`Callable`): from the shape of a block's weights to what was drawn for it; the blocks come in the order
            in which [`attend`] drew.

    Returns:
        the gradients of `tensors`.
    """
    inputs = [_by_position(x) for x in tensors]
    buffers, scale = _Buffers(context), dropout_scale(dropout)
    # What the softmax's backward subtracts from every weight's gradient.
    means = (grad_context * context).sum(-1, keepdim=True)  # n T h 1
    grads = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in inputs]
    for of_sequence, grad_out, mean, q, k, v, sk, sv, gq, gk, gv, gsk, gsv in zip(
        blocks, grad_context, means, *inputs, *grads
    ):
        for block in of_sequence:
            queries = block.queries
            keys, values = buffers.gather("keys", block, k, sk), buffers.gather("values", block, v, sv)
            block_query, grad = q[queries].transpose(0, 1), grad_out[queries].transpose(0, 1)  # h b d
            weights = _block_weights(buffers, block_query, keys, block, scaling)  # h b w
            dropped = weights
            if dropout > 0:
                dropped = buffers.kept(weights.shape, draw(weights.shape)).mul_(weights)
            grad_values = buffers.product("grad_window", dropped.transpose(1, 2), grad, scale)
            buffers.scatter(grad_values, block, gv, gsv)
            grad_scores = buffers.product("grad_weights", grad, values.transpose(1, 2), scale)
            grad_scores.mul_(dropped).addcmul_(weights, mean[queries].transpose(0, 1), value=-1)
            gq[queries] = buffers.product("grad_query", grad_scores, keys, scaling).transpose(0, 1)
            grad_keys = buffers.product("grad_window", grad_scores.transpose(1, 2), block_query, scaling)
            buffers.scatter(grad_keys, block, gk, gsk)
    return [grad.transpose(1, 2) for grad in grads]


class _Buffers(threading.local):
    """Scratch tensors of a thread, used from block to block: fresh ones would leave the cache, and fault in pages."""

    def __init__(self, like):
        self.like, self.storage, self.views = like, {}, {}

    def empty(self, name, shape):
        if (name, shape) not in self.views:
            size = torch.Size(shape).numel()
            if name not in self.storage or self.storage[name].numel() < size:
                self.storage[name] = self.like.new_empty(size)
            self.views[name, shape] = self.storage[name][:size].view(shape)
        return self.views[name, shape]

    def product(self, name, x, y, scale):
        """`scale * x @ y`, batched."""
        out = self.empty(name, (x.shape[0], x.shape[1], y.shape[2]))
        return torch.baddbmm(out, x, y, beta=0, alpha=scale, out=out)

    def kept(self, shape, draw):
        return kept_elements(*draw, self.empty("kept", shape))

    def gather(self, name, block, tokens, sparse):
        """
        The window of `block`, `h w d`: slices of `tokens` (`T h d`) and `sparse` (`m h d`) one after the other; where
        they have to be copied, with zeros up to a multiple of `VECTOR_SIZE`.
        """
        parts = [(sparse if is_sparse else tokens)[start:stop] for is_sparse, start, stop in block.window]
        if len(parts) == 1:
            return parts[0].transpose(0, 1)
        width = block.width
        out = self.empty(name, (-(-width // VECTOR_SIZE) * VECTOR_SIZE, *parts[0].shape[1:]))
        torch.cat(parts, out=out[:width])
        out[width:] = 0
        return out.transpose(0, 1)

    @staticmethod
    def scatter(grad_window, block, tokens, sparse):
        """Add the slices of the window's gradient to where [`gather`] took them."""
        grad_window = grad_window.transpose(0, 1)[: block.width]
        parts = grad_window.split([stop - start for _, start, stop in block.window])
        for part, (is_sparse, start, stop) in zip(parts, block.window):
            (sparse if is_sparse else tokens)[start:stop] += part


def _by_position(x):
    """`n h T d` as `n T h d`, the order of memory, where a slice of positions is one run of bytes."""
    return x.transpose(1, 2)


def _pieces(blocks, *tensors):
    """
    The work of the blocks of every sequence: a list of `(block, tensors)`, with the sequence's part of `tensors`
    (each `n T|m h d`). In the order of `blocks`, all heads at once; for several threads the largest
    first, and some heads at a time where there is too little for the threads to end together.
    """
    num_heads, num_blocks, num_threads = tensors[0].shape[2], sum(map(len, blocks)), num_parallel()
    num_parts = 1 if num_threads == 1 else min(num_heads, -(-PIECES_A_THREAD * num_threads // max(num_blocks, 1)))
    bounds = [num_heads * i // num_parts for i in range(num_parts + 1)]
    pieces = []
    for of_sequence, *parts in zip(blocks, *tensors):
        for start, stop in zip(bounds, bounds[1:]):
            of_heads = [x[:, start:stop] for x in parts]
            for block in of_sequence:
                if block.key_mask is not None and len(block.key_mask) > 1:
                    block = block._replace(key_mask=block.key_mask[start:stop])
                pieces.append((block, of_heads))
    return pieces if num_threads == 1 else sorted(pieces, key=lambda piece: piece[0].num_weights, reverse=True)


def _block_weights(buffers, query, keys, block, scaling):
    scores = buffers.product("weights", query, keys.transpose(1, 2), scaling)  # h b w
    width = block.width
    scores[:, :, width:] = -torch.inf
    if block.key_mask is not None:
        # Added: filling in goes element by element, and takes longer than the product.
        additive_mask = torch.zeros_like(block.key_mask, dtype=scores.dtype)
        additive_mask.masked_fill_(~block.key_mask, hidden_score(scores.dtype))
        scores[:, :, :width] += additive_mask[:, None]
    if block.later is not None:
        scores[:, :, width - block.later.shape[1] : width] += block.later
    return torch.softmax(scores, -1, out=scores)
