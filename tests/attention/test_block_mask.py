"""The block mask by arithmetic against torch's, which looks at every pair of query and key."""

from types import SimpleNamespace

import pytest
import torch
from reference import token_row
from torch.nn.attention.flex_attention import create_block_mask

from lsg_xlmr.attention import block_mask as by_arithmetic
from lsg_xlmr.attention.block_mask import block_mask, blocks_of_queries, is_seen_by, seen_by
from lsg_xlmr.attention.packed import TILE, Packing, rung


CPU = torch.device("cpu")
# Texts, tokens, globals, sparsity factor (`None` for no sparse part), block size, sparse block size.
SETTINGS = [
    (1, 384, 1, 2, 128, 128),  # the defaults, at the shortest length that is not dense
    (1, 512, 1, 2, 128, 128),
    (1, 1408, 1, 2, 128, 128),
    (1, 2048, 64, 2, 128, 128),
    (2, 640, 1, 4, 128, 128),
    (5, 384, 3, 2, 128, 128),
    (1, 1024, 1, None, 128, 128),
    (3, 512, 1, None, 128, 128),
    (1, 768, 1, 4, 256, 128),
    (1, 768, 1, 2, 64, 256),
    (7, 192, 2, 4, 64, 32),
    (2, 640, 1, 8, 32, 16),
    (1, 512, 1, 1, 32, 32),
    (1, 448, 5, 2, 64, 0),
    (1, 960, 1, 3, 96, 33),
    (3, 200, 1, 2, 40, 7),  # blocks that do not fit tiles
    (9, 45, 7, 3, 9, 3),
    (4, 90, 1, 2, 6, 6),
    (1, 500, 1, 5, 20, 40),
    (2, 24, 1, 8, 8, 8),
    (6, 36, 2, 1, 4, 12),
    (1, 513, 1, 3, 27, 1),
]


