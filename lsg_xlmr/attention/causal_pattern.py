# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
The causal LSG pattern, and what every implementation of it is given. Shapes are those of `pattern.py`.

A token's query in block `i` sees the globals, the tokens of blocks `i-1` and `i` up to itself, and the `s` sparse
tokens before `(i-1)*step`, which are made of complete blocks. A global query sees the globals alone: they are a
prefix that depends on no token, and so tells none about a later one.

Tokens that no later query sees may be missing, a whole number of blocks of them: tokens and blocks are counted from
the first that is there, and `p` is how many of the sparse tokens came before it.
"""

from dataclasses import dataclass, field

import torch

from .pattern import AttentionInputs


def is_visible_causally(q, k, t, p, step, block_size, sparse_block_size):
    """
    Whether the query at token index `q` sees the key at index `k` of `[globals | tokens | sparse tokens]`, counted
    from the first token: globals have indices below 0. Any broadcastable integer tensors will do.
    """
    block = q // block_size
    is_local = (k < t) & (k <= q) & (k // block_size >= block - 1)
    sparse, end = k - t, p + (block - 1) * step
    return (k < 0) | is_local | ((sparse >= 0) & (sparse >= end - sparse_block_size) & (sparse < end))


@dataclass
class CausalInputs(AttentionInputs):
    """
    What one layer's causal attention works on: [`AttentionInputs`] of any length `t`, whose queries are those of the
    last positions.

    Args:
        past (tuple, or `None`): the sparse tokens (as `sparse` gives them) of the tokens that are missing.
        first_query (`torch.Tensor` of shape `n h 1 d`, or `None`): the first token's, where its own is missing.
    """

    past: tuple | None = None
    first_query: torch.Tensor | None = None
    _sparse: tuple | None = field(default=None, init=False)

    def __post_init__(self):
        if self.first_query is None:
            self.first_query = self.query[:, :, self.num_global_tokens :][:, :, :1]

    @property
    def num_global_queries(self):
        """`G` where the queries are those of all positions, else none."""
        return max(self.query.shape[2] - self.num_tokens, 0)

    @property
    def num_past_sparse(self):
        """`p`."""
        return 0 if self.past is None else self.past[0].shape[2]

    @property
    def step(self):
        """Sparse tokens of a block."""
        return self.config.block_size // self.config.sparsity_factor if self.config.has_sparse_tokens else 0

    @property
    def num_forgotten(self):
        """How many of the tokens no query after these sees: they live on in the sparse ones."""
        return max(self.num_tokens // self.config.block_size - 1, 0) * self.config.block_size

    @property
    def sparse(self):
        """The sparse tokens, those of the past first: keys and values `n h m d`, their mask `n h|1 m` or `None`."""
        # By hand: functools.cached_property takes a lock before Python 3.12, which torch.compile cannot follow.
        if self._sparse is None:
            self._sparse = self._past_and_made()
        return self._sparse

    def _past_and_made(self):
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

    def sparse_tokens(self, value=None):
        """[`AttentionInputs.sparse_tokens`] of the tokens that are forgotten."""
        forgotten = slice(self.num_global_tokens, self.num_global_tokens + self.num_forgotten)
        key, value = self.key[:, :, forgotten], self.value[:, :, forgotten] if value is None else value
        mask = None if self.mask is None else self.mask[:, forgotten]
        return self._made_sparse(key, value, mask, self.first_query)

    def visible(self):
        """Which query sees which key of `[globals | tokens | sparse tokens]`, `n|1 h|1 q G+t+m` (bool)."""
        (sparse_key, _, sparse_mask), config, t = self.sparse, self.config, self.num_tokens
        num_queries, device = self.query.shape[2], self.key.device
        q = torch.arange(t - num_queries, t, device=device)
        k = torch.arange(-self.num_global_tokens, t + sparse_key.shape[2], device=device)
        sizes = t, self.num_past_sparse, self.step, config.block_size, config.sparse_block_size
        visible = is_visible_causally(q[:, None], k, *sizes)[None, None]
        return visible if self.mask is None and sparse_mask is None else visible & self.key_mask()[:, :, None]

    def key_mask(self):
        """Which keys of `[globals | tokens | sparse tokens]` may be seen at all, `n h|1 G+t+m`."""
        sparse_key, _, sparse_mask = self.sparse
        n, _, positions, _ = self.key.shape
        mask = self.key.new_ones(n, positions, dtype=torch.bool) if self.mask is None else self.mask
        if sparse_mask is None:
            sparse_mask = self.key.new_ones(n, 1, sparse_key.shape[2], dtype=torch.bool)
        return torch.cat([mask[:, None].expand(-1, sparse_mask.shape[1], -1), sparse_mask], 2)
