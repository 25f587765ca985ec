# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
The LSG product: from queries, keys, values and a mask to the context.

Shapes: `n` batch, `h` heads, `d` head size, `G = config.num_global_tokens`, `t` tokens (a multiple of
`b = config.block_size`), `T = G + t` positions (globals first), `m = t/f` sparse tokens, `step = b/f` of them per
block, `s = config.sparse_block_size`, `w` keys in a window.

A token's query in block `i` sees the globals, the tokens of blocks `i-1, i, i+1`, the `s` sparse tokens before
`(i-1)*step` and the `s` from `(i+2)*step` on; a global query sees every global and token (Condevaux & Harispe, PAKDD
2023, section 3). The three implementations give the same numbers:

- `eager_attention`: dense and simple, the only one that returns attention weights;
- `sdpa_attention`: block by block, each block's window of keys gathered in one small buffer (CPU), or all windows at
  once for `torch.nn.functional.scaled_dot_product_attention` (elsewhere, and when traced or compiled);
- `flex_attention`: `torch.nn.attention.flex_attention` over `[tokens | sparse | globals]`, without windows.
"""

from functools import lru_cache, partial

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention as torch_flex_attention
from torch.nn.functional import dropout as apply_dropout, pad, scaled_dot_product_attention
from transformers.integrations.flex_attention import compile_friendly_flex_attention

from .dropout import draw_dropout, dropout_scale, kept_elements
from .memory import keep_freed_memory, runs_blockwise
from .sparsity import sparse_tokens


# Where FlexAttention is compiled to a fused kernel; elsewhere it would materialize all scores.
FLEX_DEVICES = ("cuda",)
MIN_FLEX_HEAD_DIM = 16
# Floats of the widest vector register: rows of scores that are not whole vectors make their product a fifth slower.
VECTOR_SIZE = 16


def lsg_attention(query, key, value, mask, projections, config, implementation, scaling, dropout=0.0, num_padding=0):
    """
    Args:
        query, key, value (`torch.Tensor` of shape `n h T d`): globals first; `t <= 2*b`, or a multiple of `b`.
        mask (`torch.BoolTensor` of shape `n T`, or `None`): `True` where a key may be seen.
        projections (list of `torch.Tensor`, or `None`): for `sparsity_type="lsh"`.
        config ([`LSGConfig`]).
        implementation (`str`): a key of `LSG_ATTENTION_FUNCTIONS`. `"sdpa"` stands in for `"flex_attention"` where
            that has no fused kernel: off CUDA, with dropout, and for heads smaller than 16.
        scaling (`float`): what scores are multiplied by.
        dropout (`float`): probability of dropping an attention weight.
        num_padding (`int`): how many of the last positions only fill the last block, to be left out of the weights.

    Returns:
        the context `n T h d` and, from `"eager"`, the attention weights `n h T-num_padding T-num_padding` (otherwise
        `None`). The rows of queries that are masked themselves carry no meaning.
    """
    if runs_blockwise(query):
        keep_freed_memory()
    num_global_tokens = config.num_global_tokens
    if key.shape[2] - num_global_tokens <= 2 * config.block_size:
        if implementation == "eager":
            weights = apply_dropout(_full_weights(query, key, mask, scaling), dropout)
            return (weights @ value).transpose(1, 2), weights
        return _full_attention(query, key, value, mask, scaling, dropout), None
    if implementation == "flex_attention" and not _flex_attention_fits(query, dropout):
        implementation = "sdpa"
    select = partial(
        sparse_tokens if config.has_sparse_tokens else _no_sparse_tokens,
        mask=None if mask is None else mask[:, num_global_tokens:],
        first_query=query[:, :, num_global_tokens : num_global_tokens + 1],
        projections=projections,
        config=config,
    )
    if implementation == "eager":
        return eager_attention(query, key, value, mask, select, config, scaling, dropout, num_padding)
    return LSG_ATTENTION_FUNCTIONS[implementation](query, key, value, mask, select, config, scaling, dropout), None


def is_visible(q, k, t, m, block_size, sparse_block_size):
    """
    The LSG pattern of one token query: whether the query at token index `q` sees the key at index `k` of
    `[tokens | sparse tokens | globals]`. Any broadcastable integer tensors will do.
    """
    step = m * block_size // t
    block, sparse = q // block_size, k - t
    left, right = (block - 1) * step, (block + 2) * step
    is_local = (k < t) & ((k // block_size - block).abs() <= 1)
    is_left = (sparse >= left - sparse_block_size) & (sparse < left)
    is_right = (sparse >= right) & (sparse < right + sparse_block_size)
    return is_local | ((sparse >= 0) & (sparse < m) & (is_left | is_right)) | (sparse >= m)


def eager_attention(query, key, value, mask, select, config, scaling, dropout, num_padding):
    """Dense scores over tokens, sparse tokens and globals. A sparse token's weight is spread over its tokens."""
    num_global_tokens, (n, h, _, _) = config.num_global_tokens, key.shape
    t = key.shape[2] - num_global_tokens
    # A sparse value is a weighted sum of values: with the identity in their place, the weights themselves come out.
    identity = torch.eye(t, dtype=key.dtype, device=key.device).expand(n, h, t, t)
    sparse_key, spread, sparse_mask = select(key[:, :, num_global_tokens:], identity)  # n h m d, n h m t
    m = sparse_key.shape[2]
    index = torch.arange(t + m + num_global_tokens, device=key.device)
    visible = is_visible(index[:t, None], index, t, m, config.block_size, config.sparse_block_size)  # t t+m+G
    if mask is not None or sparse_mask is not None:
        visible = visible & _key_mask(mask, sparse_mask, key, m, num_global_tokens)[:, :, None]
    keys = _tokens_sparse_globals(key, sparse_key, num_global_tokens)
    scores = (query[:, :, num_global_tokens:] @ keys.transpose(2, 3)) * scaling
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    to_tokens, to_sparse, to_globals = weights.split((t, m, num_global_tokens), -1)
    weights = torch.cat([to_globals, to_tokens + to_sparse @ spread], -1)  # n h t T
    global_weights = _full_weights(query[:, :, :num_global_tokens], key, mask, scaling)
    weights = apply_dropout(torch.cat([global_weights, weights], 2), dropout)
    if not num_padding:
        return (weights @ value).transpose(1, 2), weights
    # The weights handed out are those the context is made of, so that gradients reach them.
    kept = weights.shape[-1] - num_padding
    of_padding, to_padding, weights = weights[:, :, kept:], weights[:, :, :kept, kept:], weights[:, :, :kept, :kept]
    context = weights @ value[:, :, :kept] + to_padding @ value[:, :, kept:]
    return torch.cat([context, of_padding @ value], 2).transpose(1, 2), weights


