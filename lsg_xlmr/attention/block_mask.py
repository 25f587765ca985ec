# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
FlexAttention's block mask of the LSG pattern, by arithmetic: for texts that are packed (`packed.py`).

Blocks are counted through all texts. A key is seen by the queries of all blocks from a first to a last one; a sparse
token not by those of its own block and the two beside it, which see its tokens instead. So for 128 queries and a key
it can be counted how many of their blocks see it, and no single query has to be looked at. A tile is 128 queries and
128 keys.
"""

from functools import lru_cache

import torch
from torch.nn.attention.flex_attention import BlockMask

from .packed import TILE


MAX_COUNTS = 2**23  # of rows of tiles and keys, that are in memory at a time


@lru_cache(maxsize=32)
def blocks_of_queries(packing, device):
    """The block of each query of `packing` ([`Packing`]), counted through all texts: `torch.IntTensor`, `L`."""
    with torch.inference_mode(False):  # which they outlive
        return torch.arange(packing.length, dtype=torch.int32, device=device) // packing.block_size


@lru_cache(maxsize=32)
def seen_by(packing, device):
    """
    Which blocks of queries see which key of `packing` ([`Packing`]).

    Returns:
        three `torch.IntTensor` of shape `K`: the first block, the last one, and the one that does not count, nor do
        its neighbours (-2 where all do). What fills a section up is seen by none: its last block is -1.
    """
    with torch.inference_mode(False):
        n, b, s, step = packing.num_texts, packing.block_size, packing.sparse_block_size, max(packing.step, 1)
        blocks = packing.num_tokens // b  # of a text
        tokens, sparse, globals_ = (torch.arange(size, device=device) for size in packing.sections)
        block, sparse_block, text = tokens // b, sparse // step, globals_ // max(packing.num_globals, 1)
        sections = (
            (block - 1, block + 1, torch.full_like(block, -2), block // blocks),
            ((sparse - s) // step - 1, (sparse + s) // step + 1, sparse_block, sparse_block // blocks),
            (text * blocks, (text + 1) * blocks - 1, torch.full_like(text, -2), text),
        )
        first, last, hole, text = (torch.cat(columns) for columns in zip(*sections))
        first, last = first.maximum(text * blocks), last.minimum((text + 1) * blocks - 1)
        return first.int(), last.masked_fill(text >= n, -1).int(), hole.int()


def is_seen_by(block, first, last, hole):
    """Whether the queries of `block` see a key, of which [`seen_by`] says the rest. Integer tensors that broadcast."""
    return (first <= block) & (block <= last) & ((block - hole).abs() > 1)


@lru_cache(maxsize=32)
def pattern_tiles(packing, device):
    """
    In which tiles of `packing` ([`Packing`]) a query sees a key, and in which all see all.

    Returns:
        two `torch.BoolTensor` of shape `L/128 K/128`.
    """
    with torch.inference_mode(False):
        first, last, hole = seen_by(packing, device)
        starts = torch.arange(0, packing.length, TILE, device=device, dtype=torch.int32)[:, None]
        rows = [
            _row_tiles(some, packing, first, last, hole) for some in starts.split(max(1, MAX_COUNTS // len(first)))
        ]
        return tuple(torch.cat(x) for x in zip(*rows))


def _row_tiles(starts, packing, first, last, hole):
    """[`pattern_tiles`] of the rows that begin with the queries `starts` (`rows 1`)."""
    low, high = starts // packing.block_size, (starts + TILE - 1) // packing.block_size  # their blocks
    first, last = first.maximum(low), last.minimum(high)
    in_hole = (last.minimum(hole + 1) - first.maximum(hole - 1) + 1).clamp(min=0)
    counts = ((last - first + 1).clamp(min=0) - in_hole).unflatten(1, (-1, TILE))  # of blocks that see the key
    return counts.amax(2) > 0, counts.amin(2) > high - low


@lru_cache(maxsize=8)
def block_mask(packing, mask, texts, hides_sparse, device):
    """
    The tiles that are to be computed: without those of nothing but padding, be it queries or keys.

    Args:
        packing ([`Packing`]).
        mask (`torch.BoolTensor` of shape `n T`, or `None`): which keys may be seen; not to be changed any more.
        texts (`tuple[int, int]`): which of the `n` are packed, the first and the one after the last.
        hides_sparse (`bool`): whether sparse tokens may be hidden. Where there are some and none is, they are made of
            hidden tokens too, and no query is without effect.

    Returns:
        [`BlockMask`] whose `mask_mod` is to be set; its tiles are full where `mask_mod` could hide nothing.
    """
    with torch.inference_mode(False):
        touched, full = pattern_tiles(packing, device)
        if hides_sparse:
            before, sparse, after = (size // TILE for size in packing.sections)
            full = full & torch.tensor([True] * before + [False] * sparse + [True] * after, device=device)
        if mask is not None:
            rows, some, all_ = _tiles_without_padding(packing, mask[slice(*texts)], hides_sparse)
            touched, full = touched & rows & some, full & rows & all_
        return BlockMask.from_kv_blocks(*_ordered(touched & ~full), *_ordered(full), BLOCK_SIZE=TILE)


def _tiles_without_padding(packing, mask, hides_sparse):
    """Which rows of tiles have a query that counts (`L/128 1`), which columns a key, and which are all such keys."""
    globals_, tokens = mask[:, None, :, None].tensor_split([packing.num_globals], dim=2)  # n 1 t 1
    in_blocks = tokens.unflatten(2, (-1, packing.block_size)).any(3).expand(-1, -1, -1, packing.step)
    sparse = in_blocks.flatten(2)[..., None] | (not hides_sparse)
    keys = packing.keys(tokens, sparse, globals_).view(-1, TILE)
    queries = packing.queries(tokens).view(-1, TILE)
    rows = queries.any(1, keepdim=True) | (packing.step > 0 and not hides_sparse)
    return rows, keys.any(1), keys.all(1)


def _ordered(tiles):
    """How many tiles a row has, and first of its columns those: `1 1 rows`, `1 1 rows columns`, int32."""
    tiles = tiles[None, None].int()
    return tiles.sum(-1, dtype=torch.int32), tiles.argsort(dim=-1, descending=True, stable=True).int()
