# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
The sparse tokens of LSG attention, made in six ways: Condevaux & Harispe, PAKDD 2023, section 3.2.

The six functions share one signature. Shapes: `n` batch, `h` heads, `t` tokens (a multiple of `config.block_size`),
`d` head size, `e` value size, `f = config.sparsity_factor`.

Args:
    key (`torch.Tensor` of shape `n h t d`), value (`torch.Tensor` of shape `n h t e`): the tokens', without globals.
    mask (`torch.BoolTensor` of shape `n t`, or `None` when no token is masked): `True` where a token counts.
    first_query (`torch.Tensor` of shape `n h 1 d`): the first token's query, used by `bos_pooling`.
    projections (list of `torch.Tensor` of shape `h d p`): used by `lsh`, see [`lsh_projections`].
    config ([`LSGConfig`]).

Returns:
    sparse keys `n h t/f d`, sparse values `n h t/f e`, and their mask (`n h t/f` or `n 1 t/f`, bool, `None` if none
    is masked). Values are combined linearly, with weights that do not depend on them. Selection and hashing pass no
    gradient; the chosen keys and values do.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch

from .lengths import is_old_onnx_export


def norm(key, value, mask, first_query, projections, config):
    """
    The `chunk/f` keys of largest L2 norm in each chunk of `min(block_size, sparse_block_size)` tokens, smallest norm
    first: the published order, which counts where a window ends within a chunk.
    """
    chunk = _chunk_size(config)
    dtype = torch.promote_types(key.dtype, torch.float32)
    # Read in the order of memory, `n t h d`, which is three times faster.
    norms = torch.linalg.vector_norm(key.detach().transpose(1, 2), dim=-1, dtype=dtype).transpose(1, 2)  # n h t
    if mask is not None:
        norms = norms * mask[:, None]
    index = norms.unflatten(-1, (-1, chunk)).topk(chunk // config.sparsity_factor).indices.flip(-1)
    starts = torch.arange(0, key.shape[2], chunk, device=key.device)
    return _take(key, value, mask, (index + starts[:, None]).flatten(2))


def pooling(key, value, mask, first_query, projections, config):
    """The mean over the unmasked tokens of each run of `f` tokens."""
    f = config.sparsity_factor
    if mask is None:
        return key.unflatten(2, (-1, f)).mean(3), value.unflatten(2, (-1, f)).mean(3), None
    weights = mask.to(key.dtype).unflatten(1, (-1, f))[:, None]  # n 1 t/f f
    return _weighted_sum(key, value, mask, weights / weights.sum(-1, keepdim=True).clamp(min=1))


def bos_pooling(key, value, mask, first_query, projections, config):
    """
    The mean of each run of `f` tokens, weighted by the softmax of the first token's attention scores. As in the
    published code, a run that is all masked is the plain mean of its tokens and is seen: no sparse token is masked.
    """
    scores = (first_query @ key.transpose(2, 3))[:, :, 0] * key.shape[-1] ** -0.5  # n h t
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None], torch.finfo(scores.dtype).min)
    weights = scores.unflatten(2, (-1, config.sparsity_factor)).softmax(-1)  # n h t/f f
    return _weighted_sum(key, value, None, weights)


def lsh(key, value, mask, first_query, projections, config):
    """
    The centroids of `chunk/f` LSH clusters of each chunk of `min(block_size, sparse_block_size)` tokens: the cluster
    is the largest of the key direction's products with the random projections and their negatives.
    """
    f = config.sparsity_factor
    if f == config.sparse_block_size:
        return bos_pooling(key, value, mask, first_query, projections, config)
    chunk = _chunk_size(config)
    sizes = lsh_cluster_counts(config)
    token_mask = key.new_ones(1, key.shape[2], dtype=torch.bool) if mask is None else mask
    counted = token_mask[:, None, :, None].unflatten(2, (-1, chunk))  # n 1 t/chunk chunk 1
    with torch.no_grad():
        # Float32 throughout: a hash is a comparison, and half precision would move tokens between clusters.
        merged = key.float().unflatten(2, (-1, chunk)) * counted  # n h t/chunk chunk d: sums of the clusters so far
        cluster = torch.arange(chunk, device=key.device).expand(merged.shape[:-1])
        for size, projection in zip(sizes, projections):
            products = torch.nn.functional.normalize(merged, dim=-1) @ projection[:, None]
            hashed = torch.cat([products, -products], dim=-1)[..., :size].argmax(-1)
            cluster = hashed.gather(-1, cluster)
            merged = _cluster_sums(merged, hashed, size)
        counts = _cluster_sums(counted.float().expand(*cluster.shape, 1), cluster, sizes[-1])  # n h t/chunk chunk/f 1
    sparse_key, sparse_value = (
        (_cluster_sums(x.unflatten(2, (-1, chunk)) * counted, cluster, sizes[-1]) / counts.clamp(min=1).to(x.dtype))
        .flatten(2, 3)
        .contiguous()
        for x in (key, value)
    )
    return sparse_key, sparse_value, counts.squeeze(-1).flatten(2) > 0