def sdpa_attention(query, key, value, mask, select, config, scaling, dropout):
    """Fused or blocked kernels on windows of keys; memory grows with `t`."""
    num_global_tokens = config.num_global_tokens
    sparse_key, sparse_value, sparse_mask = select(key[:, :, num_global_tokens:], value[:, :, num_global_tokens:])
    if runs_blockwise(query):
        return BlockwiseAttention.apply(
            query, key, value, sparse_key, sparse_value, mask, sparse_mask, config, scaling, dropout
        )
    t, m = key.shape[2] - num_global_tokens, sparse_key.shape[2]
    key_mask = _key_mask(mask, sparse_mask, key, m, num_global_tokens)
    windows = partial(_windows, t=t, config=config)
    keys = windows(_tokens_sparse_globals(key, sparse_key, num_global_tokens))  # n h*t/b W d
    values = windows(_tokens_sparse_globals(value, sparse_value, num_global_tokens))
    # The windows at both ends reach outside the sequence, where the padding of the mask is `False`.
    window_mask = windows(key_mask.expand(-1, key.shape[1], -1)[..., None]).transpose(2, 3)  # n h*t/b 1 W
    queries = query[:, :, num_global_tokens:].unflatten(2, (-1, config.block_size)).flatten(1, 2)
    context = scaled_dot_product_attention(queries, keys, values, window_mask, dropout, scale=scaling)
    context = context.unflatten(1, (key.shape[1], -1)).flatten(2, 3).transpose(1, 2)  # n t h d
    return _with_globals(context, query, key, value, mask, config, scaling, dropout)


def flex_attention(query, key, value, mask, select, config, scaling, dropout):
    """FlexAttention with a block mask of the LSG pattern; compiled by torch on first use, except on CPU."""
    num_global_tokens = config.num_global_tokens
    sparse_key, sparse_value, sparse_mask = select(key[:, :, num_global_tokens:], value[:, :, num_global_tokens:])
    t, m = key.shape[2] - num_global_tokens, sparse_key.shape[2]
    block_mask = _flex_block_mask(t, m, num_global_tokens, config.block_size, config.sparse_block_size, key.device)
    if mask is not None or sparse_mask is not None:
        key_mask = _key_mask(mask, sparse_mask, key, m, num_global_tokens)
        block_mask = _with_key_mask(block_mask, key_mask.expand(-1, key.shape[1], -1))
    attention = torch_flex_attention if key.device.type == "cpu" else compile_friendly_flex_attention
    context = attention(
        query[:, :, num_global_tokens:],
        _tokens_sparse_globals(key, sparse_key, num_global_tokens),
        _tokens_sparse_globals(value, sparse_value, num_global_tokens),
        block_mask=block_mask,
        scale=scaling,
    )
    return _with_globals(context.transpose(1, 2), query, key, value, mask, config, scaling, dropout)


