# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
Which products LSG attention consists of, block by block: of each sequence a list of [`Block`]. Shapes are those of
`pattern.py`.
"""

from typing import NamedTuple

import torch

from .pattern import hidden_score


class Block(NamedTuple):
    """
    A product: of the queries at the positions `queries` with a window of keys, `(is_sparse, start, stop)` slices of
    the keys or the sparse keys. `key_mask` (`1|h w`, bool, `None` where nothing is masked) is that of the window;
    `later` (`q l`, 0 or [`hidden_score`], `None` where there are none) is added to the scores of its last `l` keys.
    """

    queries: slice
    window: list
    key_mask: torch.Tensor | None = None
    later: torch.Tensor | None = None

    @property
    def num_queries(self):
        return self.queries.stop - self.queries.start

    @property
    def width(self):
        """How many keys there are in the window."""
        return sum(stop - start for _, start, stop in self.window)

    @property
    def num_weights(self):
        return self.num_queries * self.width


def blocks_of_sequences(inputs):
    """The blocks of every sequence of `inputs` ([`AttentionInputs`] or [`CausalInputs`])."""
    later = None
    if not inputs.num_blocks_ahead:
        b, dtype = inputs.config.block_size, inputs.query.dtype
        dtype = torch.float32 if dtype == torch.float16 else dtype  # in which scores are computed
        later = torch.full((b, b), hidden_score(dtype), dtype=dtype, device="cpu").triu_(1)  # of one block's tokens
    return [_blocks(inputs, sequence, later) for sequence in range(len(inputs.key))]


def _blocks(inputs, sequence, later):
    """
    All products of one sequence. Blocks and keys that are nothing but padding are left out. The most weights come
    first, so that every buffer is made once.
    """
    (sparse_key, _, sparse_mask), mask, ahead = inputs.sparse, inputs.mask, inputs.num_blocks_ahead
    t, num_global_tokens, num_global_queries = inputs.num_tokens, inputs.num_global_tokens, inputs.num_global_queries
    b, s, step, m = inputs.config.block_size, inputs.config.sparse_block_size, inputs.step, sparse_key.shape[2]
    start = t - (inputs.query.shape[2] - num_global_queries)  # the first token with a query
    first, last = _bounds(mask, sequence, num_global_tokens, t)
    globals_piece = (False, 0, num_global_tokens)
    blocks = []
    if num_global_queries:
        everything = (False, num_global_tokens + first, num_global_tokens + last)
        blocks.append(_block(slice(0, num_global_queries), [globals_piece, everything] if ahead else [globals_piece]))
    some = range(max(start, first) // b, -(-last // b))
    if mask is not None and sparse_mask is None and step > 0:
        # No block is without effect: sparse tokens are made of masked tokens too (`bos_pooling`), or not yet made.
        some = range(start // b, -(-t // b))
    elif not ahead and inputs.config.mask_first_token:  # which hides <s> as a key: as a query it counts
        some = range(start // b, max(some.stop, 1))
    for i in some:
        queries = max(i * b, start), min((i + 1) * b, t)
        near = max((i - 1) * b, first), min((i + 1 + ahead) * b, last)
        left = inputs.num_past_sparse + (i - 1) * step
        window = [
            (True, max(left - s, 0), max(left, 0)),
            globals_piece,
            (False, num_global_tokens + near[0], num_global_tokens + near[1]),
        ]
        after = None
        if ahead:
            right = (i + 2) * step
            window.append((True, min(right, m), min(right + s, m)))
        else:
            own = max(near[0], i * b), near[1]  # the tokens of the block itself
            if own[0] < own[1] and queries[0] < own[1] - 1:
                after = later[queries[0] - i * b : queries[1] - i * b, own[0] - i * b : own[1] - i * b]
        shift = num_global_queries - start
        blocks.append(_block(slice(queries[0] + shift, queries[1] + shift), window)._replace(later=after))
    blocks = [block for block in blocks if block.window]  # without globals padding may see nothing
    blocks.sort(key=lambda block: block.num_weights, reverse=True)
    return [block._replace(key_mask=_window_mask(mask, sparse_mask, sequence, block.window)) for block in blocks]


def _block(queries, window):
    return Block(queries, _joined(piece for piece in window if piece[1] < piece[2]))


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