def stride(key, value, mask, first_query, projections, config):
    """Every `f`-th token; head `j` starts at `j % f`."""
    f = config.sparsity_factor
    starts = torch.arange(key.shape[1], device=key.device) % f
    return _take(key, value, mask, (starts[:, None] + torch.arange(0, key.shape[2], f, device=key.device))[None])


def block_stride(key, value, mask, first_query, projections, config):
    """`block_size/f` consecutive tokens of each block; head `j` starts at `(j * block_size/f) % block_size`."""
    block_size, step = config.block_size, config.block_size // config.sparsity_factor
    starts = torch.arange(key.shape[1], device=key.device) * step % block_size
    blocks = torch.arange(0, key.shape[2], block_size, device=key.device)
    run = torch.arange(step, device=key.device)
    return _take(key, value, mask, (starts[:, None, None] + blocks[:, None] + run).flatten(1)[None])


SPARSITY_FUNCTIONS = {x.__name__: x for x in (norm, pooling, bos_pooling, lsh, stride, block_stride)}


def sparse_tokens(key, value, mask, first_query, projections, config):
    """The sparse tokens of `config.sparsity_type`; arguments and result as described at the top of the file."""
    if config.sparsity_factor == 1:
        return key, value, None if mask is None else mask[:, None]
    if is_old_onnx_export() and config.sparsity_type in ("bos_pooling", "lsh"):
        raise ValueError(
            f"With sparsity_type={config.sparsity_type!r} torch.onnx.export(..., dynamo=False) writes other numbers "
            "than the model's: take dynamo=True, or `lsg-convert --model_name FOLDER --onnx`."
        )
    return SPARSITY_FUNCTIONS[config.sparsity_type](key, value, mask, first_query, projections, config)


@torch.compiler.assume_constant_result  # no compiler can follow a generator
def lsh_projections(seed, layer_idx, num_heads, head_dim, cluster_counts, device):
    """
    Standard normal projections of `lsh`, the same for the same arguments on every machine and device.

    Returns:
        a list with one float32 tensor of shape `h d ceil(clusters/2)` per round.
    """
    return _draw_projections(seed, layer_idx, num_heads, head_dim, cluster_counts, device)


@lru_cache(maxsize=128)
def _draw_projections(seed, layer_idx, num_heads, head_dim, cluster_counts, device):
    def draw():
        generator = torch.Generator().manual_seed(seed + layer_idx)
        shapes = [(num_heads, head_dim, (count + 1) // 2) for count in cluster_counts]
        return [torch.randn(shape, generator=generator).to(device) for shape in shapes]

    # On a thread of its own: what records or fakes operations on this one would leave no numbers in the cache.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(draw).result()


def lsh_cluster_counts(config):
    """Clusters per chunk after each round of `lsh`."""
    chunk = _chunk_size(config)
    return (chunk,) * config.lsh_num_pre_rounds + (chunk // config.sparsity_factor,)


def _chunk_size(config):
    return min(config.block_size, config.sparse_block_size)


def _take(key, value, mask, index):
    """Tokens at `index` (`n|1 h t/f`) of every sequence."""
    n, h, t, _ = key.shape
    index = index.expand(n, -1, -1)
    # Whole rows in the order of memory, `n t h`: four times faster than `gather`, which goes element by element.
    sequence, head = (torch.arange(size, device=key.device) for size in (n, h))
    rows = (sequence[:, None, None] * t + index.transpose(1, 2)) * h + head  # n t/f h
    sparse_key, sparse_value = (
        x.transpose(1, 2).flatten(0, 2).index_select(0, rows.flatten()).view(*rows.shape, -1).transpose(1, 2)
        for x in (key, value)
    )
    if mask is not None:
        mask = mask[:, None].expand(-1, index.shape[1], -1).gather(2, index)
    return sparse_key, sparse_value, mask


def _weighted_sum(key, value, mask, weights):
    """Sums of runs of `f` tokens with `weights` (`n h|1 t/f f`)."""
    f = weights.shape[-1]
    sparse_key, sparse_value = ((x.unflatten(2, (-1, f)) * weights[..., None]).sum(3) for x in (key, value))
    return sparse_key, sparse_value, None if mask is None else mask.unflatten(1, (-1, f)).any(-1)[:, None]


def _cluster_sums(x, cluster, size):
    """Sums of `x` (`... c d`) by `cluster` (`... c`, values below `size`): `... size d`."""
    sums = x.new_zeros(*x.shape[:-2], size, x.shape[-1])
    return sums.scatter_add(-2, cluster[..., None].expand(x.shape), x)