LSG_ATTENTION_FUNCTIONS = {"eager": eager_attention, "sdpa": sdpa_attention, "flex_attention": flex_attention}


class BlockwiseAttention(torch.autograd.Function):
    """
    The LSG product one block of queries at a time, all heads together: the block's window of keys is gathered in a
    buffer that stays in cache, and nothing of the size `t x window` is kept but a byte a weight where there is
    dropout. The backward pass computes each block's weights again (as FlashAttention does; Dao et al., 2022, arXiv
    2205.14135).

    Sequences are handled one by one, so that blocks of padding cost nothing.
    """

    @staticmethod
    def forward(ctx, query, key, value, sparse_key, sparse_value, mask, sparse_mask, config, scaling, dropout):
        ctx.blocks = [_blocks(mask, sparse_mask, sequence, key, sparse_key, config) for sequence in range(len(query))]
        ctx.scaling, ctx.dropout, ctx.draws = scaling, dropout, []
        buffers, scale = _Buffers(query), dropout_scale(dropout)
        # Blocks of padding are left out below, and must still be finite.
        context = (query.new_empty if mask is None else query.new_zeros)(_by_position(query).shape)  # n T h d
        with torch.autocast("cpu", enabled=False):
            inputs = map(_by_position, (query, key, value, sparse_key, sparse_value))
            for blocks, out, q, k, v, sk, sv in zip(ctx.blocks, context, *inputs):
                for queries, pieces, key_mask in blocks:
                    keys, values = buffers.gather("keys", pieces, k, sk), buffers.gather("values", pieces, v, sv)
                    weights = _block_weights(buffers, q[queries].transpose(0, 1), keys, pieces, key_mask, scaling)
                    if dropout > 0:
                        ctx.draws.append(draw_dropout(weights.shape, dropout))
                        weights.mul_(buffers.kept(weights.shape, ctx.draws[-1]))
                    out[queries] = buffers.product("context", weights, values, scale).transpose(0, 1)
        ctx.save_for_backward(query, key, value, sparse_key, sparse_value, context)
        return context

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_context):
        query, key, value, sparse_key, sparse_value, context = ctx.saved_tensors
        buffers, draws, scale = _Buffers(query), iter(ctx.draws), dropout_scale(ctx.dropout)
        # What the softmax's backward subtracts from every weight's gradient.
        means = (grad_context * context).sum(-1, keepdim=True)  # n T h 1
        inputs = [_by_position(x) for x in (query, key, value, sparse_key, sparse_value)]
        grads = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in inputs]
        for blocks, grad_out, mean, q, k, v, sk, sv, gq, gk, gv, gsk, gsv in zip(
            ctx.blocks, grad_context, means, *inputs, *grads
        ):
            for queries, pieces, key_mask in blocks:
                keys, values = buffers.gather("keys", pieces, k, sk), buffers.gather("values", pieces, v, sv)
                block_query, grad = q[queries].transpose(0, 1), grad_out[queries].transpose(0, 1)  # h b d
                weights = _block_weights(buffers, block_query, keys, pieces, key_mask, ctx.scaling)  # h b w
                dropped = weights
                if ctx.dropout > 0:
                    dropped = buffers.kept(weights.shape, next(draws)).mul_(weights)
                grad_values = buffers.product("grad_window", dropped.transpose(1, 2), grad, scale)
                buffers.scatter(grad_values, pieces, gv, gsv)
                grad_scores = buffers.product("grad_weights", grad, values.transpose(1, 2), scale)
                grad_scores.mul_(dropped).addcmul_(weights, mean[queries].transpose(0, 1), value=-1)
                gq[queries] = buffers.product("grad_query", grad_scores, keys, ctx.scaling).transpose(0, 1)
                grad_keys = buffers.product("grad_window", grad_scores.transpose(1, 2), block_query, ctx.scaling)
                buffers.scatter(grad_keys, pieces, gk, gsk)
        return *(grad.transpose(1, 2) for grad in grads), None, None, None, None, None


