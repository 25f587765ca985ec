# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
The causal LSG pattern, and what its implementations are given. Shapes are those of `pattern.py`.

A token's query in block `i` sees the globals, the tokens of blocks `i-1` and `i` up to itself, and the `s` sparse
tokens before `(i-1)*step`, which are made of complete blocks. A global query sees the globals alone: they are a
prefix that depends on no token, and so tells none about a later one.

Tokens that no later query sees may be missing, a whole number of blocks of them: tokens and blocks are counted from
the first that is there, and `p` is how many of the sparse tokens came before it.
"""

from dataclasses import dataclass

import torch

from .lengths import is_open
from .pattern import AttentionInputs


def is_visible_causally(q, k, t, m, p, step, block_size, sparse_block_size):
    """
    Whether the query at token index `q` (a global's is below 0) sees the key at index `k` of
    `[tokens | sparse tokens | globals]`. Any broadcastable integer tensors will do.
    """
    block = q // block_size
    is_local = (k < t) & (k <= q) & (k // block_size >= block - 1)
    sparse, end = k - t, p + (block - 1) * step
    return is_local | ((sparse >= 0) & (sparse >= end - sparse_block_size) & (sparse < end)) | (sparse >= m)


@dataclass
class CausalInputs(AttentionInputs):
    """
    What one layer's causal attention works on: [`AttentionInputs`] of any length `t`, whose queries are those of the
    last positions.

    Args:
        past (tuple, or `None`): the sparse tokens (as `sparse` gives them) of the tokens that are missing.
    """

    past: tuple | None = None

    num_blocks_ahead = 0

    @property
    def num_past_sparse(self):
        """`p`."""
        return 0 if self.past is None else self.past[0].shape[2]

    @property
    def num_condensed(self):
        """How many of the tokens no query after these sees: they live on in the sparse ones."""
        if is_open(self.num_tokens):  # then whole blocks, and there is no harm in more
            return self.num_tokens
        return max(self.num_tokens // self.config.block_size - 1, 0) * self.config.block_size

    def _made_sparse(self):
        """The sparse tokens, those of the past first."""
        if self.past is not None and not self.num_condensed:
            return self.past
        made = self.sparse_tokens()
        if self.past is None:
            return made
        (past_key, past_value, past_mask), (key, value, mask) = self.past, made
        if past_mask is not None or mask is not None:
            heads = max(x.shape[1] for x in (past_mask, mask) if x is not None)
            masks = [
                self.key.new_ones(key.shape[0], heads, sparse_key.shape[2], dtype=torch.bool)
                if x is None
                else x.expand(-1, heads, -1)
                for x, sparse_key in ((past_mask, past_key), (mask, key))
            ]
            mask = torch.cat(masks, 2)
        return torch.cat([past_key, key], 2), torch.cat([past_value, value], 2), mask

    def _pattern(self, q, k, m):
        config = self.config
        sizes = self.num_past_sparse, self.step, config.block_size, config.sparse_block_size
        return is_visible_causally(q, k, self.num_tokens, m, *sizes)
