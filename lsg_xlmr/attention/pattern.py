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

from dataclasses import dataclass

import torch

from ..configuration_lsg import LSGConfig
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


@dataclass
class AttentionInputs:
    """
    What one layer's attention works on.

    Args:
        query, key, value (`torch.Tensor` of shape `n h T d`): globals first; `t <= 2*b`, or a multiple of `b`.
        mask (`torch.BoolTensor` of shape `n T`, or `None`): `True` where a key may be seen.
        config ([`LSGConfig`]).
        scaling (`float`): what scores are multiplied by.
        dropout (`float`): probability of dropping an attention weight.
        projections (list of `torch.Tensor`, or `None`): for `sparsity_type="lsh"`, see [`lsh_projections`].
        num_padding (`int`): how many of the last positions only fill the last block, to be left out of the weights.
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

    @property
    def num_global_tokens(self):
        """`G`."""
        return self.config.num_global_tokens

    @property
    def num_tokens(self):
        """`t`."""
        return self.key.shape[2] - self.num_global_tokens

    @property
    def is_full(self):
        """Whether the input is so short that every query sees every key."""
        return self.num_tokens <= 2 * self.config.block_size

    def sparse_tokens(self, value=None):
        """
        The sparse tokens: keys `n h m d`, values `n h m e` and their mask (`n h|1 m`, bool, `None` if none is masked).
        `value` (`n h t e`) stands in the place of the tokens' values.
        """
        tokens = slice(self.num_global_tokens, None)
        key, value = self.key[:, :, tokens], self.value[:, :, tokens] if value is None else value
        mask = None if self.mask is None else self.mask[:, tokens]
        return self._made_sparse(key, value, mask, self.query[:, :, tokens][:, :, :1])

    def _made_sparse(self, key, value, mask, first_query):
        """The sparse tokens of these tokens, see [`sparse_tokens`]."""
        if not self.config.has_sparse_tokens or not key.shape[2]:
            return key[:, :, :0], value[:, :, :0], None
        return sparse_tokens(key, value, mask, first_query, self.projections, self.config)

    def with_sparse(self, x, sparse):
        """`x` (`n h T e`) and `sparse` (`n h m e`) in the order of [`is_visible`]: `n h t+m+G e`."""
        global_part, tokens = x.tensor_split([self.num_global_tokens], dim=2)
        return torch.cat([tokens, sparse, global_part], 2)

    def key_mask(self, sparse_mask, num_sparse):
        """Which keys in the order of [`is_visible`] may be seen at all, `n h|1 t+m+G`."""
        n, _, positions, _ = self.key.shape
        mask = self.key.new_ones(n, positions, dtype=torch.bool) if self.mask is None else self.mask
        if sparse_mask is None:
            sparse_mask = self.key.new_ones(n, 1, num_sparse, dtype=torch.bool)
        mask = mask[:, None, :, None].expand(-1, sparse_mask.shape[1], -1, -1)
        return self.with_sparse(mask, sparse_mask[..., None]).squeeze(-1)