class _Buffers:
    """Scratch tensors reused from block to block: fresh ones would leave the cache, and fault in new pages."""

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

    def gather(self, name, pieces, tokens, sparse):
        """
        The window, `h w d`: slices of `tokens` (`T h d`) and `sparse` (`m h d`) one after the other; where they have
        to be copied, with zeros up to a multiple of `VECTOR_SIZE`.
        """
        parts = [(sparse if is_sparse else tokens)[start:stop] for is_sparse, start, stop in pieces]
        if len(parts) == 1:
            return parts[0].transpose(0, 1)
        width = _width(pieces)
        out = self.empty(name, (-(-width // VECTOR_SIZE) * VECTOR_SIZE, *parts[0].shape[1:]))
        torch.cat(parts, out=out[:width])
        out[width:] = 0
        return out.transpose(0, 1)

    @staticmethod
    def scatter(window, pieces, tokens, sparse):
        """Add the window's slices to where [`gather`] took them."""
        window = window.transpose(0, 1)[: _width(pieces)]
        parts = window.split([stop - start for _, start, stop in pieces])
        for part, (is_sparse, start, stop) in zip(parts, pieces):
            (sparse if is_sparse else tokens)[start:stop] += part


def _by_position(x):
    """`n h T d` as `n T h d`, the order of memory, where a slice of positions is one run of bytes."""
    return x.transpose(1, 2)


def _block_weights(buffers, query, keys, pieces, key_mask, scaling):
    scores = buffers.product("weights", query, keys.transpose(1, 2), scaling)  # h b w
    width = _width(pieces)
    scores[:, :, width:] = -torch.inf
    if key_mask is not None:
        # Added: filling in goes element by element, and takes longer than the product.
        additive_mask = torch.zeros_like(key_mask, dtype=scores.dtype).masked_fill_(~key_mask, -torch.inf)
        scores[:, :, :width] += additive_mask[:, None]
    return torch.softmax(scores, -1, out=scores)


def _blocks(mask, sparse_mask, sequence, key, sparse_key, config):
    """
    All products of one sequence as `(queries, pieces, key_mask)`: `queries` a slice of positions, `pieces` the window
    as `(is_sparse, start, stop)` slices of the keys or the sparse keys, `key_mask` (`1|h w`, bool, `None` where
    nothing is masked) that of the window. Blocks and keys that are nothing but padding are left out. The most weights
    come first, so that every buffer is made once.
    """
    num_global_tokens, b, s = config.num_global_tokens, config.block_size, config.sparse_block_size
    positions, m = key.shape[2], sparse_key.shape[2]
    t = positions - num_global_tokens
    step = m * b // t
    first, last = _bounds(mask, sequence, num_global_tokens, t)
    globals_piece = (False, 0, num_global_tokens)
    everything = [globals_piece, (False, num_global_tokens + first, num_global_tokens + last)]
    blocks = [(slice(0, num_global_tokens), everything)]
    # Where sparse tokens are made of masked tokens too (`bos_pooling`), no block is without effect.
    seen_through_sparse = mask is not None and sparse_mask is None and m > 0
    for i in range(t // b) if seen_through_sparse else range(first // b, -(-last // b)):
        near = max((i - 1) * b, first), min((i + 2) * b, last)
        left = max((i - 1) * step - s, 0), max((i - 1) * step, 0)
        right = min((i + 2) * step, m), min((i + 2) * step + s, m)
        pieces = [
            (True, *left),
            globals_piece,
            (False, num_global_tokens + near[0], num_global_tokens + near[1]),
            (True, *right),
        ]
        blocks.append((slice(num_global_tokens + i * b, num_global_tokens + (i + 1) * b), pieces))
    blocks = [(queries, _joined(piece for piece in pieces if piece[1] < piece[2])) for queries, pieces in blocks]
    blocks.sort(key=_num_weights, reverse=True)
    return [(queries, pieces, _window_mask(mask, sparse_mask, sequence, pieces)) for queries, pieces in blocks]


def _num_weights(block):
    queries, pieces = block
    return (queries.stop - queries.start) * _width(pieces)


def _width(pieces):
    return sum(stop - start for _, start, stop in pieces)


def _joined(pieces):
    """`pieces` with those that follow each other in the same tensor as one."""
    joined = []
    for is_sparse, start, stop in pieces:
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


def _window_mask(mask, sparse_mask, sequence, pieces):
    if mask is None and sparse_mask is None:
        return None
    heads = 1 if sparse_mask is None else sparse_mask.shape[1]
    parts = []
    for is_sparse, start, stop in pieces:
        source = sparse_mask[sequence] if is_sparse and sparse_mask is not None else None
        if not is_sparse and mask is not None:
            source = mask[sequence, None].expand(heads, -1)
        ones = torch.ones(heads, stop - start, dtype=torch.bool)
        parts.append(ones if source is None else source[:, start:stop])
    window_mask = torch.cat(parts, 1)
    return None if window_mask.all() else window_mask


def _flex_attention_fits(query, dropout):
    return query.device.type in FLEX_DEVICES and dropout == 0 and query.shape[-1] >= MIN_FLEX_HEAD_DIM


def _no_sparse_tokens(key, value, mask, first_query, projections, config):
    return key[:, :, :0], value[:, :, :0], None


def _tokens_sparse_globals(x, sparse, num_global_tokens):
    return torch.cat([x[:, :, num_global_tokens:], sparse, x[:, :, :num_global_tokens]], 2)


def _key_mask(mask, sparse_mask, key, m, num_global_tokens):
    """Mask of `[tokens | sparse | globals]`, `n 1|h t+m+G`."""
    n, _, positions, _ = key.shape
    mask = key.new_ones(n, positions, dtype=torch.bool) if mask is None else mask
    sparse_mask = key.new_ones(n, 1, m, dtype=torch.bool) if sparse_mask is None else sparse_mask
    return _tokens_sparse_globals(
        mask[:, None, :, None].expand(-1, sparse_mask.shape[1], -1, -1), sparse_mask[..., None], num_global_tokens
    ).squeeze(-1)


def _windows(x, t, config):
    """Windows of all blocks at once, of `[tokens | sparse | globals]` (`n h t+m+G d`): `n h*t/b W d`."""
    b, s = config.block_size, config.sparse_block_size
    tokens, sparse, global_part = x.split((t, x.shape[2] - t - config.num_global_tokens, config.num_global_tokens), 2)
    blocks = t // b
    parts = [global_part[:, :, None].expand(-1, -1, blocks, -1, -1), pad(tokens, (0, 0, b, b)).unfold(2, 3 * b, b)]
    parts[1] = parts[1].transpose(3, 4)
    if sparse.shape[2]:
        step = sparse.shape[2] // blocks
        left = pad(sparse, (0, 0, step + s, 0))
        right = pad(sparse, (0, 0, 0, 2 * step + s))[:, :, 2 * step :]
        parts += [side.unfold(2, s, step)[:, :, :blocks].transpose(3, 4) for side in (left, right)]
    return torch.cat(parts, 3).flatten(1, 2)


def _with_globals(context, query, key, value, mask, config, scaling, dropout):
    """The tokens' context (`n t h d`) with that of the global queries, which see everything, before it."""
    global_query = query[:, :, : config.num_global_tokens]
    return torch.cat([_full_attention(global_query, key, value, mask, scaling, dropout), context], 1)


def _full_attention(query, key, value, mask, scaling, dropout):
    mask = None if mask is None else mask[:, None, None].expand(-1, -1, query.shape[2], -1)
    return scaled_dot_product_attention(query, key, value, mask, dropout, scale=scaling).transpose(1, 2)


def _full_weights(query, key, mask, scaling):
    scores = (query @ key.transpose(2, 3)) * scaling
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    return scores.softmax(-1)


@lru_cache(maxsize=32)
def _flex_block_mask(t, m, num_global_tokens, block_size, sparse_block_size, device):
    """The pattern's block mask, the same for every layer, head and sequence."""

    def mask_mod(batch, head, q, k):
        return is_visible(q, k, t, m, block_size, sparse_block_size)

    return create_block_mask(mask_mod, None, None, t, t + m + num_global_tokens, device=device)


def _with_key_mask(block_mask, key_mask):
    """`block_mask` with the keys of `key_mask` (`n h t+m+G`) alone: none of its blocks can count as full any more."""
    blocks = block_mask.to_dense()
    pattern = block_mask.mask_mod

    def mask_mod(batch, head, q, k):
        return pattern(batch, head, q, k) & key_mask[batch, head, k]

    return BlockMask.from_kv_blocks(
        blocks.sum(-1, dtype=torch.int32),
        blocks.argsort(dim=-1, descending=True, stable=True).to(torch.int32),
        BLOCK_SIZE=block_mask.BLOCK_SIZE,
        mask_mod=mask_mod,
        seq_lengths=block_mask.seq_lengths,
    )
