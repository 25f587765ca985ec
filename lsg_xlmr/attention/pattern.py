# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
The LSG pattern, and what every implementation of it is given.

Shapes, here and in the implementations: `n` batch, `h` heads, `d` head size, `G = config.num_global_tokens`, `t`
tokens (a multiple of `b = config.block_size`), `T = G + t` positions (globals first), `m = t/f` sparse tokens,
`step = b/f` of them per block, `s = config.sparse_block_size`, `w` keys in a window.

A token's query in block `i` sees the globals, the tokens of blocks `i-1, i, i+1`, the `s` sparse tokens before
`(i-1)*step` and the `s` from `(i+2)*step` on; a global query sees every global and token (Condevaux & Harispe, PAKDD
2023, section 3).
"""

from dataclasses import dataclass, field

import torch

from ..configuration_lsg import LSGConfig
from .lengths import is_short
from .sparsity import sparse_tokens


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


def hidden_score(dtype):
    """
    The score of a key that is not seen: its weight is 0 beside any that is. Not minus infinity, which would make NaN
    of a query that sees nothing, as one of padding may where there are no globals.
    """
    return torch.finfo(dtype).min / 2


@dataclass
class AttentionInputs:
    """
    What one layer's attention works on.

    Args:
        query, key, value (`torch.Tensor` of shape `n h T d`): globals first; `t <= 2*b`, or a multiple of `b`. Keys
            and values of a prefix, which every query sees as it sees the globals, stand after those of the globals.
        mask (`torch.BoolTensor` of shape `n T`, or `None`): `True` where a key may be seen.
        config ([`LSGConfig`]).
        scaling (`float`): what scores are multiplied by.
        dropout (`float`): probability of dropping an attention weight.
        projections (list of `torch.Tensor`, or `None`): for `sparsity_type="lsh"`, see [`lsh_projections`].
        num_padding (`int`): how many of the last positions only fill the last block, to be left out of the weights.
        first_query (`torch.Tensor` of shape `n h 1 d`, or `None`): the first token's, where `query` has it not.
        num_prefix (`int`): how long the prefix is.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    config: LSGConfig
    scaling: float
    dropout: float = 0.0
    projections: list[torch.Tensor] | None = None
    num_padding: int = 0
    first_query: torch.Tensor | None = None
    num_prefix: int = 0
    _sparse: tuple | None = field(default=None, kw_only=True)

    # What a decoder has otherwise: how many blocks after its own a token's query sees, and what its cache has left.
    num_blocks_ahead = 1
    num_past_sparse = 0

    def __post_init__(self):
        if self.first_query is None:
            self.first_query = self.query[:, :, self.num_global_queries :][:, :, :1]

    @property
    def num_global_tokens(self):
        """`G`, and the prefix, as keys."""
        return self.config.num_global_tokens + self.num_prefix

    @property
    def num_tokens(self):
        """`t`."""
        return self.key.shape[2] - self.num_global_tokens

    @property
    def num_global_queries(self):
        """`G` without a prefix, or none where the queries are not those of all positions."""
        return max(self.query.shape[2] - self.num_tokens, 0)

    @property
    def step(self):
        """Sparse tokens of a block."""
        return self.config.block_size // self.config.sparsity_factor if self.config.has_sparse_tokens else 0

    @property
    def is_full(self):
        """Whether the input is so short that every query sees every key."""
        return is_short(self.num_tokens, self.config)

    @property
    def num_condensed(self):
        """How many of the tokens, from the first on, sparse tokens are made of."""
        return self.num_tokens

    @property
    def sparse(self):
        """The sparse tokens that may be seen: keys and values `n h m d`, their mask `n h|1 m` or `None`."""
        # By hand: functools.cached_property takes a lock before Python 3.12, which torch.compile cannot follow.
        if self._sparse is None:
            self._sparse = self._made_sparse()
        return self._sparse

    def _made_sparse(self):
        if self.is_full:
            return self.key[:, :, :0], self.value[:, :, :0], None
        return self.sparse_tokens()

    def sparse_tokens(self, value=None):
        """
        What the tokens are condensed to: keys `n h m d`, values `n h m e` and their mask (`n h|1 m`, bool, `None` if
        none is masked). `value` (`n h num_condensed e`) stands in the place of the tokens' values.
        """
        tokens = slice(self.num_global_tokens, self.num_global_tokens + self.num_condensed)
        key, value = self.key[:, :, tokens], self.value[:, :, tokens] if value is None else value
        if not self.config.has_sparse_tokens or not key.shape[2]:
            return key[:, :, :0], value[:, :, :0], None
        mask = None if self.mask is None else self.mask[:, tokens]
        return sparse_tokens(key, value, mask, self.first_query, self.projections, self.config)

    def with_sparse(self, x, sparse):
        """`x` (`n h T e`) and `sparse` (`n h m e`) in the order of [`is_visible`]: `n h t+m+G e`."""
        num_global_tokens = self.num_global_tokens
        return torch.cat([x[:, :, num_global_tokens:], sparse, x[:, :, :num_global_tokens]], 2)

    def key_mask(self):
        """Which keys in the order of [`is_visible`] may be seen at all, `n h|1 t+m+G`."""
        sparse_key, _, sparse_mask = self.sparse
        n, _, positions, _ = self.key.shape
        mask = self.key.new_ones(n, positions, dtype=torch.bool) if self.mask is None else self.mask
        if sparse_mask is None:
            sparse_mask = self.key.new_ones(n, 1, sparse_key.shape[2], dtype=torch.bool)
        mask = mask[:, None, :, None].expand(-1, sparse_mask.shape[1], -1, -1)
        return self.with_sparse(mask, sparse_mask[..., None]).squeeze(-1)

    def visible(self):
        """Which query sees which key in the order of [`is_visible`], `n|1 h|1 q t+m+G` (bool)."""
        (sparse_key, _, sparse_mask), t = self.sparse, self.num_tokens
        q = torch.arange(t - self.query.shape[2], t, device=self.key.device)
        k = torch.arange(self.key.shape[2] + sparse_key.shape[2], device=self.key.device)
        visible = self._pattern(q[:, None], k, sparse_key.shape[2])[None, None]
        return visible if self.mask is None and sparse_mask is None else visible & self.key_mask()[:, :, None]

    def _pattern(self, q, k, m):
        t, config = self.num_tokens, self.config
        of_token = is_visible(q, k, t, m, config.block_size, config.sparse_block_size)
        of_global = (k < t) | (k >= t + m)
        return ((q < 0) & of_global) | ((q >= 0) & of_token)
