# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
A batch laid out as one sequence, of one of a few lengths: for kernels that are compiled for fixed sizes.

The queries are the tokens of all texts, one text after the other, and what fills them up to the length. The keys are
three sections, `[tokens | sparse tokens | globals]`, each that of all texts and what fills it up. The length alone
says how long a section is, so texts of all lengths and batches of all sizes share the kernels of a few lengths.
Shapes are those of `pattern.py`; `L` queries, `K` keys.
"""

from dataclasses import dataclass

import torch


TILE = 128  # queries, and keys, that a kernel has or leaves together
SHORTEST, LONGEST = 512, 16384  # tokens: the ladder of lengths, which goes further for a longer model


def rung(num_tokens):
    """The length for `num_tokens` tokens: the next power of two, at least 512."""
    return max(SHORTEST, 1 << (num_tokens - 1).bit_length())


@dataclass(frozen=True)
class Packing:
    """
    How some texts are laid out.

    Args:
        num_texts (`int`): `n`.
        num_tokens (`int`): `t` of each, more than two blocks.
        num_globals (`int`): `G` of each, a prefix included.
        step (`int`): sparse tokens of a block, 0 where there are none.
        block_size, sparse_block_size (`int`): `b` and `s`.
    """

    num_texts: int
    num_tokens: int
    num_globals: int
    step: int
    block_size: int
    sparse_block_size: int

    @classmethod
    def all_of(cls, inputs):
        """
        Of the texts of `inputs` ([`AttentionInputs`]) as many at a time as the longest length holds, in order.

        Returns:
            `list[tuple[slice, Packing]]`: which texts, and their packing.
        """
        config, t, n = inputs.config, inputs.num_tokens, len(inputs.key)
        sizes = t, inputs.num_global_tokens, inputs.step, config.block_size, config.sparse_block_size
        at_a_time = max(1, max(LONGEST, rung(config.max_sequence_length)) // t)
        parts = [slice(start, min(start + at_a_time, n)) for start in range(0, n, at_a_time)]
        return [(part, cls(part.stop - part.start, *sizes)) for part in parts]

    @property
    def length(self):
        """`L`."""
        return rung(self.num_texts * self.num_tokens)

    @property
    def sections(self):
        """How many keys each section has, in whole tiles; their sum is `K`."""
        most_texts = self.length // (3 * self.block_size)
        sizes = self.length, self.length * self.step // self.block_size, most_texts * self.num_globals
        return tuple(-(-size // TILE) * TILE for size in sizes)

    def queries(self, x):
        """`x` (`n h t e`) as queries are laid out, `1 h L e`."""
        return _laid_out([x], [self.length])

    def keys(self, tokens, sparse, globals_):
        """What the three (`n h t e`, `n h m e` and `n h G e`) are as keys are laid out, `1 h K e`."""
        return _laid_out([tokens, sparse, globals_], self.sections)

    def texts(self, x):
        """What was laid out as `x` (`1 h L e`), `n t h e`."""
        tokens = x[0, :, : self.num_texts * self.num_tokens].transpose(0, 1)
        return tokens.unflatten(0, (self.num_texts, self.num_tokens))


def _laid_out(parts, sizes):
    rows = []
    for part, size in zip(parts, sizes):
        rows.append(part.transpose(1, 2).flatten(0, 1))  # n*x h e, as it lies in memory
        if len(rows[-1]) < size:
            rows.append(rows[-1].new_zeros(size - len(rows[-1]), *rows[-1].shape[1:]))
    together = torch.cat(rows) if len(rows) > 1 else rows[0]
    return together.contiguous().transpose(0, 1)[None]  # whatever lay where, one layout
