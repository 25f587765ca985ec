# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
LSG attention one block of queries at a time, with its backward: the block's window of keys is gathered in a buffer
that stays in cache. Blocks are shared out among threads, each of which works on its own.
"""

import threading
from typing import NamedTuple

import torch

from ..cpu.dropout import draw_dropout, dropout_scale, kept_elements
from ..cpu.threads import num_parallel, run_in_parallel


# Pieces of work a thread has at least, so that threads end together.
PIECES_A_THREAD = 4
# Floats of the widest vector register: rows of scores that are not whole vectors make their product a fifth slower.
VECTOR_SIZE = 16

WAY_OUT = "Load the model with attn_implementation='eager', or call model.set_attn_implementation('eager')."


class Block(NamedTuple):
    """
    A product: of the queries at the positions `queries` with a window of keys, `(is_sparse, start, stop)` slices of
    the keys or the sparse keys. `key_mask` (`1|h w`, bool, `None` where nothing is masked) is that of the window;
    `later` (`q l`, 0 or -inf, `None` where there are none) is added to the scores of its last `l` keys.
    """

    queries: slice
    window: list
    key_mask: torch.Tensor | None = None
    later: torch.Tensor | None = None


def blockwise_attention(tensors, blocks, scaling, dropout):
    """
    For CPU: no tensor is as large as `t x window`, and blocks of padding cost nothing.

    Args:
        tensors: queries (`n h q d`), keys, values (`n h T d`), sparse keys and sparse values (`n h m d`).
        blocks (list): of [`blocks_of_sequences`] or [`causal_blocks`].
        scaling, dropout (`float`): as in [`AttentionInputs`].

    Returns:
        the context `n q h d`.

    Raises:
        RuntimeError: second derivatives or a transform of `torch.func` are asked for.
    """
    if tensors[0].dtype == torch.float16:  # scores have a wider range than what they are made of
        tensors = [x.float() for x in tensors]
        return blockwise_attention(tensors, blocks, scaling, dropout).half()
    try:
        return _BlockwiseAttention.apply(*tensors, blocks, scaling, dropout)
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
        tensors, blocks: as in [`blockwise_attention`].

    Returns:
        the context, by position as the queries, and what was drawn for dropout, block by block.
    """
    inputs, draws = [_by_position(x) for x in tensors], []
    num_positions = inputs[0].shape[1]
    # Blocks of padding are left out below, and must still be finite.
    complete = all(sum(map(_num_queries, of_sequence)) == num_positions for of_sequence in blocks)
    context = (tensors[0].new_empty if complete else tensors[0].new_zeros)(inputs[0].shape)  # n T h d
    buffers = _Buffers(context)

    def attend_block(piece):
        block, (q, k, v, sk, sv, out) = piece
        queries, window = block.queries, block.window
        keys, values = buffers.gather("keys", window, k, sk), buffers.gather("values", window, v, sv)
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
            queries, window = block.queries, block.window
            keys, values = buffers.gather("keys", window, k, sk), buffers.gather("values", window, v, sv)
            block_query, grad = q[queries].transpose(0, 1), grad_out[queries].transpose(0, 1)  # h b d
            weights = _block_weights(buffers, block_query, keys, block, scaling)  # h b w
            dropped = weights
            if dropout > 0:
                dropped = buffers.kept(weights.shape, draw(weights.shape)).mul_(weights)
            grad_values = buffers.product("grad_window", dropped.transpose(1, 2), grad, scale)
            buffers.scatter(grad_values, window, gv, gsv)
            grad_scores = buffers.product("grad_weights", grad, values.transpose(1, 2), scale)
            grad_scores.mul_(dropped).addcmul_(weights, mean[queries].transpose(0, 1), value=-1)
            gq[queries] = buffers.product("grad_query", grad_scores, keys, scaling).transpose(0, 1)
            grad_keys = buffers.product("grad_window", grad_scores.transpose(1, 2), block_query, scaling)
            buffers.scatter(grad_keys, window, gk, gsk)
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

    def gather(self, name, window, tokens, sparse):
        """
        The window, `h w d`: slices of `tokens` (`T h d`) and `sparse` (`m h d`) one after the other; where they have
        to be copied, with zeros up to a multiple of `VECTOR_SIZE`.
        """
        parts = [(sparse if is_sparse else tokens)[start:stop] for is_sparse, start, stop in window]
        if len(parts) == 1:
            return parts[0].transpose(0, 1)
        width = _width(window)
        out = self.empty(name, (-(-width // VECTOR_SIZE) * VECTOR_SIZE, *parts[0].shape[1:]))
        torch.cat(parts, out=out[:width])
        out[width:] = 0
        return out.transpose(0, 1)

    @staticmethod
    def scatter(grad_window, window, tokens, sparse):
        """Add the slices of the window's gradient to where [`gather`] took them."""
        grad_window = grad_window.transpose(0, 1)[: _width(window)]
        parts = grad_window.split([stop - start for _, start, stop in window])
        for part, (is_sparse, start, stop) in zip(parts, window):
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
    num_parts = 1 if num_threads == 1 else min(num_heads, -(-PIECES_A_THREAD * num_threads // num_blocks))
    bounds = [num_heads * i // num_parts for i in range(num_parts + 1)]
    pieces = []
    for of_sequence, *parts in zip(blocks, *tensors):
        for start, stop in zip(bounds, bounds[1:]):
            of_heads = [x[:, start:stop] for x in parts]
            for block in of_sequence:
                if block.key_mask is not None and len(block.key_mask) > 1:
                    block = block._replace(key_mask=block.key_mask[start:stop])
                pieces.append((block, of_heads))
    return pieces if num_threads == 1 else sorted(pieces, key=lambda piece: _num_weights(piece[0]), reverse=True)


def _num_weights(block):
    return _num_queries(block) * _width(block.window)


def _block_weights(buffers, query, keys, block, scaling):
    scores = buffers.product("weights", query, keys.transpose(1, 2), scaling)  # h b w
    width = _width(block.window)
    scores[:, :, width:] = -torch.inf
    if block.key_mask is not None:
        # Added: filling in goes element by element, and takes longer than the product.
        additive_mask = torch.zeros_like(block.key_mask, dtype=scores.dtype).masked_fill_(~block.key_mask, -torch.inf)
        scores[:, :, :width] += additive_mask[:, None]
    if block.later is not None:
        scores[:, :, width - block.later.shape[1] : width] += block.later
    return torch.softmax(scores, -1, out=scores)


def blocks_of_sequences(inputs, m, sparse_mask):
    """The blocks of every sequence of `inputs`; `m` sparse tokens, of which `sparse_mask` may hide some."""
    return [_blocks(inputs, sequence, m, sparse_mask) for sequence in range(len(inputs.key))]


def _blocks(inputs, sequence, m, sparse_mask):
    """
    All products of one sequence. Blocks and keys that are nothing but padding are left out. The most weights come
    first, so that every buffer is made once.
    """
    mask, t, num_global_tokens = inputs.mask, inputs.num_tokens, inputs.num_global_tokens
    b, s = inputs.config.block_size, inputs.config.sparse_block_size
    step = m * b // t
    first, last = _bounds(mask, sequence, num_global_tokens, t)
    globals_piece = (False, 0, num_global_tokens)
    everything = [globals_piece, (False, num_global_tokens + first, num_global_tokens + last)]
    blocks = [_block(slice(0, num_global_tokens), everything)]
    # Where sparse tokens are made of masked tokens too (`bos_pooling`), no block is without effect.
    seen_through_sparse = mask is not None and sparse_mask is None and m > 0
    for i in range(t // b) if seen_through_sparse else range(first // b, -(-last // b)):
        near = max((i - 1) * b, first), min((i + 2) * b, last)
        left = max((i - 1) * step - s, 0), max((i - 1) * step, 0)
        right = min((i + 2) * step, m), min((i + 2) * step + s, m)
        window = [
            (True, *left),
            globals_piece,
            (False, num_global_tokens + near[0], num_global_tokens + near[1]),
            (True, *right),
        ]
        blocks.append(_block(slice(num_global_tokens + i * b, num_global_tokens + (i + 1) * b), window))
    return _masked(blocks, mask, sparse_mask, sequence)


def causal_blocks(inputs):
    """The blocks of every sequence of `inputs` ([`CausalInputs`])."""
    b, dtype = inputs.config.block_size, inputs.query.dtype
    later = torch.full((b, b), -torch.inf, dtype=dtype, device="cpu").triu_(1)  # of one block's tokens
    return [_causal_blocks(inputs, sequence, later) for sequence in range(len(inputs.key))]


def _causal_blocks(inputs, sequence, later):
    sparse_mask, mask = inputs.sparse[2], inputs.mask
    t, p, num_global_tokens = inputs.num_tokens, inputs.num_past_sparse, inputs.num_global_tokens
    num_global_queries = inputs.num_global_queries
    b, s, step = inputs.config.block_size, inputs.config.sparse_block_size, inputs.step
    start = t - (inputs.query.shape[2] - num_global_queries)  # the first token with a query
    first, last = _bounds(mask, sequence, num_global_tokens, t)
    globals_piece = (False, 0, num_global_tokens)
    blocks = [_block(slice(0, num_global_queries), [globals_piece])] if num_global_queries else []
    # As in the encoder, and where there are no sparse tokens yet.
    seen_through_sparse = mask is not None and sparse_mask is None and step > 0
    some = range(max(start, first) // b, -(-last // b))
    if inputs.config.mask_first_token:  # which hides <s> as a key: as a query it counts
        some = range(start // b, max(some.stop, 1))
    for i in range(start // b, -(-t // b)) if seen_through_sparse else some:
        queries = max(i * b, start), min((i + 1) * b, t)
        near = max((i - 1) * b, first), min((i + 1) * b, last)
        end = p + (i - 1) * step
        window = [
            (True, max(end - s, 0), max(end, 0)),
            globals_piece,
            (False, num_global_tokens + near[0], num_global_tokens + near[1]),
        ]
        own = max(near[0], i * b), near[1]  # the tokens of the block itself
        after = None
        if own[0] < own[1] and queries[0] < own[1] - 1:
            after = later[queries[0] - i * b : queries[1] - i * b, own[0] - i * b : own[1] - i * b]
        shift = num_global_queries - start
        blocks.append(_block(slice(queries[0] + shift, queries[1] + shift), window)._replace(later=after))
    return _masked(blocks, mask, sparse_mask, sequence)


def _block(queries, window):
    return Block(queries, _joined(piece for piece in window if piece[1] < piece[2]))


def _masked(blocks, mask, sparse_mask, sequence):
    """`blocks` with the masks of their windows, those of the most weights first."""
    blocks = sorted(blocks, key=_num_weights, reverse=True)
    return [block._replace(key_mask=_window_mask(mask, sparse_mask, sequence, block.window)) for block in blocks]


def _num_queries(block):
    return block.queries.stop - block.queries.start


def _width(window):
    return sum(stop - start for _, start, stop in window)


def _joined(window):
    """`window` with slices that follow each other in the same tensor as one."""
    joined = []
    for is_sparse, start, stop in window:
        if joined and joined[-1][0] == is_sparse and joined[-1][2] == start:
            start = joined.pop()[1]
        joined.append((is_sparse, start, stop))
    return joined


def _bounds(mask, sequence, num_global_tokens, t):
    """The first unmasked token and the one after the last."""
    if mask is None:
        return 0, t
    kept = mask[sequence, num_global_tokens:].nonzero()
    return (int(kept[0]), int(kept[-1]) + 1) if len(kept) else (0, 0)


def _window_mask(mask, sparse_mask, sequence, window):
    if mask is None and sparse_mask is None:
        return None
    heads = 1 if sparse_mask is None else sparse_mask.shape[1]
    parts = []
    for is_sparse, start, stop in window:
        source = sparse_mask[sequence] if is_sparse and sparse_mask is not None else None
        if not is_sparse and mask is not None:
            source = mask[sequence, None].expand(heads, -1)
        ones = torch.ones(heads, stop - start, dtype=torch.bool)
        parts.append(ones if source is None else source[:, start:stop])
    window_mask = torch.cat(parts, 1)
    return None if window_mask.all() else window_mask