def packing_of(n, t, num_globals, factor, block_size, sparse_block_size):
    has_sparse = factor is not None and sparse_block_size > 0
    return Packing(n, t, num_globals, block_size // factor if has_sparse else 0, block_size, sparse_block_size)


def dense(packing, num_tokens_sparse):
    """Which query sees which key, `L K`, by the definition of the pattern, text by text."""
    n, t, num_globals = packing.num_texts, packing.num_tokens, packing.num_globals
    length, sparse_length, _ = packing.sections
    config = SimpleNamespace(
        block_size=packing.block_size,
        sparse_block_size=packing.sparse_block_size,
        sparsity_factor=packing.block_size // max(packing.step, 1),
    )
    of_blocks = [token_row(q, t, num_tokens_sparse, num_globals, config) for q in range(0, t, packing.block_size)]
    rows = torch.stack(of_blocks).repeat_interleave(packing.block_size, 0)  # all queries of a block see the same
    globals_, tokens, sparse = rows.split((num_globals, t, num_tokens_sparse), 1)
    visible = torch.zeros(packing.length, sum(packing.sections), dtype=torch.bool)
    for text in range(n):
        queries = slice(text * t, (text + 1) * t)
        for start, part in ((0, tokens), (length, sparse), (length + sparse_length, globals_)):
            start += text * part.shape[1]
            visible[queries, start : start + part.shape[1]] = part
    return visible


def by_torch(visible):
    return create_block_mask(lambda b, h, q, k: visible[q, k], None, None, *visible.shape, device="cpu")


def dense_tiles(num_blocks, indices):
    """Which tiles the two tensors of a block mask name, `rows columns`."""
    tiles = torch.zeros(indices.shape[-2:], dtype=torch.bool)
    for row, (count, columns) in enumerate(zip(num_blocks[0, 0], indices[0, 0])):
        tiles[row, columns[:count]] = True
    return tiles


def partial(mask):
    return dense_tiles(mask.kv_num_blocks, mask.kv_indices)


def full(mask):
    return dense_tiles(mask.full_kv_num_blocks, mask.full_kv_indices)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_the_tiles_are_those_of_torch(setting):
    packing = packing_of(*setting)
    visible = dense(packing, packing.num_tokens // packing.block_size * packing.step)
    expected = by_torch(visible)
    found = block_mask(packing, None, (0, packing.num_texts), False, CPU)
    assert found.seq_lengths == expected.seq_lengths == (packing.length, sum(packing.sections))
    assert found.BLOCK_SIZE == expected.BLOCK_SIZE
    assert torch.equal(found.to_dense(), expected.to_dense())
    assert torch.equal(partial(found), partial(expected)) and torch.equal(full(found), full(expected))
    # The other way round, for the backward pass.
    for name in ("q", "full_q"):
        of_queries = [
            dense_tiles(getattr(mask, f"{name}_num_blocks"), getattr(mask, f"{name}_indices"))
            for mask in (found, expected)
        ]
        assert torch.equal(*of_queries)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_single_pairs_are_those_of_the_definition(setting):
    packing = packing_of(*setting)
    seen = is_seen_by(blocks_of_queries(packing, CPU)[:, None], *seen_by(packing, CPU))
    assert torch.equal(seen, dense(packing, packing.num_tokens // packing.block_size * packing.step))


@pytest.mark.parametrize("hides_sparse", [True, False], ids=["hidden sparse", "all sparse"])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_padding(setting, hides_sparse):
    """
    No tile has nothing but padding, none that has to be computed is missing, and where one is full no key is hidden.
    """
    packing = packing_of(*setting)
    n, t, num_globals, b = packing.num_texts, packing.num_tokens, packing.num_globals, packing.block_size
    m = t // b * packing.step
    mask = torch.zeros(n + 2, num_globals + t, dtype=torch.bool)
    mask[:, :num_globals] = True
    for row, length in zip(mask[1:-1], torch.randint(1, t + 1, (n,))):
        row[num_globals : num_globals + length] = True
    found = block_mask(packing, mask, (1, n + 1), hides_sparse, CPU)
    globals_, tokens = mask[1:-1, None, :, None].tensor_split([num_globals], 2)
    counts = tokens.unflatten(2, (-1, b)).any(3).repeat_interleave(packing.step, 2) | (not hides_sparse)
    keys = packing.keys(tokens, counts[:, :, :m], globals_).view(-1)
    queries = packing.queries(tokens).view(-1) | (packing.step > 0 and not hides_sparse)
    visible = dense(packing, m)
    needed = by_torch(visible & keys & queries[:, None])
    touched = partial(found) | full(found)
    assert not (partial(found) & full(found)).any()
    assert not ((partial(needed) | full(needed)) & ~touched).any()
    some_keys, some_queries = keys.view(-1, TILE).any(1), queries.view(-1, TILE).any(1)
    assert not touched[:, ~some_keys].any() and not touched[~some_queries].any()
    # Which of a block's sparse tokens are hidden the block mask does not know.
    length, sparse_length, _ = packing.sections
    known = keys.clone()
    if hides_sparse:
        known[length : length + sparse_length] = False
    of_mask_mod = by_torch(visible & known)
    assert torch.equal(full(found) & some_queries[:, None], full(found))
    assert torch.equal(full(found), full(of_mask_mod) & some_queries[:, None])


def test_rows_are_looked_at_some_at_a_time(monkeypatch):
    packing = packing_of(2, 640, 1, 2, 64, 64)
    expected = [x.clone() for x in by_arithmetic.pattern_tiles(packing, CPU)]
    monkeypatch.setattr(by_arithmetic, "MAX_COUNTS", 3 * sum(packing.sections))
    by_arithmetic.pattern_tiles.cache_clear()
    assert all(map(torch.equal, by_arithmetic.pattern_tiles(packing, CPU), expected))


def test_what_is_kept_from_inference_mode_can_be_trained_with():
    packing = packing_of(1, 160, 1, 2, 32, 32)
    for function in (seen_by, blocks_of_queries, by_arithmetic.pattern_tiles, block_mask):
        function.cache_clear()
    with torch.inference_mode():
        found = block_mask(packing, torch.ones(1, 161, dtype=torch.bool), (0, 1), True, CPU)
        kept = [found.kv_indices, found.full_q_num_blocks, *seen_by(packing, CPU), blocks_of_queries(packing, CPU)]
    assert not any(x.is_inference() for x in kept)


def test_the_ladder():
    assert [rung(t) for t in (3, 512, 513, 1024, 1025, 16384, 16385)] == [512, 512, 1024, 1024, 2048, 16384, 32768]


@pytest.mark.parametrize("positions, expected", [(514, [85, 15]), (40002, [170 - 0])])
def test_batches_are_cut_where_they_are_longer_than_the_ladder(positions, expected):
    config = SimpleNamespace(max_sequence_length=positions - 2, block_size=64, sparse_block_size=64)
    inputs = SimpleNamespace(
        config=config, num_tokens=192, num_global_tokens=1, step=32, key=torch.empty(100, 1, 0, 1)
    )
    if positions > 20000:
        inputs.key, expected = torch.empty(341 + 2, 1, 0, 1), [341, 2]
    parts = Packing.all_of(inputs)
    assert [packing.num_texts for _, packing in parts] == expected
    assert [x for texts, _ in parts for x in range(texts.start, texts.stop)] == list(range(len(inputs.key)))
