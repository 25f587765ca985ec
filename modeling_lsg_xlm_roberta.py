# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
# Made from the files of lsg_xlmr/ by `python lsg_xlmr/conversion/drop_in.py .`: edit those, not this one.
"""
XLM-RoBERTa with LSG attention, in one file.

 line  section                         what it is
  128  attention/lengths               What depends on an input's length
  175  attention/pattern               The LSG pattern, and what every implementation of it is given
  333  attention/causal_pattern        The causal LSG pattern, and what its implementations are given
  406  attention/sparsity              The sparse tokens of LSG attention, made in six ways
  586  attention/encoder_attention     LSG attention of an encoder
  622  attention/causal_attention      LSG attention of a decoder, which is causal, with and without a cache
  683  attention/eager                 LSG attention by its definition
  725  attention/full                  Attention of the queries that see every key
  756  attention/windowed              LSG attention by `scaled_dot_product_attention`
  813  attention/flex                  LSG attention by torch's FlexAttention
  935  attention/packed                A batch laid out as one sequence, of one of a few lengths
 1023  attention/block_mask            FlexAttention's block mask of the LSG pattern, by arithmetic
 1140  attention/blocks                Which products LSG attention consists of, block by block
 1263  attention/blockwise             LSG attention one block of queries at a time, with its backward
 1492  attention/compiled              LSG attention block by block as one operator in the graphs of `torch.compile`
 1605  cpu/libraries                   Which library's products are the quickest on this CPU
 1637  cpu/plain                       Which modules may be called in pieces and on other threads
 1698  cpu/threads                     Work on CPU in pieces, several at a time, each on one thread
 1912  cpu/products                    Linear layers in float32 on CPUs where torch's own products are slow
 2063  cpu/dropout                     Dropout on CPU that spends one random byte an element
 2119  cpu/memory                      Memory on CPU that is used again
 2137  model/checks                    What the inputs of a model must be, said before torch fails within
 2261  model/cache                     What causal LSG attention keeps of the tokens before
 2382  model/mask                      From a user's `attention_mask` to the mask of all keys
 2428  model/padded_rows               A decoder's texts that begin with padding
 2519  model/embeddings                XLM-RoBERTa's embeddings and, beside them, those of the global tokens
 2616  model/dense                     XLM-RoBERTa's modules around a linear layer, with the fastest product for it
 2687  model/encoder                   XLM-RoBERTa's encoder with another self-attention
 2965  model/labels                    What the labels of each head must be
 3081  model/losses                    Losses of a batch that comes in parts
 3135  model/frozen_head               An LM head as it was at one moment, to be used at a later one
 3220  model/lazy_logits               Logits of a large vocabulary that are computed only where they are looked at
 3440  model/trained_rows              An embedding of which the first rows alone are trained
 3474  model/modeling_lsg_xlm_roberta  XLM-RoBERTa with LSG (local + sparse + global) attention
 3832  model/encoder_decoder           An encoder and a decoder of which either may have LSG attention, as one model
"""

import os
import re
import threading
from collections import deque
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import copy_context
from copy import copy, deepcopy
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial, wraps
from inspect import signature
from itertools import accumulate, count
from pathlib import Path
from threading import RLock
from types import SimpleNamespace
from typing import NamedTuple

from .configuration_lsg import (
    MAX_GLOBAL_TOKENS,
    LSGConfig,
    LSGEncoderDecoderConfig,
    LSGXLMRobertaConfig,
    is_lsg_config,
)

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn.attention.flex_attention import BlockMask, flex_attention as torch_flex_attention
from torch.nn.functional import dropout as apply_dropout, pad, scaled_dot_product_attention
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    EncoderDecoderCache,
    EncoderDecoderModel,
    PretrainedConfig,
)
from transformers.activations import (
    FastGELUActivation,
    GELUActivation,
    NewGELUActivation,
    QuickGELUActivation,
    SiLUActivation,
    gelu,
)
from transformers.cache_utils import DynamicLayer
from transformers.initialization import no_init_weights
from transformers.loss.loss_utils import fixed_cross_entropy
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    BaseModelOutputWithPoolingAndCrossAttentions,
    MaskedLMOutput,
)
from transformers.models.xlm_roberta.modeling_xlm_roberta import (
    XLMRobertaAttention,
    XLMRobertaCrossAttention,
    XLMRobertaEmbeddings,
    XLMRobertaEncoder,
    XLMRobertaForCausalLM,
    XLMRobertaForMaskedLM,
    XLMRobertaForMultipleChoice,
    XLMRobertaForQuestionAnswering,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
    XLMRobertaIntermediate,
    XLMRobertaLayer,
    XLMRobertaLMHead,
    XLMRobertaModel,
    XLMRobertaOutput,
    XLMRobertaPooler,
    XLMRobertaPreTrainedModel,
    XLMRobertaSelfAttention,
    XLMRobertaSelfOutput,
)
from transformers.utils import can_return_tuple, logging
from transformers.utils.import_utils import is_tracing


# ==== attention/lengths ==============================================================================================
# What depends on an input's length. A graph that `torch.export` or `torch.jit.trace` makes is run with other lengths
# than that it was made with, and nothing asks again: so in it nothing may depend on this one. All windows at once give
# short inputs the numbers of full attention, and so there every length takes them.


def is_exporting():
    """Whether `torch.export` makes a graph, which is to run where no code of ours is."""
    return getattr(torch.compiler, "is_exporting", lambda: False)()  # since torch 2.7


def is_old_onnx_export():
    """Whether `torch.onnx.export(..., dynamo=False)` makes a graph, from a trace."""
    return torch.jit.is_tracing() and torch.onnx.is_in_onnx_export()


def is_open(num_tokens):
    """Whether a graph is being made that is to hold for other numbers of tokens than `num_tokens` too."""
    return type(num_tokens) is not int or is_exporting()


def is_short(num_tokens, config):
    """
    Whether there are no more than two blocks of tokens, of which every query sees every key. Of an open length it is
    said only where no longer one can come.
    """
    short = num_tokens <= 2 * config.block_size
    if not is_open(num_tokens):
        return short
    return not torch.jit.is_tracing() and statically_known_true(short)


def count_padding(num_tokens, config):
    """
    How many positions `num_tokens` are filled up by, to whole blocks: none where they are short, nor in a decoder. Of
    an open length decoders are filled up too, and all to two blocks at least: symbolic shapes would tie a graph to
    there being one, or more.
    """
    open_length, b = is_open(num_tokens), config.block_size
    if is_short(num_tokens, config) or (config.is_decoder and not open_length):
        return 0
    num_blocks = (num_tokens + b - 1) // b  # ONNX files divide towards 0
    if open_length and not torch.jit.is_tracing():
        num_blocks = torch.sym_max(num_blocks, 2)
    return num_blocks * b - num_tokens


# ==== attention/pattern ==============================================================================================
# The LSG pattern, and what every implementation of it is given.
#
# Shapes, here and in the implementations: `n` batch, `h` heads, `d` head size, `G = config.num_global_tokens`, `t`
# tokens (a multiple of `b = config.block_size`), `T = G + t` positions (globals first), `m = t/f` sparse tokens,
# `step = b/f` of them per block, `s = config.sparse_block_size`, `w` keys in a window.
#
# A token's query in block `i` sees the globals, the tokens of blocks `i-1, i, i+1`, the `s` sparse tokens before
# `(i-1)*step` and the `s` from `(i+2)*step` on; a global query sees every global and token (Condevaux & Harispe, PAKDD
# 2023, section 3).


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


# ==== attention/causal_pattern =======================================================================================
# The causal LSG pattern, and what its implementations are given. Shapes are those of `pattern.py`.
#
# A token's query in block `i` sees the globals, the tokens of blocks `i-1` and `i` up to itself, and the `s` sparse
# tokens before `(i-1)*step`, which are made of complete blocks. A global query sees the globals alone: they are a
# prefix that depends on no token, and so tells none about a later one.
#
# Tokens that no later query sees may be missing, a whole number of blocks of them: tokens and blocks are counted from
# the first that is there, and `p` is how many of the sparse tokens came before it.


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


# ==== attention/sparsity =============================================================================================
# The sparse tokens of LSG attention, made in six ways: Condevaux & Harispe, PAKDD 2023, section 3.2.
#
# The six functions share one signature. Shapes: `n` batch, `h` heads, `t` tokens (a multiple of `config.block_size`),
# `d` head size, `e` value size, `f = config.sparsity_factor`.
#
# Args:
#     key (`torch.Tensor` of shape `n h t d`), value (`torch.Tensor` of shape `n h t e`): the tokens', without globals.
#     mask (`torch.BoolTensor` of shape `n t`, or `None` when no token is masked): `True` where a token counts.
#     first_query (`torch.Tensor` of shape `n h 1 d`): the first token's query, used by `bos_pooling`.
#     projections (list of `torch.Tensor` of shape `h d p`): used by `lsh`, see [`lsh_projections`].
#     config ([`LSGConfig`]).
#
# Returns:
#     sparse keys `n h t/f d`, sparse values `n h t/f e`, and their mask (`n h t/f` or `n 1 t/f`, bool, `None` if none
#     is masked). Values are combined linearly, with weights that do not depend on them. Selection and hashing pass no
#     gradient; the chosen keys and values do.


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


# ==== attention/encoder_attention ====================================================================================
# LSG attention of an encoder: from queries, keys, values and a mask to the context, by several implementations.


IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention")


def lsg_attention(inputs, implementation):
    """
    All implementations give the same numbers.

    Args:
        inputs ([`AttentionInputs`]).
        implementation (`str`): `"eager"`; `"sdpa"`: block by block on CPU, elsewhere (and when traced or compiled)
            `scaled_dot_product_attention` on all windows at once; `"flex_attention"`, for which `"sdpa"` stands in
            where it has no fused kernel: off CUDA, with dropout, for heads smaller than 16, and when traced or
            compiled.

    Returns:
        the context `n T h d` and, from `"eager"`, the attention weights of tokens to tokens without padding (otherwise
        `None`). The rows of queries that are masked themselves carry no meaning.
    """
    in_pieces = runs_in_pieces(inputs.query)
    if in_pieces:
        keep_freed_memory()
    if implementation == "eager":
        return eager_attention(inputs)
    if inputs.is_full:
        return full_attention(inputs.query, inputs), None
    if implementation == "flex_attention" and flex_attention_fits(inputs):
        return flex_attention(inputs), None
    if in_pieces:
        return blockwise_attention(inputs), None
    return (compiled_attention if is_compiled(inputs.query) else windowed_attention)(inputs), None


# ==== attention/causal_attention =====================================================================================
# LSG attention of a decoder, which is causal, with and without a cache.


def causal_attention(inputs, implementation):
    """
    All implementations give the same numbers.

    Args:
        inputs ([`CausalInputs`]).
        implementation (`str`): `"eager"`, dense by the definition; others: block by block on CPU, elsewhere (and when
            traced or compiled) `scaled_dot_product_attention` on all windows at once, or, after a cache and for short
            inputs, on all keys that are there.

    Returns:
        the context `n q h d` and, from `"eager"` without tokens that are missing, the attention weights of tokens to
        tokens `n h t t` (otherwise `None`). The rows of queries that are masked themselves carry no meaning.
    """
    if implementation == "eager":
        if inputs.past is None:
            return eager_attention(inputs)
        # Of missing tokens nobody could say what they weigh.
        weights = apply_dropout(dense_weights(inputs), inputs.dropout)
        return (weights @ inputs.with_sparse(inputs.value, inputs.sparse[1])).transpose(1, 2), None
    if inputs.query.shape[2] == 1 and not is_tracing(inputs.query):
        return _last_token_attention(inputs), None
    if runs_in_pieces(inputs.query):
        keep_freed_memory()
        return blockwise_attention(inputs), None
    if inputs.query.shape[2] == inputs.key.shape[2] and not inputs.is_full:  # queries of all positions
        return windowed_attention(inputs), None
    keys, values = (inputs.with_sparse(*x) for x in zip((inputs.key, inputs.value), inputs.sparse))
    return product(inputs.query, keys, values, inputs.visible(), inputs).transpose(1, 2), None


def _last_token_attention(inputs):
    """
    The context `n 1 h d` of the last token alone, after a cache: what it sees are slices of what is there, most often
    all of it.
    """
    num_global_tokens, block_size = inputs.num_global_tokens, inputs.config.block_size
    sparse_key, sparse_value, sparse_mask = inputs.sparse
    before = (inputs.num_tokens - 1) // block_size - 1  # the block before its own
    end = max(inputs.num_past_sparse + before * inputs.step, 0)
    sparse = slice(max(end - inputs.config.sparse_block_size, 0), end)
    near = num_global_tokens + max(before, 0) * block_size

    def seen(x, sparse_x):
        parts = [x] if near == num_global_tokens else [x[:, :, :num_global_tokens], x[:, :, near:]]
        parts += [sparse_x[:, :, sparse]] if sparse.start < sparse.stop else []
        return torch.cat(parts, 2) if len(parts) > 1 else x

    mask = None
    if inputs.mask is not None or sparse_mask is not None:
        ends = [inputs.num_tokens, inputs.num_tokens + sparse_key.shape[2]]
        of_tokens, of_sparse, of_globals = inputs.key_mask().tensor_split(ends, 2)
        mask = seen(torch.cat([of_globals, of_tokens], 2), of_sparse)[:, :, None]
    keys, values = seen(inputs.key, sparse_key), seen(inputs.value, sparse_value)
    return product(inputs.query, keys, values, mask, inputs).transpose(1, 2)


# ==== attention/eager ================================================================================================
# LSG attention by its definition: dense and simple, the only implementation that returns attention weights.


def eager_attention(inputs):
    """
    The context `n T h d` of `inputs` ([`AttentionInputs`] or [`CausalInputs`] of which no token is missing), and what
    the tokens pay to the tokens, without globals and padding, `n h t-num_padding t-num_padding`. A sparse token's
    weight is spread over its tokens.
    """
    t, m, num_global_tokens = inputs.num_tokens, inputs.sparse[0].shape[2], inputs.num_global_tokens
    weights, to_sparse, to_globals = dense_weights(inputs).split((t, m, num_global_tokens), -1)
    if m:
        # A sparse value is a weighted sum of values: with the identity in their place, its weights come out.
        (n, h, _, _), c = inputs.key.shape, inputs.num_condensed
        identity = torch.eye(c, dtype=inputs.key.dtype, device=inputs.key.device).expand(n, h, c, c)
        spread = inputs.sparse_tokens(identity)[1]  # n h m c
        weights = weights + pad(to_sparse @ spread, (0, t - c))
    weights, value = apply_dropout(torch.cat([to_globals, weights], -1), inputs.dropout), inputs.value
    num_kept = t - inputs.num_padding
    if is_open(t):
        # Not a slice: of all there is where there are no globals, it would tie a graph to there being padding.
        kept = torch.arange(num_kept, device=weights.device)
        of_tokens = weights.index_select(2, inputs.num_global_queries + kept).index_select(3, num_global_tokens + kept)
        return (weights @ value).transpose(1, 2), of_tokens
    # The weights handed out are those the context is made of, so that gradients reach them.
    rows = [inputs.num_global_queries, inputs.num_global_queries + num_kept]
    ends = [num_global_tokens, num_global_tokens + num_kept]
    of_globals, of_tokens, of_padding = weights.tensor_split(rows, 2)
    parts = of_tokens.tensor_split(ends, 3)
    context = sum(part @ values for part, values in zip(parts, value.tensor_split(ends, 2)))
    context = torch.cat([of_globals @ value, context, of_padding @ value], 2)
    return context.transpose(1, 2), parts[1]


def dense_weights(inputs):
    """What every query pays to the keys in the order of [`is_visible`], `n h q t+m+G`."""
    keys = inputs.with_sparse(inputs.key, inputs.sparse[0])
    scores = (inputs.query @ keys.transpose(2, 3)) * inputs.scaling
    return scores.masked_fill(~inputs.visible(), hidden_score(scores.dtype)).softmax(-1)


# ==== attention/full =================================================================================================
# Attention of the queries that see every key: the global tokens', and all of an input of up to two blocks.


def full_attention(query, inputs):
    """The context `n q h d` of queries (`n h q d`) that see every key of `inputs` ([`AttentionInputs`])."""
    mask = None if inputs.mask is None else inputs.mask[:, None, None].expand(-1, -1, query.shape[2], -1)
    return product(query, inputs.key, inputs.value, mask, inputs).transpose(1, 2)


def with_globals(context, inputs):
    """The tokens' context (`n t h d`) with that of the global queries before it, `n T h d`."""
    if not inputs.num_global_queries:
        return context
    query = inputs.query[:, :, : inputs.num_global_queries]
    if inputs.num_blocks_ahead:
        global_context = full_attention(query, inputs)
    else:  # they see themselves alone
        key, value = (x[:, :, : inputs.num_global_tokens] for x in (inputs.key, inputs.value))
        global_context = product(query, key, value, None, inputs).transpose(1, 2)
    return torch.cat([global_context, context], 1)


def product(query, key, value, mask, inputs):
    """
    `scaled_dot_product_attention` with the dropout and the scaling of `inputs`; 0 for a query that `mask` shows
    nothing (since torch 2.5).
    """
    return scaled_dot_product_attention(query, key, value, mask, inputs.dropout, scale=inputs.scaling)


# ==== attention/windowed =============================================================================================
# LSG attention by `scaled_dot_product_attention`: all windows at once, each block's gathered into one tensor.


def windowed_attention(inputs):
    """
    The context `n T h d` of `inputs` ([`AttentionInputs`] or [`CausalInputs`] with queries of all positions). Fused
    kernels wherever torch has them; memory grows with `t`. Can be traced, exported and compiled.
    """
    (sparse_key, sparse_value, _), t, b = inputs.sparse, inputs.num_tokens, inputs.config.block_size
    num_heads, is_causal = inputs.key.shape[1], not inputs.num_blocks_ahead
    keys = _windows(inputs.with_sparse(inputs.key, sparse_key), inputs)  # n h*t/b W d
    values = _windows(inputs.with_sparse(inputs.value, sparse_value), inputs)
    # What lies outside of the sequence at either end is `False` in the windows of the mask.
    key_mask = inputs.key_mask().expand(-1, num_heads, -1)
    visible = _windows(key_mask[..., None], inputs).transpose(2, 3)  # n h*t/b 1 W
    queries = inputs.query[:, :, inputs.num_global_queries :]
    if is_causal:
        later = torch.ones(b, b, dtype=torch.bool, device=visible.device).triu(1)
        before = inputs.num_global_tokens + b
        visible = visible & ~pad(later, (before, visible.shape[3] - before - b))  # n h*t/b b W
        queries = pad(queries, (0, 0, 0, _num_blocks(inputs) * b - t))
    queries = queries.unflatten(2, (-1, b)).flatten(1, 2)  # n h*t/b b d
    context = product(queries, keys, values, visible, inputs)
    context = context.unflatten(1, (num_heads, -1)).flatten(2, 3)[:, :, :t]
    return with_globals(context.transpose(1, 2), inputs)


def _windows(x, inputs):
    """Windows of all blocks at once, of `[tokens | sparse | globals]` (`n h t+m+G e`): `n h*t/b W e`."""
    b, s, t, step = inputs.config.block_size, inputs.config.sparse_block_size, inputs.num_tokens, inputs.step
    tokens, sparse, global_part = x.split((t, x.shape[2] - t - inputs.num_global_tokens, inputs.num_global_tokens), 2)
    blocks, ahead = _num_blocks(inputs), inputs.num_blocks_ahead
    near = pad(tokens, (0, 0, b, (blocks + ahead) * b - t))
    parts = [global_part[:, :, None].expand(-1, -1, blocks, -1, -1), _slices(near, (2 + ahead) * b, b)]
    if inputs.config.has_sparse_tokens:
        sides = [pad(sparse, (0, 0, step + s, 0))]
        if ahead:
            sides.append(pad(sparse, (0, 0, 0, 2 * step + s))[:, :, 2 * step :])
        parts += [_slices(side, s, step)[:, :, :blocks] for side in sides]
    return torch.cat(parts, 3).flatten(1, 2)


def _num_blocks(inputs):
    return (inputs.num_tokens + inputs.config.block_size - 1) // inputs.config.block_size


def _slices(x, size, step):
    """Slices of `x` (`n h t e`) of `size` positions, `step` apart: `n h slices size e`."""
    if not is_old_onnx_export():  # which cannot write `unfold` for all lengths
        return x.unfold(2, size, step).transpose(3, 4)
    starts = torch.arange(0, x.shape[2] - size + 1, step, device=x.device)
    return x.index_select(2, (starts[:, None] + torch.arange(size, device=x.device)).flatten()).unflatten(
        2, (-1, size)
    )


# ==== attention/flex =================================================================================================
# LSG attention by torch's FlexAttention: over `[tokens | sparse | globals]` of packed texts, without windows.
#
# What is compiled has fixed sizes, of a few lengths: with sizes that are symbols torch 2.13's kernels for CPUs give
# wrong numbers, and nobody would see it.


# Where FlexAttention is compiled to a fused kernel forward and backward.
FLEX_DEVICES = ("cuda",)
MIN_FLEX_HEAD_DIM = 16

_numbers = count()


def has_flex_attention(x):
    """Whether there are kernels for `x` (`torch.Tensor`) where it is."""
    return x.device.type in FLEX_DEVICES


def flex_attention_fits(inputs):
    """
    Whether FlexAttention has a fused kernel for `inputs`: on CUDA, without dropout, for heads of at least 16, and not
    within a graph that is traced or compiled, where sizes may be symbols.
    """
    query = inputs.query
    if not has_flex_attention(query) or query.shape[-1] < MIN_FLEX_HEAD_DIM or is_tracing(query):
        return False
    if inputs.dropout > 0:
        _warn_of_windows(inputs)
    return inputs.dropout == 0


def flex_attention(inputs):
    """The context `n T h d` of `inputs` ([`AttentionInputs`])."""
    context = [_packed_attention(inputs, texts, packing) for texts, packing in Packing.all_of(inputs)]
    return with_globals(torch.cat(context) if len(context) > 1 else context[0], inputs)


def _packed_attention(inputs, texts, packing):
    """The context `n t h d` of the tokens of some texts (`slice`), which `packing` ([`Packing`]) lays out."""
    sparse_key, sparse_value, sparse_mask = inputs.sparse
    h, device = inputs.key.shape[1], inputs.key.device
    tiles = copy(block_mask(packing, inputs.mask, (texts.start, texts.stop), sparse_mask is not None, device))
    if inputs.mask is None and sparse_mask is None:
        may_be_seen = torch.ones(h, sum(packing.sections), dtype=torch.bool, device=device)
    else:
        sizes = inputs.num_tokens, sparse_key.shape[2], inputs.num_global_tokens
        mask = inputs.key_mask()[texts, :, :, None].expand(-1, h, -1, -1)
        may_be_seen = packing.keys(*mask.split(sizes, 2))[0, :, :, 0].contiguous()
    tiles.mask_mod = _mask_mod(packing, may_be_seen)

    def keys(x, sparse):
        globals_, tokens = x[texts].tensor_split([inputs.num_global_tokens], dim=2)
        return packing.keys(tokens, sparse[texts].to(x.dtype), globals_)  # autocast makes some sparse ones float32

    query = packing.queries(inputs.query[texts, :, inputs.num_global_queries :])
    key, value = keys(inputs.key, sparse_key), keys(inputs.value, sparse_value)
    return packing.texts(compiled_flex_attention(query, key, value, tiles, inputs.scaling))


def _mask_mod(packing, may_be_seen):
    """
    The pattern with the keys of `may_be_seen` (`h K`, bool) alone, as FlexAttention calls it. All that depends on more
    than the sizes is in tensors.
    """
    block = blocks_of_queries(packing, may_be_seen.device)
    first, last, hole = seen_by(packing, may_be_seen.device)

    def mask_mod(batch, head, q, k):
        return is_seen_by(block[q], first[k], last[k], hole[k]) & may_be_seen[head, k]

    return mask_mod


def compiled_flex_attention(query, key, value, block_mask, scale):
    """
    torch's FlexAttention, compiled for the sizes of what it is given: one graph for each of them and dtype, forward
    and backward, however many there are. On CPU only without gradients, and not on a thread with another number of
    torch's threads than the process has: the kernel would use memory that it has not taken.

    Args:
        query, key, value (`torch.Tensor` of shape `1 h L d`, `1 h K d` and `1 h K d`).
        block_mask ([`BlockMask`]): what it and its `mask_mod` hold are tensors, but for what the sizes decide.
        scale (`float`): what scores are multiplied by.

    Returns:
        `torch.Tensor` of shape `1 h L d`.
    """
    with_gradients = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    shapes = query.shape, key.shape, value.shape
    kernel = _kernel(*shapes, query.dtype, query.device, scale, with_gradients)
    with torch.set_grad_enabled(with_gradients), torch.autocast(query.device.type, enabled=False):
        return kernel(query, key, value, block_mask)


@cache
def _kernel(query_shape, key_shape, value_shape, dtype, device, scale, with_gradients):
    """
    A function for each kind of arguments. torch counts compilations by the code of what is compiled, and after eight
    it would go on without a fused kernel: so each function has a code of its own, and `fullgraph` makes it an error.
    """

    def kernel(query, key, value, block_mask):
        return torch_flex_attention(query, key, value, block_mask=block_mask, scale=scale)

    kernel.__code__ = kernel.__code__.replace(co_name=f"flex_attention_{next(_numbers)}")
    # In training torch 2.6 finds no kernel otherwise (pytorch issue 146260).
    mode = "max-autotune-no-cudagraphs" if with_gradients and torch.__version__.startswith("2.6.") else None
    return torch.compile(kernel, dynamic=False, fullgraph=True, mode=mode)


def _warn_of_windows(inputs):
    config = inputs.config
    windows = 3 + (inputs.num_global_tokens + 2 * config.sparse_block_size * (inputs.step > 0)) / config.block_size
    logging.get_logger(__name__).warning_once(
        f"attention_probs_dropout_prob={inputs.dropout} in training, and FlexAttention has no dropout: the keys and "
        f"values of all windows are gathered instead, {windows:.1f} times as many as there are tokens, in every "
        "layer. Load the model with attention_probs_dropout_prob=0.0 to train with FlexAttention, or with "
        "attn_implementation='sdpa' to have windows without this warning."
    )


# ==== attention/packed ===============================================================================================
# A batch laid out as one sequence, of one of a few lengths: for kernels that are compiled for fixed sizes.
#
# The queries are the tokens of all texts, one text after the other, and what fills them up to the length. The keys are
# three sections, `[tokens | sparse tokens | globals]`, each that of all texts and what fills it up. The length alone
# says how long a section is, so texts of all lengths and batches of all sizes share the kernels of a few lengths.
# Shapes are those of `pattern.py`; `L` queries, `K` keys.


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


# ==== attention/block_mask ===========================================================================================
# FlexAttention's block mask of the LSG pattern, by arithmetic: for texts that are packed (`packed.py`).
#
# Blocks are counted through all texts. A key is seen by the queries of all blocks from a first to a last one; a sparse
# token not by those of its own block and the two beside it, which see its tokens instead. So for 128 queries and a key
# it can be counted how many of their blocks see it, and no single query has to be looked at. A tile is 128 queries and
# 128 keys.


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


# ==== attention/blocks ===============================================================================================
# Which products LSG attention consists of, block by block: of each sequence a list of [`Block`]. Shapes are those of
# `pattern.py`.


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


# ==== attention/blockwise ============================================================================================
# LSG attention one block of queries at a time, with its backward: the block's window of keys is gathered in a buffer
# that stays in cache. Blocks are shared out among threads, each of which works on its own.


# Pieces of work a thread has at least, so that threads end together.
PIECES_A_THREAD = 4
# Floats of the widest vector register: rows of scores that are not whole vectors make their product a fifth slower.
VECTOR_SIZE = 16

WAY_OUT = "Load the model with attn_implementation='eager', or call model.set_attn_implementation('eager')."


def blockwise_attention(inputs):
    """
    The context `n q h d` of `inputs` ([`AttentionInputs`] or [`CausalInputs`]). For CPU: no tensor is as large as
    `t x window`, and blocks of padding cost nothing.

    Raises:
        RuntimeError: second derivatives or a transform of `torch.func` are asked for.
    """
    tensors = inputs.query, inputs.key, inputs.value, *inputs.sparse[:2]
    is_half = inputs.query.dtype == torch.float16
    if is_half:  # scores have a wider range than what they are made of
        tensors = [x.float() for x in tensors]
    try:
        context = _BlockwiseAttention.apply(*tensors, blocks_of_sequences(inputs), inputs.scaling, inputs.dropout)
        return context.half() if is_half else context
    except RuntimeError as error:
        if "setup_context" not in str(error):
            raise
        raise RuntimeError(f"torch.func cannot transform LSG attention block by block. {WAY_OUT}") from error


class _BlockwiseAttention(torch.autograd.Function):
    """
    The products of every [`Block`]. Nothing of the size `t x window` is kept but a byte a weight where there is
    dropout: the backward pass computes each block's weights again (as FlashAttention does; Dao et al., 2022, arXiv
    2205.14135).
    """

    @staticmethod
    def forward(ctx, query, key, value, sparse_key, sparse_value, blocks, scaling, dropout):
        tensors = query, key, value, sparse_key, sparse_value
        context, ctx.draws = attend(tensors, blocks, scaling, dropout)
        ctx.blocks, ctx.scaling, ctx.dropout = blocks, scaling, dropout
        ctx.save_for_backward(*tensors, context)
        return context

    @staticmethod
    def backward(ctx, grad_context):
        grads = _BlockwiseGradients.apply(
            grad_context, *ctx.saved_tensors, ctx.blocks, ctx.scaling, ctx.dropout, ctx.draws
        )
        return *grads, None, None, None


class _BlockwiseGradients(torch.autograd.Function):
    """
    The backward pass of [`_BlockwiseAttention`]. It has none itself and says so where one is asked for: marked as
    `once_differentiable` it would be left out of second derivatives without a word.
    """

    @staticmethod
    def forward(ctx, grad_context, *args):
        *tensors, context, blocks, scaling, dropout, draws = args
        draws = iter(draws)
        return tuple(
            attend_backward(grad_context, context, tensors, blocks, scaling, dropout, lambda shape: next(draws))
        )

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(f"LSG attention block by block has no second derivatives. {WAY_OUT}")


def attend(tensors, blocks, scaling, dropout):
    """
    Args:
        tensors: queries (`n h q d`), keys, values (`n h T d`), sparse keys and sparse values (`n h m d`).
        blocks (list): of [`blocks_of_sequences`].
        scaling, dropout (`float`): as in [`AttentionInputs`].

    Returns:
        the context, by position as the queries, and what was drawn for dropout, block by block.
    """
    inputs, draws = [_by_position(x) for x in tensors], []
    num_positions = inputs[0].shape[1]
    # Blocks of padding are left out below, and must still be finite.
    complete = all(sum(block.num_queries for block in of_sequence) == num_positions for of_sequence in blocks)
    context = (tensors[0].new_empty if complete else tensors[0].new_zeros)(inputs[0].shape)  # n T h d
    buffers = _Buffers(context)

    def attend_block(piece):
        block, (q, k, v, sk, sv, out) = piece
        queries = block.queries
        keys, values = buffers.gather("keys", block, k, sk), buffers.gather("values", block, v, sv)
        weights = _block_weights(buffers, q[queries].transpose(0, 1), keys, block, scaling)
        if dropout > 0:
            draws.append(draw_dropout(weights.shape, dropout))
            weights.mul_(buffers.kept(weights.shape, draws[-1]))
        out[queries] = buffers.product("context", weights, values, dropout_scale(dropout)).transpose(0, 1)

    with torch.autocast("cpu", enabled=False):
        run_in_parallel(attend_block, _pieces(blocks, *inputs, context))
    return context, draws


def attend_backward(grad_context, context, tensors, blocks, scaling, dropout, draw):
    """
    Args:
        grad_context (`torch.Tensor` of shape `n T h d`): the gradient of `context`; the others are as [`attend`] takes
            and returns them.
        draw (`Callable`): from the shape of a block's weights to what was drawn for it; the blocks come in the order
            in which [`attend`] drew.

    Returns:
        the gradients of `tensors`.
    """
    inputs = [_by_position(x) for x in tensors]
    buffers, scale = _Buffers(context), dropout_scale(dropout)
    # What the softmax's backward subtracts from every weight's gradient.
    means = (grad_context * context).sum(-1, keepdim=True)  # n T h 1
    grads = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in inputs]
    for of_sequence, grad_out, mean, q, k, v, sk, sv, gq, gk, gv, gsk, gsv in zip(
        blocks, grad_context, means, *inputs, *grads
    ):
        for block in of_sequence:
            queries = block.queries
            keys, values = buffers.gather("keys", block, k, sk), buffers.gather("values", block, v, sv)
            block_query, grad = q[queries].transpose(0, 1), grad_out[queries].transpose(0, 1)  # h b d
            weights = _block_weights(buffers, block_query, keys, block, scaling)  # h b w
            dropped = weights
            if dropout > 0:
                dropped = buffers.kept(weights.shape, draw(weights.shape)).mul_(weights)
            grad_values = buffers.product("grad_window", dropped.transpose(1, 2), grad, scale)
            buffers.scatter(grad_values, block, gv, gsv)
            grad_scores = buffers.product("grad_weights", grad, values.transpose(1, 2), scale)
            grad_scores.mul_(dropped).addcmul_(weights, mean[queries].transpose(0, 1), value=-1)
            gq[queries] = buffers.product("grad_query", grad_scores, keys, scaling).transpose(0, 1)
            grad_keys = buffers.product("grad_window", grad_scores.transpose(1, 2), block_query, scaling)
            buffers.scatter(grad_keys, block, gk, gsk)
    return [grad.transpose(1, 2) for grad in grads]


class _Buffers(threading.local):
    """Scratch tensors of a thread, used from block to block: fresh ones would leave the cache, and fault in pages."""

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

    def gather(self, name, block, tokens, sparse):
        """
        The window of `block`, `h w d`: slices of `tokens` (`T h d`) and `sparse` (`m h d`) one after the other; where
        they have to be copied, with zeros up to a multiple of `VECTOR_SIZE`.
        """
        parts = [(sparse if is_sparse else tokens)[start:stop] for is_sparse, start, stop in block.window]
        if len(parts) == 1:
            return parts[0].transpose(0, 1)
        width = block.width
        out = self.empty(name, (-(-width // VECTOR_SIZE) * VECTOR_SIZE, *parts[0].shape[1:]))
        torch.cat(parts, out=out[:width])
        out[width:] = 0
        return out.transpose(0, 1)

    @staticmethod
    def scatter(grad_window, block, tokens, sparse):
        """Add the slices of the window's gradient to where [`gather`] took them."""
        grad_window = grad_window.transpose(0, 1)[: block.width]
        parts = grad_window.split([stop - start for _, start, stop in block.window])
        for part, (is_sparse, start, stop) in zip(parts, block.window):
            (sparse if is_sparse else tokens)[start:stop] += part


def _by_position(x):
    """`n h T d` as `n T h d`, the order of memory, where a slice of positions is one run of bytes."""
    return x.transpose(1, 2)


def _pieces(blocks, *tensors):
    """
    The work of the blocks of every sequence: a list of `(block, tensors)`, with the sequence's part of `tensors`
    (each `n T|m h d`). In the order of `blocks`, all heads at once; for several threads the largest
    first, and some heads at a time where there is too little for the threads to end together.
    """
    num_heads, num_blocks, num_threads = tensors[0].shape[2], sum(map(len, blocks)), num_parallel()
    num_parts = 1 if num_threads == 1 else min(num_heads, -(-PIECES_A_THREAD * num_threads // max(num_blocks, 1)))
    bounds = [num_heads * i // num_parts for i in range(num_parts + 1)]
    pieces = []
    for of_sequence, *parts in zip(blocks, *tensors):
        for start, stop in zip(bounds, bounds[1:]):
            of_heads = [x[:, start:stop] for x in parts]
            for block in of_sequence:
                if block.key_mask is not None and len(block.key_mask) > 1:
                    block = block._replace(key_mask=block.key_mask[start:stop])
                pieces.append((block, of_heads))
    return pieces if num_threads == 1 else sorted(pieces, key=lambda piece: piece[0].num_weights, reverse=True)


def _block_weights(buffers, query, keys, block, scaling):
    scores = buffers.product("weights", query, keys.transpose(1, 2), scaling)  # h b w
    width = block.width
    scores[:, :, width:] = -torch.inf
    if block.key_mask is not None:
        # Added: filling in goes element by element, and takes longer than the product.
        additive_mask = torch.zeros_like(block.key_mask, dtype=scores.dtype)
        additive_mask.masked_fill_(~block.key_mask, hidden_score(scores.dtype))
        scores[:, :, :width] += additive_mask[:, None]
    if block.later is not None:
        scores[:, :, width - block.later.shape[1] : width] += block.later
    return torch.softmax(scores, -1, out=scores)


# ==== attention/compiled =============================================================================================
# LSG attention block by block as one operator in the graphs of `torch.compile`: the compiler sees no loop, so that a
# graph is short, holds for any number of blocks, and runs the code of `blockwise.py` as it is.


def _free_namespace():
    """
    A namespace of torch's operators that has none of these yet. This code may be imported several times in a process,
    by other names and by the same (transformers does so when the file has changed): operators defined again would
    take the place of those that the models made before still call.
    """
    module = re.sub(r"\W", "_", __name__)
    names = (f"{module}_{number}" for number in count())
    return next(name for name in names if not hasattr(getattr(torch.ops, name), "attention_backward"))


NAMESPACE = _free_namespace()


def is_compiled(x):
    """Whether `x` (`torch.Tensor`) is traced by `torch.compile` for a device that works in pieces."""
    # An exported graph is to run where these operators are not known.
    return torch.compiler.is_dynamo_compiling() and not is_exporting() and x.device.type in PIECEWISE_DEVICES


def compiled_attention(inputs):
    """The context `n T h d` of `inputs` ([`AttentionInputs`])."""
    sparse_key, sparse_value, sparse_mask = inputs.sparse
    # What is dropped is drawn again in the backward pass, from its seed.
    seed = torch.randint(2**62, (1,)) if inputs.dropout > 0 else None
    config = inputs.config
    # As keys a prefix is more globals; how many of them are queries the shapes tell.
    return _attention_operator(
        *(inputs.query, inputs.key, inputs.value, sparse_key, sparse_value),
        *(inputs.mask, sparse_mask, seed),
        [inputs.num_global_tokens, config.block_size, config.sparse_block_size, config.sparsity_factor],
        inputs.scaling,
        inputs.dropout,
    )


# Schemas are written out: torch 2.6 infers none from `list[int]`.
@torch.library.custom_op(
    f"{NAMESPACE}::attention",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, Tensor sparse_key, Tensor sparse_value, Tensor? mask, "
    "Tensor? sparse_mask, Tensor? seed, SymInt[] sizes, float scaling, float dropout) -> Tensor",
)
def _attention_operator(query, key, value, sparse_key, sparse_value, mask, sparse_mask, seed, sizes, scaling, dropout):
    tensors = query, key, value, sparse_key, sparse_value
    with _seeded(seed):
        return attend(tensors, _operator_blocks(tensors, mask, sparse_mask, sizes), scaling, dropout)[0]


@_attention_operator.register_fake
def _(query, *args):
    return query.transpose(1, 2).new_empty(query.transpose(1, 2).shape)


@torch.library.custom_op(
    f"{NAMESPACE}::attention_backward",
    mutates_args=(),
    schema="(Tensor grad_context, Tensor context, Tensor[] tensors, Tensor? mask, Tensor? sparse_mask, Tensor? seed, "
    "SymInt[] sizes, float scaling, float dropout) -> Tensor[]",
)
def _attention_backward_operator(grad_context, context, tensors, mask, sparse_mask, seed, sizes, scaling, dropout):
    blocks = _operator_blocks(tensors, mask, sparse_mask, sizes)
    with _seeded(seed):
        return attend_backward(
            grad_context, context, tensors, blocks, scaling, dropout, lambda shape: draw_dropout(shape, dropout)
        )


@_attention_backward_operator.register_fake
def _(grad_context, context, tensors, *args):
    return [
        torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2) for x in tensors
    ]


def _setup_context(ctx, inputs, output):
    *tensors, mask, sparse_mask, seed, ctx.sizes, ctx.scaling, ctx.dropout = inputs
    ctx.save_for_backward(output, *tensors, mask, sparse_mask, seed)


def _backward(ctx, grad_context):
    context, *tensors, mask, sparse_mask, seed = ctx.saved_tensors
    grads = _attention_backward_operator(
        grad_context, context, tensors, mask, sparse_mask, seed, ctx.sizes, ctx.scaling, ctx.dropout
    )
    return *grads, *[None] * 6


_attention_operator.register_autograd(_backward, setup_context=_setup_context)


def _operator_blocks(tensors, mask, sparse_mask, sizes):
    names = "num_global_tokens", "block_size", "sparse_block_size", "sparsity_factor"
    config = SimpleNamespace(**dict(zip(names, sizes)), has_sparse_tokens=tensors[3].shape[2] > 0)
    return blocks_of_sequences(AttentionInputs(*tensors[:3], mask, config, 1.0, _sparse=(*tensors[3:], sparse_mask)))


@contextmanager
def _seeded(seed):
    """torch's random numbers from `seed` (`torch.LongTensor` of one element, `None` where none are drawn)."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(seed))
        yield


# ==== cpu/libraries ==================================================================================================
# Which library's products are the quickest on this CPU.
#
# Torch takes MKL's, which keeps its best kernels for Intel's CPUs. oneDNN, which is in every torch, is quicker on
# AMD's with AVX-512: 1.05 to 1.15 times on Zen 4, about twice on Zen 5. Which one serves is said by the CPU and not by
# a trial: a trial beside a busy neighbour may end otherwise than the one before, and the same program would give other
# bits.


ZEN_5 = 26  # AMD's number of the family


@lru_cache
def prefers_onednn():
    """Whether oneDNN's products are the quicker ones on this CPU."""
    return (
        amd_family() is not None
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


@lru_cache
def amd_family():
    """AMD's number of the CPU's family (25 for Zen 4, 26 for Zen 5); `None` of others' CPUs, and off Linux."""
    path = Path("/proc/cpuinfo")
    match = re.search(r"AuthenticAMD\ncpu family\s*:\s*(\d+)", path.read_text() if path.exists() else "")
    return int(match[1]) if match else None


# ==== cpu/plain ======================================================================================================
# Which modules may be called in pieces and on other threads: those known to give the same numbers so.
#
# A quantized layer may set scales by all that it is given, or rearrange itself at its first call; an adapter, a hook
# or one's own layer may do anything. What is not known here is called as stock calls it: once a layer, with the whole
# tensors, on the caller's thread.


_STOCK = (
    *(nn.Linear, nn.LayerNorm, nn.Dropout, nn.ModuleList, nn.Identity),
    *(GELUActivation, NewGELUActivation, FastGELUActivation, QuickGELUActivation, SiLUActivation),
    *(nn.GELU, nn.ReLU, nn.SiLU, nn.Tanh),
    *(XLMRobertaAttention, XLMRobertaCrossAttention, XLMRobertaIntermediate, XLMRobertaOutput, XLMRobertaLMHead),
)
_PLAIN = {cls: cls.forward for cls in _STOCK}  # with the `forward` it is known by: others may put theirs in its place
# What is of the class, a submodule or a parameter as long as nobody has put another thing in its place.
_REPLACEABLE = {"_call_impl", "_compiled_call_impl", "_hf_hook", "weight", "bias", "intermediate_act_fn"}
TENSORS = (nn.Parameter, torch.Tensor)  # and no subclass: quantized and distributed tensors are such
_OBSERVERS = "transformers.utils.output_capturing"  # whose hooks note `hidden_states` and `attentions`


def plain(cls):
    """Class decorator: modules of `cls` itself work in pieces and on any thread, where those within them do."""
    _PLAIN[cls] = cls.forward
    return cls


def is_plain(module):
    """
    Whether `module` (`nn.Module`) and all in it may be called in pieces and on other threads: in evaluation mode, each
    of a class that is known and as that class made it, with ordinary weights and without hooks. To be asked anew at
    every call: hooks and adapters come and go.
    """
    modules = [module]
    for module in modules:  # which grows meanwhile
        if module.training or not _is_as_made(module):
            return False
        modules += [child for child in module._modules.values() if child is not None]
    return not _has_any_global_hook()


def is_untouched(module):
    """Whether `module` (`nn.Module`) itself is of a class that is known and as that class made it, in any mode."""
    has_backward_hooks = module._backward_hooks or module._backward_pre_hooks
    return _is_as_made(module) and not has_backward_hooks and not _has_any_global_hook()


def _is_as_made(module):
    attributes, forward = vars(module), getattr(module.forward, "__func__", None)
    if _PLAIN.get(type(module), module) is not forward or not _REPLACEABLE.isdisjoint(attributes):
        return False
    if attributes["_forward_pre_hooks"] or not _only_observe(attributes["_forward_hooks"]):
        return False
    tensors = [tensor for tensor in attributes["_parameters"].values() if tensor is not None]
    return all(type(tensor) in TENSORS and tensor.is_floating_point() for tensor in tensors)


def _only_observe(hooks):
    return not hooks or all(getattr(hook, "__module__", None) == _OBSERVERS for hook in hooks.values())


# ==== cpu/threads ====================================================================================================
# Work on CPU in pieces, several at a time, each on one thread.
#
# Torch's own way is the other one: every operation is cut into as many parts as there are threads, and waits for the
# slowest. Beside another program one part is late at every operation; a whole piece is late once, and meanwhile the
# other threads take more pieces. The two do not mix: after an operation in parts torch's threads go on spinning for
# some milliseconds, and take the cores from ours. So a whole encoder runs on threads of ours.


# Where a loop over pieces is no slower than one big operation, and spares its memory.
PIECEWISE_DEVICES = ("cpu",)
# In a piece on one thread, and in one whose operations all threads share.
POSITIONS, POSITIONS_SHARED = 256, 1024
# Where oneDNN serves, which keeps half a megabyte or more for every number of rows it meets, pieces have multiples of
# so many, from some on powers of two; the last, of fewer than it is worth, has what is left.
ALIGNMENT, MAX_ROWS_ALIGNED, MIN_ROWS = 32, 512, 128


def runs_in_pieces(x):
    """Whether work on `x` (`torch.Tensor`, of no subclass) is best done piece by piece."""
    return x.device.type in PIECEWISE_DEVICES and not is_tracing(x) and type(x) in TENSORS


def is_eager(x):
    """
    Whether operations on `x` (`torch.Tensor`) on CPU are done as they come: no autocast, no derivative in forward
    mode, no transform of `torch.func` and no mode that sees operations, all of which hold for the thread.
    """
    return (
        runs_in_pieces(x)
        and not torch.is_autocast_enabled("cpu")
        and torch.autograd.forward_ad._current_level < 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
    )


def has_own_threads(x):
    """
    Whether work on `x` (`torch.Tensor`) may leave the caller's thread: not where gradients or anything else holds for
    that thread ([`is_eager`]), nor where it has only one to work on.
    """
    return is_eager(x) and torch.get_num_threads() > 1 and not torch.is_grad_enabled()


def run_on_own_threads(function, *args, **kwargs):
    """
    `function(*args, **kwargs)` without gradients, on a thread of ours whose torch operations are not cut into parts.
    [`run_in_parallel`] within it has as many threads as torch would use here. Where the caller is interrupted the work
    ends with the pieces that have begun. Where there are no such threads it is done on the caller's, by torch's.
    """
    pool, inference_mode = _thread_pool(torch.get_num_threads()), torch.is_inference_mode_enabled()
    interrupted, work = threading.Event(), []

    def run():
        _own.interrupted = interrupted
        return _without_gradients(inference_mode, function, args, kwargs)

    try:
        if pool is not None:
            try:
                work.append(pool.submit(copy_context().run, run))
            except RuntimeError:  # the interpreter is at its end, and takes no more
                pass
        return work[0].result() if work else function(*args, **kwargs)
    except BaseException:
        interrupted.set()
        wait(work)
        raise


def run_in_parallel(function, pieces):
    """
    Call `function(piece)` for every one of `pieces` (a list). No two calls may write to the same memory: within
    [`run_on_own_threads`] several run at a time, elsewhere one after the other.
    """
    pool = getattr(_own, "pool", None)
    if pool is None:
        for piece in pieces:
            function(piece)
        return
    queue, interrupted = deque(pieces), _own.interrupted

    def work():
        _own.interrupted = interrupted
        while queue:
            try:
                piece = queue.popleft()
            except IndexError:  # another thread was quicker
                return
            if interrupted.is_set():
                raise CancelledError
            function(piece)

    mode = torch.is_inference_mode_enabled()
    num_helpers = min(num_parallel(), len(pieces)) - 1
    helpers = [pool.submit(_without_gradients, mode, work, (), {}) for _ in range(num_helpers)]
    try:
        work()
    finally:
        queue.clear()
        # One that has not begun is not waited for: all threads may be at other callers' work.
        begun = [helper for helper in helpers if not helper.cancel()]
        wait(begun)
    for helper in begun:
        helper.result()


def num_parallel():
    """How many pieces [`run_in_parallel`] works on at a time here."""
    return getattr(_own, "num_threads", 1)


def in_pieces(function, modules, *states, num_results=1):
    """
    `function` of `states` (each `(batch_size, length, hidden_size)`), which treats every position by itself and gives
    a tuple of `num_results` more such tensors. On CPU, without gradients and where autocast does not choose the
    results' dtype, some positions at a time, if all `modules` that it calls are plain ([`is_plain`]).
    """
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not runs_in_pieces(states[0]):
        return function(*states)
    num_positions, num_threads = states[0].shape[:2].numel(), num_parallel()
    size = POSITIONS_SHARED if num_threads == 1 else POSITIONS
    if num_threads == 1 and prefers_onednn():
        bounds = list(accumulate(aligned_sizes(num_positions, size)[:-1]))
    else:
        num_pieces = max(1, round(num_positions / (size * num_threads))) * num_threads
        unit = min(ALIGNMENT, size) if prefers_onednn() else 1
        bounds = {round(num_positions * i / num_pieces / unit) * unit for i in range(1, num_pieces)}
        bounds = sorted({*bounds, num_positions // unit * unit} - {0, num_positions})
    if not bounds or not all(map(is_plain, modules)):
        return function(*states)
    results = [torch.empty_like(states[0], memory_format=torch.contiguous_format) for _ in range(num_results)]

    def run(piece):
        for result, value in zip(piece[len(states) :], function(*piece[: len(states)])):
            result.copy_(value)

    pieces = zip(*(x.flatten(0, 1).tensor_split(bounds) for x in (*states, *results)))
    run_in_parallel(run, list(pieces))
    return results


def aligned_sizes(num_rows, largest=None):
    """`num_rows` as the sum of few numbers that are often met: see `ALIGNMENT`."""
    sizes = []
    while num_rows >= MIN_ROWS:
        is_small = num_rows < MAX_ROWS_ALIGNED
        size = num_rows // ALIGNMENT * ALIGNMENT if is_small else 1 << (num_rows.bit_length() - 1)
        sizes.append(min(size, largest or size))
        num_rows -= sizes[-1]
    return [*sizes, num_rows] if num_rows or not sizes else sizes


_own = threading.local()  # set in threads of ours: their pool, its size, and what tells that they are to end


def _thread_pool(num_threads):
    """
    `num_threads` threads on which torch's operations are not cut into parts; `None` where a thread would be a part of
    the caller's, as gevent and eventlet have it, or can begin no more.
    """
    with _starting:  # of two callers at a time each would make its own
        return _new_thread_pool(num_threads)


@lru_cache
def _new_thread_pool(num_threads):
    all_started = threading.Barrier(num_threads)

    def start():
        torch.get_num_threads()  # the first call in a thread sets the number to the default
        torch.set_num_threads(1)
        _own.pool, _own.num_threads = pool, num_threads

    pool = ThreadPoolExecutor(num_threads, "lsg", start)

    def own_id(_):
        all_started.wait()
        return threading.get_native_id()

    try:
        ids = set(pool.map(own_id, range(num_threads)))
    except RuntimeError:  # which leaves those that began waiting for the others
        all_started.abort()
        pool.shutdown(wait=False)
        return None
    finally:
        torch.set_num_threads(num_threads)  # `start` has changed the default of threads to come, too
    if threading.get_native_id() in ids:
        pool.shutdown(wait=False)
        return None
    return pool


def _forget_threads():
    """In a child process, which has none of its parent's: neither those of a pool nor one that would end a start."""
    global _starting
    _starting = threading.Lock()
    _new_thread_pool.cache_clear()


_starting = threading.Lock()
if hasattr(os, "register_at_fork"):  # where processes fork
    os.register_at_fork(after_in_child=_forget_threads)


def _without_gradients(inference_mode, function, args, kwargs):
    """Both modes are a thread's own, and ours begin with gradients."""
    with torch.inference_mode(inference_mode), torch.no_grad():
        return function(*args, **kwargs)


# ==== cpu/products ===================================================================================================
# Linear layers in float32 on CPUs where torch's own products are slow.
#
# oneDNN, whose products are quicker there, adds in another order, so that numbers differ in the last bits, and makes a
# kernel for every number of rows, which takes a millisecond and stays: see [`aligned_sizes`].


# Of one sum: a longer one is cut, or oneDNN's error would be more than twice MKL's.
LONGEST_SUM = 1024
# Of a gradient of a weight, which sums over the rows.
LONGEST_SUM_OF_ROWS = 512
# From so many rows on weights that are cut are worth their copy: on Zen 5, and on Zen 4.
MIN_ROWS_CUT = 512, 2048


def fastest(linear, states):
    """
    How `linear` is best applied to `states`, or to parts of them.

    Args:
        linear (`nn.Module`): any; what is not a plain `nn.Linear` in float32 is called as it is, and so is one whose
            product is traced, transformed, watched, or to be less exact by torch's public switches.
        states (`torch.Tensor` of shape `(..., size)`): what `linear` will be given, or has the same positions.

    Returns:
        a function from states, `(..., in_features)`, to `(..., out_features)`. The root mean square of its error
        against float64 is at most twice that of torch's own product.
    """
    # First what costs nothing, for a decoder's steps; sizes that may be symbols are not to be compared.
    if type(states) not in TENSORS or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return linear
    if states.shape[:-1].numel() < MIN_ROWS:
        return linear
    if not prefers_onednn() or type(linear) is not nn.Linear or not is_untouched(linear):
        return linear
    if not all(map(_is_exact, linear.parameters())):
        return linear
    if not _is_asked_for(states):
        return linear
    if linear.in_features > LONGEST_SUM and states.shape[:-1].numel() < MIN_ROWS_CUT[amd_family() < ZEN_5]:
        return linear
    # A weight that is cut is copied here, once for all parts of the states.
    parts = None if torch.is_grad_enabled() else _parts(linear.weight)
    return partial(_apply, linear, parts)


def _apply(linear, parts, states):
    """`linear(states)`, with the `parts` of its weight, or where they are `None` with gradients."""
    if states.shape[-1] != linear.in_features:  # whose error is torch's
        return linear(states)
    rows = states.reshape(-1, states.shape[-1])
    if parts is None:
        result = _Product.apply(rows, linear.weight, linear.bias)
    else:
        result = _product_of_any(rows, linear.weight, parts, linear.bias)
    return result.view(*states.shape[:-1], -1)


def _is_exact(tensor):
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.layout == torch.strided


def _is_asked_for(states):
    """Whether torch would do this product at once, in float32, and may use oneDNN."""
    if not _is_exact(states) or not is_eager(states) or not torch.backends.mkldnn.enabled:
        return False
    settings = getattr(torch.backends.mkldnn, "matmul", None)
    if hasattr(settings, "fp32_precision"):  # from torch 2.9 on, where the older question may be an error
        return settings.fp32_precision in ("none", "ieee")
    return torch.get_float32_matmul_precision() == "highest"


class _Product(torch.autograd.Function):
    """`rows @ weight.T + bias` with `rows` of shape `(n, k)`, `weight` `(m, k)` and `bias` `(m,)` or `None`."""

    @staticmethod
    def forward(ctx, rows, weight, bias):
        of_rows, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(rows if of_weight else None, weight if of_rows else None)
        return _product_of_any(rows, weight, _parts(weight), bias)

    @staticmethod
    def backward(ctx, grad):
        rows, weight = ctx.saved_tensors
        of_rows, of_weight, of_bias = ctx.needs_input_grad
        is_quick = not torch.is_grad_enabled() and _is_asked_for(grad)  # else torch's, which have gradients themselves
        grad_rows = grad_weight = None
        if of_rows:
            columns = weight.t()
            grad_rows = _product_of_any(grad, columns, _parts(columns), None) if is_quick else grad @ weight
        if of_weight:
            # MKL is quicker on Zen 4 where both lie in memory by columns.
            is_quick = is_quick and amd_family() >= ZEN_5
            grad_weight = _product_over_rows(grad, rows) if is_quick else grad.t() @ rows
        return grad_rows, grad_weight, grad.sum(0) if of_bias else None


def _parts(weight):
    """
    `weight` (`m k`) cut into columns of at most `LONGEST_SUM`, each dense: for others oneDNN has no kernel and takes
    a thousand times as long.
    """
    return [_dense(part) for part in weight.detach().chunk(-(-weight.shape[1] // LONGEST_SUM), 1)]


def _dense(matrix):
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


def _product_of_any(rows, weight, parts, bias):
    """
    `rows @ weight.T + bias`, `n m`, of any number of rows by few kernels: see [`aligned_sizes`]. What is left over is
    MKL's.
    """
    sizes = aligned_sizes(len(rows))
    if sizes == [len(rows)] and sizes[0] >= MIN_ROWS:
        return _product(rows, parts, bias)
    result = rows.new_empty(len(rows), len(weight))
    for piece, out in zip(rows.split(sizes), result.split(sizes)):
        if len(piece) >= MIN_ROWS:
            out.copy_(_product(piece, parts, bias))
        elif bias is None:
            torch.mm(piece, weight.t(), out=out)
        else:
            torch.addmm(bias, piece, weight.t(), out=out)
    return result


def _product(rows, parts, bias):
    """`rows @ weight.T + bias`, `n m`, of the `parts` of the weight."""
    rows, result = _dense(rows), None
    for columns, part in zip(rows.split([part.shape[1] for part in parts], 1), parts):
        if result is None:
            result = torch.ops.mkldnn._linear_pointwise(columns, part, bias, "none", [], "")
        else:
            result = torch.ops.mkldnn._linear_pointwise(columns, result, part, None, "add")
    return result


def _product_over_rows(left, right):
    """`left.T @ right`, `m k`, of `left` (`n m`) and `right` (`n k`)."""
    num_whole = len(left) // LONGEST_SUM_OF_ROWS
    result = left.new_zeros(left.shape[1], right.shape[1])
    for i in range(num_whole):
        piece = slice(i * LONGEST_SUM_OF_ROWS, (i + 1) * LONGEST_SUM_OF_ROWS)
        columns, part = _dense(left[piece].t()), _dense(right[piece].t())
        result = torch.ops.mkldnn._linear_pointwise(columns, result, part, None, "add")
    rest = num_whole * LONGEST_SUM_OF_ROWS
    return result.addmm_(left[rest:].t(), right[rest:])


# ==== cpu/dropout ====================================================================================================
# Dropout on CPU that spends one random byte an element: ten times quicker than `bernoulli_`.


# Below, torch's own dropout is quicker.
MIN_ELEMENTS = 2**13


def dropout_scale(probability):
    """What the elements that are kept are multiplied by to leave the mean as it was; 0 if none is kept."""
    return 1 / (1 - probability) if probability < 1 else 0.0


def draw_dropout(shape, probability):
    """
    What to drop, by torch's default CPU generator.

    A byte alone allows multiples of 1/256: so each row (of the last dimension) draws its threshold from the two next
    to `256 * probability`, with that as their mean, and every element is dropped with exactly `probability`.

    Args:
        shape (`torch.Size`): of what is dropped from.
        probability (`float`): of dropping.

    Returns:
        random bytes of `shape` (`torch.uint8`) and thresholds of shape `(*shape[:-1], 1)` (`torch.float32`), for
        [`kept_elements`].
    """
    size = shape.numel()
    random = torch.empty(-(-size // 8), dtype=torch.int64, device="cpu").random_(-(2**63), None)
    thresholds = torch.rand(*shape[:-1], 1, dtype=torch.float32, device="cpu").add_(256 * probability).floor_()
    return random.view(torch.uint8)[:size].view(shape), thresholds


def kept_elements(random, thresholds, out):
    """`out` (of the shape of `random`, any floating dtype) filled with 1 where an element is kept, else 0."""
    return out.copy_(random).ge_(thresholds)


@plain
class LSGDropout(nn.Dropout):
    """torch's dropout, drawn several times quicker on CPU; see [`draw_dropout`]."""

    def forward(self, input):
        """
        Args:
            input (`torch.Tensor`): of any shape and floating dtype.
        """
        # The size is asked last: traced, it would tie the graph to it.
        if not self.training or self.p == 0 or not runs_in_pieces(input) or input.numel() < MIN_ELEMENTS:
            return super().forward(input)
        kept = torch.empty_like(input, memory_format=torch.contiguous_format)
        kept_elements(*draw_dropout(input.shape, self.p), kept)
        return input * kept.mul_(dropout_scale(self.p))


# ==== cpu/memory =====================================================================================================
# Memory on CPU that is used again. Fresh memory comes page by page, each a fault.


# Larger blocks glibc's malloc takes from the system each time, and gives back when they are freed.
LARGEST_REUSED_BYTES = 2**25 - 2**16


@lru_cache
def keep_freed_memory():
    """
    Let every layer use the memory of the one before; once a process is enough. glibc's malloc keeps freed memory only
    up to twice the largest block it has seen freed (mallopt(3), `M_MMAP_THRESHOLD`): so it is shown the largest that
    counts, which is never written to and so costs no memory. Elsewhere this does nothing.
    """
    torch.empty(LARGEST_REUSED_BYTES, dtype=torch.uint8, device="cpu")


# ==== model/checks ===================================================================================================
# What the inputs of a model must be, said before torch fails within: a `TypeError` for what is no tensor, a
# `ValueError` for a wrong dtype, shape, place or value. Values are looked at on the CPU alone.


ID_DTYPES = (torch.int64, torch.int32)  # those of torch's embedding
OWN_GLOBALS = "LSG attention has global tokens of its own beside the text's, as many as `num_global_tokens` says"
# Arguments of other models and of older ones, which the stock heads drop without a word.
OF_OTHERS = {
    "global_attention_mask": f"{OWN_GLOBALS}, which see and are seen by all. Leave it out.",
    "head_mask": "transformers 5 has none. Set columns of `attention.output.dense.weight` to 0, a head's each.",
}


def check_arguments(kwargs):
    """
    Raises:
        TypeError: one of `kwargs` (`dict`) is an argument of other models whose effect would be missed.
    """
    for name, instead in OF_OTHERS.items():
        if kwargs.get(name) is not None:
            raise TypeError(f"LSG models take no `{name}`: {instead}")


def check_ids(name, ids, size, shape=None):
    """
    Args:
        name (`str`): of the argument.
        ids (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): numbers of rows of a table.
        size (`int`): how many rows the table has.
        shape (`tuple`, *optional*): batch size and length, of which the first may be 1 in `ids`.
    """
    if ids is None:
        return
    _check_tensor(name, ids)
    if ids.ndim != 2 or ids.dtype not in ID_DTYPES:
        raise ValueError(
            f"`{name}` must be whole numbers (int64 or int32) of shape (batch_size, sequence_length), got {ids.dtype} "
            f"of shape {tuple(ids.shape)}. A tokenizer gives them with return_tensors='pt'."
        )
    if shape is not None and (ids.shape[1] != shape[1] or ids.shape[0] not in (1, shape[0])):
        raise ValueError(f"`{name}` has shape {tuple(ids.shape)}, and must have that of the input, {tuple(shape)}.")
    if not _can_be_looked_at(ids):
        return
    lowest, highest = (int(x) for x in ids.aminmax())
    if lowest < 0 or highest >= size:
        raise ValueError(
            f"`{name}` holds {lowest if lowest < 0 else highest}, and must be from 0 to {size - 1}: is it made for "
            "another checkpoint?"
        )


def check_states(name, states, hidden_size, batch_size=None):
    """
    Args:
        name (`str`): of the argument.
        states (`torch.Tensor` of shape `(batch_size, length, hidden_size)`, *optional*).
    """
    if states is None:
        return
    _check_tensor(name, states)
    if states.ndim != 3 or states.shape[2] != hidden_size or batch_size not in (None, states.shape[0]):
        raise ValueError(
            f"`{name}` must be of shape ({batch_size or 'batch_size'}, length, {hidden_size}), got "
            f"{tuple(states.shape)}."
        )
    if not states.is_floating_point():
        raise ValueError(f"`{name}` must be of a floating dtype, as the model's weights are, got {states.dtype}.")


def check_mask(mask, batch_size, length):
    """Of `mask` (`torch.Tensor` of shape `(batch_size, length)`): 0 where a token is hidden, 1 elsewhere."""
    _check_tensor("attention_mask", mask)
    if mask.shape != (batch_size, length):
        raise ValueError(
            f"`attention_mask` has shape {tuple(mask.shape)}, but LSG attention takes one value per token, those in "
            f"the cache included: {(batch_size, length)}."
        )
    if mask.dtype == torch.bool or not _can_be_looked_at(mask):
        return
    lowest, highest = (x.item() for x in mask.aminmax())
    if not lowest >= 0:
        found, meant = lowest, "masks that are added to scores have other numbers."
    elif highest > 1:
        found, meant = highest, f"{OWN_GLOBALS}, and no token of the text is marked as one."
    else:
        return
    raise ValueError(
        f"`attention_mask` holds {found}, where LSG attention takes 1 for a token and 0 for padding; {meant}"
    )


def check_place(name, tensor, weight):
    """That `tensor` is on the device of `weight`, and of no floats that its dtype cannot hold."""
    if tensor is None:
        return
    if tensor.device != weight.device:
        raise ValueError(
            f"`{name}` is on the device {tensor.device}, and the model on {weight.device}: move one to the other by "
            ".to(device)."
        )
    is_wider = tensor.is_floating_point() and torch.promote_types(tensor.dtype, weight.dtype) != weight.dtype
    if is_wider and not torch.is_autocast_enabled(weight.device.type):
        raise ValueError(
            f"`{name}` is of {tensor.dtype}, and the model's weights of {weight.dtype}: convert one to the other by "
            ".to(dtype)."
        )


def _check_tensor(name, value):
    if not isinstance(value, torch.Tensor):
        raise TypeError(
            f"`{name}` must be a torch.Tensor, got {type(value).__name__}. A tokenizer gives one with "
            "return_tensors='pt'."
        )
    if value.layout != torch.strided or value.is_nested:
        raise ValueError(f"`{name}` must be an ordinary tensor, not a sparse or nested one: .to_dense() makes it one.")


def _can_be_looked_at(x):
    """Off the CPU a look would make it wait, and a graph is to hold for other values."""
    return x.device.type == "cpu" and not is_tracing(x) and x.numel() > 0


# ==== model/cache ====================================================================================================
# What causal LSG attention keeps of the tokens before: of any number of them, the same.


# What transformers calls a model's cache: `past_key_values`, and from 5.24 on `cache`.
CACHE = "cache" if "cache" in signature(XLMRobertaLayer.forward).parameters else "past_key_values"


def self_attention_cache(cache):
    """
    The part of `cache` that self-attention keeps its keys and values in.

    Raises:
        ValueError: it is no [`~transformers.DynamicCache`], nor an [`~transformers.EncoderDecoderCache`] of such.
    """
    if isinstance(cache, EncoderDecoderCache):
        cache = cache.self_attention_cache
    if not isinstance(cache, DynamicCache):
        raise ValueError(
            f"LSG attention keeps what it needs in a DynamicCache, not in a {type(cache).__name__}: leave "
            "`cache_implementation` out, or load the model with dense_decoder=True."
        )
    return cache


class LSGCacheLayer(DynamicLayer):
    """
    A layer of [`~transformers.DynamicCache`] that holds what later tokens may see: the globals, the tokens since the
    beginning of the last complete block, and the last `sparse_block_size` of the sparse tokens of the blocks before.
    Where texts began with padding it holds `rows`, such a layer for each.
    """

    is_croppable = False

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.cumulative_length = 0
        self.sparse = self.first_query = self.rows = None

    @classmethod
    def of(cls, cache, layer_idx, config):
        """
        The layer `layer_idx` of `cache` (a [`~transformers.DynamicCache`]), put in the place of an ordinary one that
        is empty.

        Raises:
            ValueError: the cache was filled by another attention.
        """
        while len(cache.layers) <= layer_idx:
            cache.layers.append(cls(config))
        if not isinstance(cache.layers[layer_idx], cls):
            if cache.layers[layer_idx].get_seq_length():
                raise ValueError("The cache was filled by another attention than LSG: begin with an empty one.")
            cache.layers[layer_idx] = cls(config)
        return cache.layers[layer_idx]

    def get_seq_length(self):
        """How many tokens there were, also those that are not kept."""
        return self.cumulative_length

    def update(self, key_states, value_states, *args, **kwargs):
        """
        Args:
            key_states, value_states (`torch.Tensor` of shape `n h length d`): the new tokens', at first with the
                globals before them.

        Returns:
            the keys and values of the globals and of all tokens that are there.
        """
        num_global_tokens = 0 if self.is_initialized else self.config.num_global_tokens
        self.cumulative_length += key_states.shape[2] - num_global_tokens
        return super().update(key_states, value_states, *args, **kwargs)

    def by_row(self, batch_size, num_tokens):
        """The layers of `batch_size` texts, which are about to get `num_tokens` more, padding included."""
        self.cumulative_length += num_tokens
        self.rows = self.rows or [LSGCacheLayer(self.config) for _ in range(batch_size)]
        return self.rows

    def forget(self, inputs):
        """Keep of the tokens of `inputs` ([`CausalInputs`]) what later ones may see."""
        if inputs.num_condensed:
            bounds = [inputs.num_global_tokens, inputs.num_global_tokens + inputs.num_condensed]
            parts = (x.tensor_split(bounds, dim=2) for x in (self.keys, self.values))
            self.keys, self.values = (torch.cat([globals_, tokens], 2) for globals_, _, tokens in parts)
        last = -self.config.sparse_block_size or None
        self.sparse = tuple(x if x is None or not x.shape[2] else x[:, :, last:] for x in inputs.sparse)
        if inputs.num_tokens:
            self.first_query = inputs.first_query

    def reorder_cache(self, beam_idx):
        """See [`~transformers.cache_utils.DynamicLayer`], as for the others below."""
        self._change(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats):
        self._change(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices):
        self._change(lambda x: x[indices])

    def reset(self):
        self.__init__(self.config)

    def crop(self, *args):
        raise ValueError(
            "LSG attention does not keep the tokens it would have to go back to: generate without an assistant model "
            "or prompt lookup, or load the model with dense_decoder=True."
        )

    def _change(self, function):
        """Put `function` of every tensor in its place; the first dimension of each is the batch."""
        if self.rows is not None:
            order = function(torch.arange(len(self.rows)))
            self.rows = [copy(self.rows[i]) for i in order.tolist()]  # whose tensors are replaced, never written to
        elif self.cumulative_length:
            self.keys, self.values = function(self.keys), function(self.values)
            self.sparse = tuple(x if x is None else function(x) for x in self.sparse)
            self.first_query = function(self.first_query)


# ==== model/mask =====================================================================================================
# From a user's `attention_mask` to the mask of all keys.


def key_mask(attention_mask, batch_size, length, padding, config, device, num_prefix=0):
    """
    Args:
        attention_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*): 0 where a token is hidden.
        length (`int`): how many tokens there are, those in a cache included.
        padding (`int`): how many positions after them fill the last block.
        num_prefix (`int`): how many of the first are a prefix, before the first token.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, num_global_tokens + length + padding)`: `True` where a key may be
        seen; or `None` where all may.

    Raises:
        TypeError, ValueError: see [`check_mask`].
    """
    hides_first_token = config.mask_first_token and not config.is_decoder  # whose texts may begin with padding
    # Asked last whether there is padding: compiled, that ties a graph to the answer.
    if attention_mask is None and not hides_first_token and not is_open(length) and not padding:
        return None
    if attention_mask is None:
        mask = torch.ones(batch_size, length, dtype=torch.bool, device=device)
    else:
        check_mask(attention_mask, batch_size, length)
        mask = attention_mask.to(device) != 0
    if hides_first_token:
        mask = hide_token(mask, num_prefix)
    # Traced, the graph is to hold for all lengths and masks.
    if not is_tracing(mask) and not padding and mask.all():
        return None
    return pad(pad(mask, (0, padding), value=False), (config.num_global_tokens, 0), value=True)


def hide_token(mask, place, key=None):
    """
    `mask` (`torch.BoolTensor` of shape `n T`) with `False` at `place`. Where it is `None`, all of `key` (`n h T d`)
    may be seen else.
    """
    if mask is None:
        mask = torch.ones(key.shape[0], key.shape[2], dtype=torch.bool, device=key.device)
    return mask & (torch.arange(mask.shape[1], device=mask.device) != place)


# ==== model/padded_rows ==============================================================================================
# A decoder's texts that begin with padding: blocks are counted from a text's first token, so that it gets the answer
# it gets alone. Without a cache the padding is moved to the end; with one, where texts then end at different places of
# their blocks, they are read one by one.


def attend_from_first_tokens(attend, query, key, value, mask, layer, update, config):
    """
    Args:
        attend (`Callable`): from query, key, value (`n h T d`), mask, layer and what updates it to the context
            `n T h d` and the attention weights (`n h t t` or `None`).
        query, key, value (`torch.Tensor` of shape `n h T d`): of the globals, where the cache does not have them, and
            of the new tokens.
        mask (`torch.BoolTensor` of shape `n G+t`, or `None`): of all tokens, those in the cache included.
        layer ([`LSGCacheLayer`], *optional*).
        update (`Callable`, *optional*): puts keys and values in `layer`.
        config ([`LSGConfig`]).

    Returns:
        what `attend` gives, by position; what stands at padding carries no meaning.
    """
    if layer is None:
        if mask is None or not is_tracing(mask) and not _begins_padded(mask, config):
            return attend(query, key, value, mask, None, None)
        return _attend_shifted(attend, query, key, value, mask, config.num_global_tokens)
    if layer.rows is None and (layer.cumulative_length or mask is None or not _begins_padded(mask, config, 0)):
        return attend(query, key, value, mask, layer, update)
    return _attend_row_by_row(attend, query, key, value, mask, layer, config.num_global_tokens)


def _begins_padded(mask, config, num_blocks=2):
    """Whether any text does, among more tokens than `num_blocks` blocks have: in so few borders make no difference."""
    tokens = mask[:, config.num_global_tokens :]
    return not is_tracing(mask) and tokens.shape[1] > num_blocks * config.block_size and not tokens[:, 0].all()


def _padding(mask, num_global_tokens):
    """How many positions of padding each text begins with, `n`."""
    return (mask[:, num_global_tokens:].long().cumsum(1) == 0).sum(1)


def _attend_shifted(attend, query, key, value, mask, num_global_tokens):
    padding, num_tokens = _padding(mask, num_global_tokens), mask.shape[1] - num_global_tokens
    globals_, tokens = (torch.arange(size, device=mask.device) for size in (num_global_tokens, num_tokens))

    def places(shift):  # n T
        moved, size = tokens + shift[:, None], tokens[-1:] + 1  # a tensor, for exporters
        moved = torch.where(moved < 0, moved + size, torch.where(moved < size, moved, moved - size))
        return torch.cat([globals_.expand(mask.shape[0], -1), num_global_tokens + moved], 1)

    there, back = places(padding), places(-padding)
    tensors = (x.gather(2, there[:, None, :, None].expand_as(x)) for x in (query, key, value))
    context, weights = attend(*tensors, mask.gather(1, there), None, None)
    context = context.gather(1, back[:, :, None, None].expand_as(context))
    if weights is not None:
        back = back[:, num_global_tokens:] - num_global_tokens
        weights = weights.gather(2, back[:, None, :, None].expand_as(weights))
        weights = weights.gather(3, back[:, None, None].expand_as(weights))
    return context, weights


def _attend_row_by_row(attend, query, key, value, mask, layer, num_global_tokens):
    before = layer.cumulative_length
    num_globals = 0 if before else num_global_tokens
    num_tokens = key.shape[2] - num_globals
    rows = layer.by_row(len(key), num_tokens)
    if mask is None:
        padding = [before - row.cumulative_length for row in rows]
    else:
        padding = _padding(mask, num_global_tokens).tolist()
    contexts, weights = [], []
    for i, num_hidden in enumerate(padding):
        row, row_mask = slice(i, i + 1), None
        if mask is not None:
            row_mask = _without(mask[row], num_global_tokens, num_hidden, dim=1)
            row_mask = None if row_mask.all() else row_mask
        num_new_hidden = min(max(num_hidden - before, 0), num_tokens)
        tensors = (_without(x[row], num_globals, num_new_hidden, dim=2) for x in (query, key, value))
        context, of_row = attend(*tensors, row_mask, rows[i], rows[i].update)
        of_globals, of_tokens = context.tensor_split([num_globals], 1)
        contexts.append(torch.cat([of_globals, pad(of_tokens, (0, 0, 0, 0, num_new_hidden, 0))], 1))
        if of_row is not None:
            weights.append(pad(of_row, (num_new_hidden, 0, num_new_hidden, 0)))
    return torch.cat(contexts), torch.cat(weights) if weights else None


def _without(x, start, length, dim):
    """`x` without `length` positions from `start` on."""
    return torch.cat([x.narrow(dim, 0, start), x.narrow(dim, start + length, x.shape[dim] - start - length)], dim)


# ==== model/embeddings ===============================================================================================
# XLM-RoBERTa's embeddings and, beside them, those of the global tokens.


class GlobalStates:
    """
    Takes the global tokens' states from the embeddings to the encoder, past the hooks that may put other embeddings of
    the tokens in the place of these. No container: accelerate and FSDP would hand on a copy.
    """

    tensor = None


class LSGEmbeddings(XLMRobertaEmbeddings):
    """XLM-RoBERTa's embeddings and, beside them, the global tokens', which have neither position nor type."""

    def __init__(self, config):
        super().__init__(config)
        self.config = config
        self.dropout = LSGDropout(config.hidden_dropout_prob)
        self.global_embeddings = nn.Embedding(MAX_GLOBAL_TOKENS, config.hidden_size)

    def forward(
        self,
        input_ids=None,
        token_type_ids=None,
        position_ids=None,
        inputs_embeds=None,
        global_states=None,
        **kwargs,
    ):
        """
        Args:
            global_states ([`GlobalStates`], *optional*): its `tensor` becomes the globals' embeddings, of shape
                `(batch_size, num_global_tokens, hidden_size)`.

        Returns:
            the tokens' embeddings, `torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`.

        Raises:
            TypeError: what comes is no tensor.
            ValueError: the input is empty, longer than the positions, of a length that `adaptive=False` refuses, or
                holds ids that the tables have no row for.
        """
        cache_length = kwargs.get(f"{CACHE}_length", 0)
        shape = (inputs_embeds if input_ids is None else input_ids).shape[:2]
        if 0 in shape:
            raise ValueError(f"The input has {shape[0]} texts of {shape[1]} tokens: give one of each at least.")
        self._check_length(shape[1], input_ids, position_ids, cache_length)
        check_ids("position_ids", position_ids, self.config.max_position_embeddings, shape)
        check_ids("token_type_ids", token_type_ids, self.config.type_vocab_size, shape)
        if not hasattr(self, "_hf_hook"):  # by which accelerate moves what comes
            inputs = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
            inputs |= {"position_ids": position_ids, "token_type_ids": token_type_ids}
            for name, value in inputs.items():
                check_place(name, value, self.LayerNorm.weight)
        embeddings = super().forward(input_ids, token_type_ids, position_ids, inputs_embeds, cache_length)
        if global_states is None:
            return embeddings
        num_global_tokens = self.config.num_global_tokens
        index = torch.arange(num_global_tokens, device=embeddings.device)
        global_embeddings = self.LayerNorm(self.global_embeddings(index)).expand(embeddings.shape[0], -1, -1)
        # Parts of one tensor: FSDP has the weights ready once gradients have come to what is returned.
        embeddings = torch.cat([self.dropout(global_embeddings), embeddings], dim=1)
        global_states.tensor = embeddings[:, :num_global_tokens]
        return embeddings[:, num_global_tokens:]

    def _check_length(self, num_tokens, input_ids, position_ids, cache_length):
        length = cache_length + num_tokens
        maximum = self.config.max_sequence_length
        if length > maximum:
            # Padding takes no position, and positions may be given: only then is the input itself looked at.
            if isinstance(position_ids, torch.Tensor) and position_ids.numel():
                length = int(position_ids.max()) - self.padding_idx
            elif input_ids is not None:
                length = cache_length + int(input_ids.ne(self.padding_idx).sum(1).max())
            if length > maximum:
                ways_out = f"Truncate the input (`truncation=True, max_length={maximum}`)"
                if input_ids is None:  # as peft's prompt tuning has it
                    ways_out = "Truncate the text: what stands before it, as in prompt tuning, takes positions too"
                raise ValueError(
                    f"The input has {length} tokens, but the model has positions for {maximum} "
                    f"(max_position_embeddings={self.config.max_position_embeddings}). {ways_out}, or convert the "
                    "checkpoint to a longer max_sequence_length."
                )
        block_size = self.config.block_size
        # A graph for other lengths fills up their blocks, rather than take those of this one's kind alone.
        is_fixed = not self.config.adaptive and not self.config.is_decoder and not is_open(num_tokens)
        if is_fixed and num_tokens > 2 * block_size and num_tokens % block_size:
            shorter = num_tokens // block_size * block_size
            raise ValueError(
                f"The input has {num_tokens} tokens; with adaptive=False a length over {2 * block_size} must be a "
                f"multiple of block_size={block_size}: {shorter} or {shorter + block_size} would do, and so would "
                "adaptive=True, which pads inside the model."
            )


# ==== model/dense ====================================================================================================
# XLM-RoBERTa's modules around a linear layer, with the fastest product for it.


@plain
class LSGSelfOutput(XLMRobertaSelfOutput):
    """XLM-RoBERTa's projection of the context; see [`in_pieces`]."""

    def __init__(self, config):
        super().__init__(config)
        self.dropout = LSGDropout(config.hidden_dropout_prob)

    def forward(self, hidden_states, input_tensor):
        """
        Args:
            hidden_states, input_tensor (`torch.Tensor` of shape `(batch_size, length, hidden_size)`): the context, and
                what the layer was given.
        """
        dense = fastest(self.dense, hidden_states)
        return in_pieces(
            lambda context, states: (self.LayerNorm(self.dropout(dense(context)) + states),),
            self.children(),
            hidden_states,
            input_tensor,
        )[0]


@plain
class LSGIntermediate(XLMRobertaIntermediate):
    """XLM-RoBERTa's first half of the feed-forward part."""

    def forward(self, hidden_states):
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(..., hidden_size)`).
        """
        return self.intermediate_act_fn(fastest(self.dense, hidden_states)(hidden_states))


@plain
class LSGOutput(XLMRobertaOutput):
    """XLM-RoBERTa's second half of the feed-forward part."""

    def __init__(self, config):
        super().__init__(config)
        self.dropout = LSGDropout(config.hidden_dropout_prob)

    def forward(self, hidden_states, input_tensor, dense=None):
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(..., intermediate_size)`).
            input_tensor (`torch.Tensor` of shape `(..., hidden_size)`).
            dense (`Callable`, *optional*): the product of `self.dense`, where it is known how that is best done.
        """
        dense = dense or fastest(self.dense, hidden_states)
        return self.LayerNorm(self.dropout(dense(hidden_states)) + input_tensor)


@plain
class LSGLMHead(XLMRobertaLMHead):
    """XLM-RoBERTa's LM head."""

    def forward(self, features, **kwargs):
        """
        Args:
            features (`torch.Tensor` of shape `(..., hidden_size)`).
        """
        states = self.layer_norm(gelu(fastest(self.dense, features)(features)))
        return fastest(self.decoder, states)(states)


# ==== model/encoder ==================================================================================================
# XLM-RoBERTa's encoder with another self-attention: the global tokens run beside the tokens.


logger = logging.get_logger(__name__)


@plain
class LSGAttention(XLMRobertaSelfAttention):
    """XLM-RoBERTa's self-attention with the LSG product in the place of the dense one."""

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        output_attentions=False,
        num_padding=0,
        **kwargs,
    ):
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, num_global_tokens + sequence_length, hidden_size)`):
                globals first (not those that the cache has), the tokens of an encoder padded to whole blocks
                where they are more than two.
            attention_mask (`torch.BoolTensor` of shape `(batch_size, num_global_tokens + sequence_length)`, those in
                the cache included, *optional*): `True` where a key may be seen; `None` where all may.
            past_key_values or, from transformers 5.24 on, cache (`Cache`, *optional*): of a decoder; see
                [`LSGCacheLayer`].
            output_attentions (`bool`): return the attention weights, by eager attention if need be.
            num_padding (`int`): how many of the last positions fill the last block only.

        Returns:
            the context, of the shape of `hidden_states`, and where they are asked for (otherwise `None`) the attention
            weights of tokens to tokens, `(batch_size, num_heads, sequence_length, sequence_length)`: what a row lacks
            of 1 goes to the globals.

        Raises:
            ValueError: attention weights are asked for of tokens that a cache no longer has.
        """
        implementation = self.config._attn_implementation
        if output_attentions and implementation != "eager":
            logger.warning_once(f"`output_attentions=True` needs eager attention: {implementation} gives way to it.")
            implementation = "eager"
        hidden_shape = (*hidden_states.shape[:2], -1, self.attention_head_size)
        modules = self.query, self.key, self.value
        projections = [fastest(module, hidden_states) for module in modules]
        query, key, value = (
            x.view(hidden_shape).transpose(1, 2)  # n h T d
            for x in in_pieces(
                lambda states: tuple(projection(states) for projection in projections),
                modules,
                hidden_states,
                num_results=3,
            )
        )
        arguments = {
            "config": self.config,
            "scaling": self.scaling,
            "dropout": self.dropout.p if self.training else 0.0,
            "projections": self.lsh_projections(hidden_states.device),
        }
        if self.is_decoder:
            context, weights = self._attend_causally(
                query, key, value, attention_mask, kwargs.get(CACHE), implementation, output_attentions, arguments
            )
        else:
            arguments["num_padding"] = num_padding
            if kwargs.get(CACHE) is not None:
                num_states = key.shape[2]
                key, value = self._with_prefix(key, value, num_padding, self_attention_cache(kwargs[CACHE]))
                arguments["num_prefix"] = key.shape[2] - num_states
            inputs = AttentionInputs(query, key, value, attention_mask, **arguments)
            context, weights = lsg_attention(inputs, implementation)
        return context.reshape(hidden_states.shape), weights

    def _attend_causally(self, query, key, value, mask, cache, implementation, output_attentions, arguments):
        """Context and weights; keys, values and sparse tokens before are taken from and left in `cache`."""
        layer = update = None
        if cache is not None:
            cache = self_attention_cache(cache)
            layer = LSGCacheLayer.of(cache, self.layer_idx, self.config)
            update = partial(cache.update, layer_idx=self.layer_idx)

        def attend(query, key, value, mask, layer, update):
            past = first_query = None
            if layer is not None:
                past, first_query = layer.sparse, layer.first_query
                key, value = update(key, value)
            num_globals = self.config.num_global_tokens
            num_tokens = key.shape[2] - num_globals
            if mask is not None:  # of all tokens, of which the cache has the last
                globals_mask, mask = mask.tensor_split([num_globals], dim=1)
                mask = torch.cat([globals_mask, mask[:, mask.shape[1] - num_tokens :]], 1)
            if self.config.mask_first_token and (layer is None or layer.cumulative_length == num_tokens):
                mask = hide_token(mask, num_globals, key)
            inputs = CausalInputs(query, key, value, mask, past=past, first_query=first_query, **arguments)
            if layer is not None:
                layer.forget(inputs)
            if output_attentions and inputs.past is not None:
                raise ValueError("With a cache there are no attention weights of all tokens: add use_cache=False.")
            return causal_attention(inputs, implementation)

        return attend_from_first_tokens(attend, query, key, value, mask, layer, update, self.config)

    def _with_prefix(self, key, value, num_padding, cache):
        """
        Keys and values with those of `cache` between the globals and the tokens. As in the stock encoder, the cache
        takes those of the tokens.
        """
        ends = [self.config.num_global_tokens, key.shape[2] - num_padding]
        parts = [x.tensor_split(ends, dim=2) for x in (key, value)]
        longer = cache.update(*(tokens for _, tokens, _ in parts), self.layer_idx)
        return [torch.cat([globals_, tokens, padding], 2) for (globals_, _, padding), tokens in zip(parts, longer)]

    def lsh_projections(self, device):
        """This layer's random projections, or `None` for another `sparsity_type`; see [`lsh_projections`]."""
        if self.config.sparsity_type != "lsh" or not self.config.has_sparse_tokens:
            return None
        return lsh_projections(
            self.config.lsh_seed,
            self.layer_idx,
            self.num_attention_heads,
            self.attention_head_size,
            lsh_cluster_counts(self.config),
            device,
        )


@plain
class LSGLayer(XLMRobertaLayer):
    """
    XLM-RoBERTa's layer on globals, tokens and padding together. Takes and returns them apart, so that the hidden
    states a user asks for are the tokens' alone.
    """

    def __init__(self, config, layer_idx=None):
        super().__init__(config, layer_idx=layer_idx)
        self.attention.self = LSGAttention(config, is_causal=config.is_decoder, layer_idx=layer_idx)
        self.attention.output = LSGSelfOutput(config)
        self.intermediate, self.output = LSGIntermediate(config), LSGOutput(config)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        global_states=None,
        padding_states=None,
        encoder_hidden_states=None,
        **kwargs,
    ):
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`): the tokens.
            attention_mask (`torch.BoolTensor`, *optional*): as [`LSGAttention`] takes it.
            global_states (`torch.Tensor` of shape `(batch_size, num_global_tokens, hidden_size)`): the globals.
            padding_states (`torch.Tensor` of shape `(batch_size, padding, hidden_size)`): what fills the last block.
            encoder_hidden_states (`torch.Tensor`, *optional*): for cross-attention; here by its place, because
                reentrant checkpointing gives no gradients to arguments that come by name.

        Returns:
            the tokens, the globals and the padding, of the same shapes.
        """
        parts = (global_states, hidden_states, padding_states)
        states, sizes = torch.cat(parts, dim=1), [part.shape[1] for part in parts]
        padding = spare = sizes[2]
        if is_open(sizes[1]):  # of which more comes along than is needed, see [`LSGEncoder`]
            padding = count_padding(sizes[1], self.attention.self.config)
            states = states[:, : sizes[0] + sizes[1] + padding]
        states = super().forward(states, attention_mask, encoder_hidden_states, num_padding=padding, **kwargs)
        if is_open(sizes[1]):
            states = pad(states, (0, 0, 0, spare - padding))
        global_states, hidden_states, padding_states = states.split(sizes, dim=1)
        return hidden_states, global_states, padding_states

    def feed_forward_chunk(self, attention_output):
        """The feed-forward part; see [`in_pieces`]."""
        forward = super().feed_forward_chunk
        if type(self.output) is LSGOutput and is_untouched(self.output):  # a hook sees what stock gives it
            down = fastest(self.output.dense, attention_output)  # here, because it may copy the weight

            def forward(states):
                return self.output(self.intermediate(states), states, down)

        return in_pieces(lambda states: (forward(states),), (self.intermediate, self.output), attention_output)[0]


class LSGEncoder(XLMRobertaEncoder):
    """The stack of layers, with the global tokens and the padding running beside the tokens."""

    def __init__(self, config):
        nn.Module.__init__(self)  # the stock one would build a stack of its own first
        self.config = config
        self.layer = nn.ModuleList([LSGLayer(config, layer_idx=i) for i in range(config.num_hidden_layers)])

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        encoder_hidden_states=None,
        use_cache=None,
        global_states=None,
        **kwargs,
    ):
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`): the tokens.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, those in the cache included,
                *optional*): 0 where a token is hidden.
            global_states (`torch.Tensor` of shape `(batch_size, num_global_tokens, hidden_size)`): the globals, where
                the cache does not have them.
            encoder_hidden_states, past_key_values (cache), use_cache: as in [`~transformers.XLMRobertaModel`].

        Returns:
            the last hidden state, `(batch_size, sequence_length, hidden_size)`: in an encoder with `pool_with_global`
            and globals the first global token's stands in the place of the first token's.

        Raises:
            TypeError, ValueError: `attention_mask` or `encoder_hidden_states` does not fit.
            ValueError: there are no globals.
        """
        self._check_encoder_hidden_states(encoder_hidden_states, hidden_states.shape[0])
        cache = kwargs.get(CACHE)
        is_decoder, block_size = self.config.is_decoder, self.config.block_size
        batch_size, length, hidden_size = hidden_states.shape
        cache_length = 0 if cache is None else cache.get_seq_length()
        if global_states is None and (is_decoder and cache_length or not self.config.num_global_tokens):
            global_states = hidden_states[:, :0]
        elif global_states is None:
            raise ValueError(
                "The encoder needs the global tokens' states beside the tokens': call the model, with `inputs_embeds` "
                "if need be, or give them as `global_states`."
            )
        padding = count_padding(length, self.config)
        attention_mask = key_mask(
            *(attention_mask, batch_size, cache_length + length, padding, self.config, hidden_states.device),
            num_prefix=0 if is_decoder else cache_length,
        )
        # Of an open length as many as there can be: a size that may be 0 or 1 ties a graph to being so or not.
        num_states = 2 * block_size if is_open(length) else padding
        states = hidden_states, global_states, hidden_states.new_zeros(batch_size, num_states, hidden_size)
        kwargs["encoder_hidden_states"] = encoder_hidden_states
        implementation = self.config._attn_implementation
        is_dense = implementation == "eager" or kwargs.get("output_attentions")
        is_flex = implementation == "flex_attention" and has_flex_attention(hidden_states)
        is_blockwise = not is_short(length, self.config) and not is_dense and not is_flex
        if is_blockwise and has_own_threads(hidden_states) and is_plain(self.layer):
            states = run_on_own_threads(self._run_layers, attention_mask, *states, **kwargs)
        else:
            states = self._run_layers(attention_mask, *states, **kwargs)
        hidden_states, global_states, _ = states
        if self.config.pools_with_global and not is_decoder:
            is_first = torch.arange(length, device=hidden_states.device)[:, None] == 0
            hidden_states = torch.where(is_first, global_states[:, :1], hidden_states)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden_states, **{CACHE: cache if use_cache else None}
        )

    def _check_encoder_hidden_states(self, states, batch_size):
        config = self.config
        if states is not None and not config.add_cross_attention:
            raise ValueError("`encoder_hidden_states` need cross-attention: load with add_cross_attention=True.")
        check_states(
            "encoder_hidden_states",
            states,
            getattr(config, "cross_attention_hidden_size", None) or config.hidden_size,
            batch_size,
        )

    def _run_layers(
        self, attention_mask, hidden_states, global_states, padding_states, encoder_hidden_states, **kwargs
    ):
        for layer in self.layer:
            hidden_states, global_states, padding_states = layer(
                hidden_states, attention_mask, global_states, padding_states, encoder_hidden_states, **kwargs
            )
        return hidden_states, global_states, padding_states


# ==== model/labels ===================================================================================================
# What the labels of each head must be. Their values are looked at when a loss has failed, so that it costs nothing;
# their shapes at all times: a loss of as many labels in another order is wrong, and nobody would see it.


LABELS = ("labels", "start_positions", "end_positions")


def explains_labels(wrong):
    """
    A decorator of a head's `forward`: an error within, or no loss or one of labels of another shape, becomes a
    `ValueError` that says what is wrong with the labels, where something is.

    Args:
        wrong (`Callable`): from the model, the shape of the input `(batch_size, ...)`, whether to look at values too,
            and the labels by name to what is wrong with them (`str`), or `None`.
    """

    def decorator(forward):
        arguments = signature(forward)

        @wraps(forward)
        def wrapper(self, *args, **kwargs):
            if is_tracing():
                return forward(self, *args, **kwargs)
            try:
                outputs = forward(self, *args, **kwargs)
            except Exception as error:
                _explain(wrong, self, arguments.bind_partial(self, *args, **kwargs).arguments, error)
                raise
            if args or not kwargs.keys().isdisjoint(LABELS):
                _explain(wrong, self, arguments.bind_partial(self, *args, **kwargs).arguments, None)
            return outputs

        return wrapper

    return decorator


def _explain(wrong, model, arguments, error):
    labels = {name: arguments[name] for name in LABELS if arguments.get(name) is not None}
    inputs = arguments.get("input_ids"), arguments.get("inputs_embeds")
    shapes = [x.shape[: x.ndim - dims] for x, dims in zip(inputs, (0, 1)) if isinstance(x, torch.Tensor)]
    if not labels or not shapes:
        return
    message = _no_tensors(labels) or wrong(model, tuple(shapes[0]), error is not None, **labels)
    if message is not None:
        raise ValueError(message) from error


def wrong_token_labels(model, shape, look, labels):
    """One class a token."""
    config = model.config
    has_words = model.get_output_embeddings() is not None
    return _wrong_classes("labels", labels, shape, look and (config.vocab_size if has_words else config.num_labels))


def wrong_text_labels(model, shape, look, labels):
    """Of sequence classification, by `config.problem_type`."""
    number, batch_size = model.config.num_labels, shape[0]
    kind = model.config.problem_type
    if kind not in (None, "regression", "single_label_classification", "multi_label_classification"):
        return (
            f"`config.problem_type` is {kind!r}, and must be regression, single_label_classification or "
            "multi_label_classification."
        )
    if kind == "regression" or (kind is None and number == 1):
        allowed = [(batch_size,), (batch_size, 1)] if number == 1 else [(batch_size, number)]
        return _wrong_shape("labels", labels, allowed)
    if kind == "single_label_classification" or (kind is None and labels.dtype in (torch.int64, torch.int32)):
        return _wrong_classes("labels", labels, (batch_size,), look and number)
    if not labels.is_floating_point():
        return f"`labels` of several classes a text must be floats, 1 for each class it has, got {labels.dtype}."
    return _wrong_shape("labels", labels, [(batch_size, number)])


def wrong_choices(model, shape, look, labels):
    """Which of the choices is right."""
    if len(shape) != 3:
        return f"The input must be of shape (batch_size, num_choices, sequence_length), got {shape}."
    return _wrong_classes("labels", labels, (shape[0],), look and shape[1])


def wrong_answers(model, shape, look, start_positions=None, end_positions=None):
    """Where an answer begins and ends; outside of the text is nowhere."""
    if start_positions is None or end_positions is None:
        return "`start_positions` and `end_positions` must be given both."
    of_text = (shape[0],)
    return _wrong_classes("start_positions", start_positions, of_text) or _wrong_classes(
        "end_positions", end_positions, of_text
    )


def _no_tensors(labels):
    for name, value in labels.items():
        if not isinstance(value, torch.Tensor):
            return f"`{name}` must be a torch.Tensor, got {type(value).__name__}."


def _wrong_classes(name, labels, shape, number=None):
    """Of labels that are numbers from 0 to `number`, where that is given, or -100 for none."""
    if labels.dtype != torch.int64:
        return f"`{name}` must be int64, got {labels.dtype}."
    wrong = _wrong_shape(name, labels, [shape, (*shape, 1)])
    if wrong or not number:
        return wrong
    outside = labels[((labels < 0) & (labels != -100)) | (labels >= number)]
    if outside.numel():
        return f"`{name}` holds {outside[0].item()}, and must be from 0 to {number - 1}, or -100 where there is none."


def _wrong_shape(name, labels, shapes):
    if tuple(labels.shape) not in shapes:
        return f"`{name}` must be of shape {shapes[0]}, got {tuple(labels.shape)}."


# ==== model/losses ===================================================================================================
# Losses of a batch that comes in parts: by gradient accumulation or on several processes.
#
# `Trainer` then gives every part `num_items_in_batch`, the number of labels of the whole batch, and expects the part's
# share of the loss: the sum over its labels, divided by that number. The stock heads take the argument and return the
# mean over the part all the same, and the sum of the parts is as many times too high as there are parts.


def of_whole_batch(forward, share, wrong_labels):
    """
    A head's `forward` that heeds `num_items_in_batch`, and says what is wrong with labels. Otherwise nothing changes.

    Args:
        forward (`Callable`): of a stock head.
        share (`Callable`): from the model, its outputs without a loss, the number and the labels to the loss.
        wrong_labels (`Callable`): see [`explains_labels`].
    """

    @explains_labels(wrong_labels)
    @wraps(forward)
    @can_return_tuple
    def wrapper(self, *args, num_items_in_batch=None, **kwargs):
        # The stock heads cannot take a part of a larger tensor.
        labels = {name: kwargs.pop(name).contiguous() for name in LABELS if kwargs.get(name) is not None}
        if num_items_in_batch is None or not labels:
            return forward(self, *args, return_dict=True, **labels, **kwargs)
        outputs = forward(self, *args, return_dict=True, **kwargs)
        return type(outputs)(loss=share(self, outputs, num_items_in_batch, **labels), **outputs)

    return wrapper


def cross_entropy(model, outputs, num_items_in_batch, labels):
    """Of `logits` (`... classes`) and `labels` (`...`, int64, -100 where there is none)."""
    logits = outputs.logits
    labels = labels.to(logits.device).view(-1)
    return fixed_cross_entropy(logits.view(-1, logits.shape[-1]), labels, num_items_in_batch)


def sequence_classification_loss(model, outputs, num_items_in_batch, labels):
    """Of one label a text (int64: cross-entropy, float: squared error) or several (float: binary cross-entropy)."""
    config = model.config
    loss = model.loss_function(labels, outputs.logits, config, num_items_in_batch=num_items_in_batch)
    if config.problem_type != "single_label_classification":  # transformers' is the mean here, whatever the number
        loss = loss * labels.numel() / num_items_in_batch
    return loss


def question_answering_loss(model, outputs, num_items_in_batch, start_positions, end_positions):
    """The mean of the cross-entropies of both ends of the answer."""
    logits = outputs.start_logits, outputs.end_logits
    return model.loss_function(*logits, start_positions, end_positions, num_items_in_batch=num_items_in_batch)


# ==== model/frozen_head ==============================================================================================
# An LM head as it was at one moment, to be used at a later one.


PARTS_OF_HEAD = [LSGLMHead, nn.Linear, nn.LayerNorm, nn.Linear]


class FrozenHead:
    """
    The head of `model` and torch's modes of now, whatever becomes of them: parts and weights that are replaced later
    stay, weights that are changed in place are noticed.

    Args:
        model ([`LSGXLMRobertaForMaskedLM`]): one that [`can_be_frozen`].
        device (`torch.device`): that of the features.

    Attributes:
        dtype (`torch.dtype`): of the logits.
        vocab_size (`int`).
    """

    def __init__(self, model, device):
        self.head = deepcopy(model.lm_head, {id(weight): weight.detach() for weight in model.lm_head.parameters()})
        self.weights = {
            name: (weight, weight._version, _sample(weight).clone()) for name, weight in self.head.named_parameters()
        }
        self.is_inference = torch.is_inference_mode_enabled()
        self.autocast = device.type, torch.get_autocast_dtype(device.type), torch.is_autocast_enabled(device.type)
        with self.modes():
            nothing = self.head(
                torch.empty(0, self.head.dense.in_features, dtype=self.head.dense.weight.dtype, device=device)
            )
        self.dtype, self.vocab_size = nothing.dtype, nothing.shape[-1]

    @contextmanager
    def modes(self):
        """Torch's modes of the moment, without gradients."""
        with torch.inference_mode(self.is_inference), torch.no_grad(), torch.autocast(*self.autocast):
            yield

    def __call__(self, features):
        """
        Logits of `features`.

        Raises:
            RuntimeError: a weight was changed in place.
        """
        for name, (weight, version, sample) in self.weights.items():
            is_same = weight._version == version and weight.untyped_storage().nbytes() > 0
            if not is_same or not torch.allclose(_sample(weight), sample, rtol=0, atol=0, equal_nan=True):
                raise RuntimeError(
                    f"`lm_head.{name}` was changed before these logits were read, and sparse_prediction computes them "
                    "when they are: read them earlier (`logits.clone()`), or set sparse_prediction=False."
                )
        with self.modes():
            return self.head(features)


def can_be_frozen(model, features):
    """
    Whether the LM head is its weights and nothing else, and torch is in no mode but inference or autocast: no hooks,
    adapters, quantized, sharded or replaced parts, no transforms of functions.
    """
    modules = list(model.lm_head.modules())
    return (
        [type(module) for module in modules] == PARTS_OF_HEAD
        and all(_is_plain(module.weight) and _is_plain(module.bias) for module in modules[1:])
        and not any("forward" in vars(module) or module._compiled_call_impl for module in modules)
        and not any(module._forward_hooks or module._forward_pre_hooks for module in (model, *modules))
        and not _has_any_global_hook()
        and type(features) is torch.Tensor
        and not torch._C._are_functorch_transforms_active()
        and torch.amp.is_autocast_available(features.device.type)
    )


def _is_plain(weight):
    return type(weight) is nn.Parameter and not weight.is_inference()


def _sample(weight):
    """Some thousand values from all parts: a change through `.data` leaves `_version` as it was."""
    return weight[tuple(slice(None, None, max(1, size // 32)) for size in weight.shape)]


# ==== model/lazy_logits ==============================================================================================
# Logits of a large vocabulary that are computed only where they are looked at.
#
# They wait as the features they come from. Choosing positions chooses among the features; anything else first makes of
# them the ordinary tensor they stand for, for good: nothing has to be known of what is done with them.


# What may leave logits waiting, if it does not come to the words; all else reads them.
MAY_WAIT = {
    *(Tensor.shape.__get__, Tensor.dtype.__get__, Tensor.device.__get__, Tensor.ndim.__get__, Tensor.layout.__get__),
    *(Tensor.is_nested.__get__, Tensor.is_sparse.__get__, Tensor.is_cuda.__get__, Tensor.is_cpu.__get__),
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.__len__, Tensor.__hash__),
    *(Tensor.__getitem__, Tensor.select, Tensor.narrow, Tensor.unsqueeze, Tensor.detach, Tensor.argmax, torch.argmax),
    *(Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16),
}
aten = torch.ops.aten
VIEWS = (aten.alias.default, aten.detach.default, aten.select.int, aten.slice.Tensor, aten.unsqueeze.default)
MASK_TYPES = (torch.bool, torch.uint8)  # an index of these takes as many dimensions as it has
POSITIONS_AT_A_TIME = 128  # of `argmax`: 122 MiB of logits of 250,002 words


def lazy_logits(model, features):
    """
    Args:
        model ([`LSGXLMRobertaForMaskedLM`]).
        features (`torch.Tensor` of shape `(..., hidden_size)`).

    Returns:
        `torch.Tensor` of shape `(..., vocab_size)`: [`LazyLogits`], or the logits at once where gradients are on, in a
        traced graph, and of a head that is more than its weights ([`can_be_frozen`]).
    """
    if torch.is_grad_enabled() or is_tracing(features) or not can_be_frozen(model, features):
        return model.lm_head(features)
    # A copy: others may hold the features and write to them.
    return LazyLogits(_Logits(FrozenHead(model, features.device), features.clone(), features.device))


class _Logits:
    """
    What [`LazyLogits`] and all views of them share: the features, `(..., hidden_size)`, and once some were read, the
    `tensor`, `(..., vocab_size)`, with those that are `there`. It is given away, and may change its shape; `base` is a
    view of it that does not.
    """

    def __init__(self, head, features, device, dtype=None):
        self.head, self.features, self.device, self.dtype = head, features, device, dtype or head.dtype
        self.tensor, self.base, self.there, self.lock = None, None, set(), RLock()

    def of(self, features):
        """The logits of `features`, an ordinary tensor."""
        logits = self.head(features)
        with self.head.modes():
            return logits.to(self.device, self.dtype)

    def read(self, views):
        """What `views` show of them, an ordinary tensor; no more is computed."""
        with self.lock, self.head.modes():
            shape = self.features.shape[:-1]
            positions = torch.arange(shape.numel(), device=self.features.device).view(*shape, 1)
            missing = sorted(set(_shown(positions, views).flatten().tolist()) - self.there)
            if self.base is None:
                if len(missing) == positions.numel():
                    self.tensor, self.there, missing = self.of(self.features), set(missing), []
                else:  # on a CPU, memory that nothing is written to costs nothing
                    size = (*shape, self.head.vocab_size)
                    self.tensor = torch.empty(size, dtype=self.dtype, device=self.device)
                with torch.enable_grad():  # a view that may be written to, whatever is written
                    self.base = aten.alias(self.tensor)
            for start in range(0, len(missing), POSITIONS_AT_A_TIME):
                piece = missing[start : start + POSITIONS_AT_A_TIME]
                logits = self.of(self.features.flatten(0, -2)[piece])
                self.base.data.flatten(0, -2)[piece] = logits  # `data`: for autograd nothing changes
                self.there.update(piece)
            return _shown(self.base, views)


class LazyLogits(Tensor):
    """
    A tensor of logits, `(..., vocab_size)`, that waits as features, `(..., hidden_size)`. Choosing positions
    (`logits[0, 7]`, `logits[:, -1:]`, `logits[mask]`) and another device or dtype give [`LazyLogits`] again, `argmax`
    over the words takes some positions at a time; whatever else is done with it first makes of it the ordinary tensor
    it stands for, in place and for good.

    Args:
        logits (`_Logits`).
        features (`torch.Tensor`, *optional*): what `views` choose of its features; by default all.
        views (`tuple`): functions of aten that choose, each with its arguments.

    Raises:
        RuntimeError: read after a weight of the LM head was changed in place, or by C++ that cannot be given another
            tensor (`torch.jit.trace`).
    """

    @staticmethod
    def __new__(cls, logits, features=None, views=()):
        features = logits.features if features is None else features
        shape = (*features.shape[:-1], logits.head.vocab_size)
        with logits.head.modes():
            self = Tensor._make_wrapper_subclass(cls, shape, dtype=logits.dtype, device=logits.device)
        torch._C._set_throw_on_mutable_data_ptr(self)  # C++ that takes its memory fails: there is none
        self._waiting = logits, features, views
        return self

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        waiting = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, cls)]
        state = args[0].__dict__.get("_waiting") if len(waiting) == 1 and args and waiting[0] is args[0] else None
        if func in MAY_WAIT and state is not None:
            try:
                with torch._C.DisableTorchFunctionSubclass(), _Choosing():
                    return func(*args, **kwargs)
            except _ReadError as error:
                asked = error
            logits, _, views = state
            if asked.logits is logits:
                logits.read(asked.views)
                return func(_shown(logits.base, views), *args[1:], **kwargs)
        for tensor in waiting:
            _make_ordinary(tensor)
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        """What comes from C++ alone, as of `vmap`, where a tensor can neither become another nor be reshaped."""
        if torch.Tag.inplace_view in func.tags:
            raise RuntimeError(f"{func} cannot reshape lazy logits here: give it `logits.clone()`.")
        args, kwargs = tree_map_only(cls, _read, (args, kwargs or {}))
        return func(*args, **kwargs)


def _read(tensor):
    """The ordinary tensor that `tensor` stands for, another Python object."""
    state = tensor.__dict__.get("_waiting")  # another thread may just have made it ordinary
    return tensor if state is None else state[0].read(state[2])


def _make_ordinary(tensor):
    """Make `tensor` itself the ordinary tensor that it stands for."""
    waiting = tensor.__dict__.get("_waiting")
    if waiting is None:
        return
    logits, _, views = waiting
    with logits.lock:
        if not isinstance(tensor, LazyLogits):  # another thread was faster
            return
        ordinary = logits.read(views)
        if not views and logits.tensor is not None:
            ordinary, logits.tensor = logits.tensor, None
        # What `torch.utils.swap_tensors` does, in an order in which no thread sees half of it.
        try:
            torch._C._swap_tensor_impl(tensor, ordinary)
        except RuntimeError as error:
            raise RuntimeError("Lazy logits cannot be read here: give it `logits.clone()`.") from error
        ordinary.__class__, ordinary._waiting = LazyLogits, waiting
        tensor.__class__ = Tensor
        del tensor._waiting


def _shown(tensor, views):
    for func, args, is_grad_enabled in views:
        with torch.set_grad_enabled(is_grad_enabled):
            tensor = func(tensor, *args)
    return tensor


class _ReadError(Exception):
    """What is done comes to the words of `views` of `logits`."""

    def __init__(self, logits, views):
        self.logits, self.views = logits, views


class _Choosing(TorchDispatchMode):
    """Does to the features what chooses among positions."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        state = args[0].__dict__.get("_waiting") if args and isinstance(args[0], LazyLogits) else None
        if state is None:
            return func(*args, **kwargs)
        _, *arguments = args
        (logits, features, views), dim = state, state[1].dim()
        shown = (*views, (func, arguments, torch.is_grad_enabled()))
        if func in VIEWS and (not arguments or arguments[0] % (dim + (func is aten.unsqueeze.default)) < dim - 1):
            return LazyLogits(logits, func(features, *arguments), shown)
        if func is aten.slice.Tensor and _is_whole(logits.head.vocab_size, *arguments[1:]):
            return LazyLogits(logits, features, shown)
        # Copies: those that are there may have been written to.
        if func is aten.index.Tensor and _leaves_words(arguments[0], dim) and logits.device == features.device:
            if logits.base is not None:
                return logits.read(shown)
            return LazyLogits(_Logits(logits.head, func(features, *arguments), logits.device, logits.dtype))
        if (
            logits.base is None
            and func is aten._to_copy.default
            and kwargs.keys() <= {"device", "dtype", "non_blocking"}
        ):
            device, dtype = kwargs.get("device") or logits.device, kwargs.get("dtype") or logits.dtype
            return LazyLogits(_Logits(logits.head, features, device, dtype))
        if logits.base is None and func is aten.argmax.default and arguments and arguments[0] in (-1, dim - 1):
            return _argmax(logits, features, *arguments[1:])
        raise _ReadError(logits, views)


def _leaves_words(indices, dim):
    used = sum(1 if index is None or index.dtype not in MASK_TYPES else index.dim() for index in indices)
    return used < dim or indices[-1] is None


def _is_whole(size, start=None, end=None, step=1):
    return not start and (end is None or end >= size) and step == 1


def _argmax(logits, features, keepdim=False):
    pieces = features.reshape(-1, features.shape[-1]).split(POSITIONS_AT_A_TIME)
    words = torch.cat([logits.of(piece).argmax(-1) for piece in pieces]).view(features.shape[:-1])
    return words.unsqueeze(-1) if keepdim else words


# ==== model/trained_rows =============================================================================================
# An embedding of which the first rows alone are trained.


class TrainedRows(nn.Embedding):
    """
    The first `count` rows of `embedding` as its parameter, so that neither weight decay nor the optimizer's state can
    touch the others. Saved and loaded it is the whole embedding, under the same name.

    Args:
        embedding (`nn.Embedding`): with `weight` of shape `(rows, hidden_size)`.
        count (`int`): how many rows there are to train.
    """

    def __init__(self, embedding, count):
        weight = embedding.weight.detach()
        super().__init__(count, weight.shape[1], _weight=weight[:count].clone())
        self.register_buffer("kept", weight[count:].clone(), persistent=False)
        self.register_state_dict_post_hook(_join)
        self.register_load_state_dict_pre_hook(_split)


def _join(module, state_dict, prefix, local_metadata):
    name = f"{prefix}weight"
    state_dict[name] = torch.cat([state_dict[name], module.kept.to(state_dict[name])])


def _split(module, state_dict, prefix, *args):
    name = f"{prefix}weight"
    if name in state_dict:
        state_dict[name], kept = state_dict[name].tensor_split([module.num_embeddings])
        module.kept.copy_(kept)


# ==== model/modeling_lsg_xlm_roberta =================================================================================
# XLM-RoBERTa with LSG (local + sparse + global) attention: the stock model with other embeddings and another encoder;
# heads and everything else are transformers' own.
#
# With `config.is_decoder=True` attention is causal, with a cache; with `config.dense_decoder=True` too it is the stock
# decoder: dense causal attention, no global tokens.


class SavedWithItsCode:
    """A model that puts its code beside itself."""

    def save_pretrained(self, save_directory, is_main_process=True, **kwargs):
        """
        [`~transformers.PreTrainedModel.save_pretrained`], with the code that is running: the folder the model was
        loaded from may be gone.
        """
        if is_main_process and not Path(save_directory).is_file():
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            LSGConfig.write_code(self.config, save_directory)
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)


class LSGXLMRobertaPreTrainedModel(SavedWithItsCode, XLMRobertaPreTrainedModel):
    """What all LSG models share: see [`~transformers.PreTrainedModel`]."""

    config_class = LSGConfig
    _no_split_modules = ["LSGEmbeddings", "LSGLayer"]
    _supports_flash_attn = False

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """
        [`~transformers.PreTrainedModel.from_pretrained`].

        Raises:
            TypeError: an argument is neither its own nor a field of the configuration.
        """
        try:
            return super().from_pretrained(*args, **kwargs)
        except TypeError as error:
            found = re.search("unexpected keyword argument '(.+)'", str(error))
            if not found or found[1] not in kwargs:
                raise
            if hasattr(kwargs.get("config"), found[1]):
                raise TypeError(
                    f"{found[1]!r} is a field of LSGConfig, and belongs into the `config` that is given too: in "
                    "sentence-transformers into `config_kwargs`, not `model_kwargs`."
                ) from error
            raise TypeError(
                f"Neither from_pretrained nor LSGConfig knows {found[1]!r}. The LSG fields are "
                f"{', '.join(LSGConfig.lsg_fields())}."
            ) from error

    def get_correct_attn_implementation(self, requested_attention, is_init_check=False):
        """
        The implementation to use: the one asked for, else FlexAttention where there is a CUDA device (it hands over to
        `"sdpa"` for tensors elsewhere) and `"sdpa"` where there is none.

        Raises:
            ValueError: LSG attention has no such implementation.
        """
        if requested_attention is None and torch.cuda.is_available() and not self.config.is_decoder:
            requested_attention = "flex_attention"
        if requested_attention not in (None, *IMPLEMENTATIONS):
            raise ValueError(
                f'Specified `attn_implementation="{requested_attention}"` is not supported by LSG attention. Use one '
                f"of {', '.join(repr(name) for name in IMPLEMENTATIONS)}."
            )
        return super().get_correct_attn_implementation(requested_attention, is_init_check)

    def train_global_tokens_only(self, also=()):
        """
        Freezes everything but the `config.num_global_tokens` global tokens in use and what `also` names. To be called
        before the optimizer is made; `save_pretrained` and checkpoints hold the whole model, as always.

        Args:
            also (`Iterable[str]`): parts of parameter names, whole words between dots, such as `"classifier"`.

        Returns:
            `int`: how many values are trained.

        Raises:
            ValueError: no parameter has such a name, or the model has no global tokens, as a stock decoder.
        """
        if not self.config.num_global_tokens:
            raise ValueError("There are no global tokens to train: load the model with num_global_tokens=1 or more.")
        if self.config.is_stock:
            raise ValueError("A stock decoder has no global tokens to train: load the model with dense_decoder=False.")
        names = [name for name, _ in self.named_parameters()]
        for part in also:
            if not any(f".{part}." in f".{name}." for name in names):
                top = sorted({name.split(".")[0] for name in names})
                raise ValueError(f"No parameter has {part!r} in its name. Name a part of the model: {', '.join(top)}.")
        embeddings = self.base_model.embeddings
        if not isinstance(embeddings.global_embeddings, TrainedRows):
            embeddings.global_embeddings = TrainedRows(embeddings.global_embeddings, self.config.num_global_tokens)
        for name, parameter in self.named_parameters():
            parameter.requires_grad = any(f".{part}." in f".{name}." for part in ("global_embeddings", *also))
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)


def _like_stock(forward):
    """What the stock model's `forward` is wrapped in: it takes defaults of the configuration, and collects outputs."""
    try:
        from transformers.utils.generic import merge_with_config_defaults
        from transformers.utils.output_capturing import capture_outputs
    except ImportError:  # before transformers 5.2
        from transformers.utils.generic import check_model_inputs

        return check_model_inputs(forward)
    return merge_with_config_defaults(capture_outputs(forward))


class LSGXLMRobertaModel(LSGXLMRobertaPreTrainedModel, XLMRobertaModel):
    """The bare encoder, [`~transformers.XLMRobertaModel`] with LSG attention. `hidden_states` are the tokens' only."""

    def __init__(self, config, add_pooling_layer=True):
        _validate(config)
        XLMRobertaPreTrainedModel.__init__(self, config)
        self.gradient_checkpointing = False
        self.embeddings = LSGEmbeddings(config)
        self.encoder = XLMRobertaEncoder(config) if config.is_stock else LSGEncoder(config)
        self.pooler = XLMRobertaPooler(config) if add_pooling_layer else None
        self.post_init()

    @wraps(XLMRobertaModel.forward)
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        token_type_ids=None,
        position_ids=None,
        inputs_embeds=None,
        *args,
        **kwargs,
    ):
        # Here, because the stock forward takes these apart before the embeddings see them.
        check_arguments(kwargs)
        check_ids("input_ids", input_ids, self.config.vocab_size)
        check_states("inputs_embeds", inputs_embeds, self.config.hidden_size)
        inputs = input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
        forward = super().forward if self.config.is_stock else self._lsg_forward
        return forward(*inputs, *args, **kwargs)

    @_like_stock
    def _lsg_forward(
        self,
        input_ids,
        attention_mask,
        token_type_ids,
        position_ids,
        inputs_embeds,
        encoder_hidden_states=None,
        encoder_attention_mask=None,
        past_key_values=None,
        use_cache=None,
        **kwargs,
    ):
        """The stock forward, in which the globals join the tokens after the embeddings."""
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        cache, use_cache = kwargs.pop(CACHE, past_key_values), use_cache and self.config.is_decoder
        if cache is not None:
            self_attention_cache(cache)
        elif use_cache:
            cache = DynamicCache(config=self.config)
            if encoder_hidden_states is not None or self.config.is_encoder_decoder:
                cache = EncoderDecoderCache(cache, DynamicCache(config=self.config))
        cache_length, global_states = 0 if cache is None else cache.get_seq_length(), GlobalStates()
        states = self.embeddings(
            input_ids=input_ids,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            global_states=None if self.config.is_decoder and cache_length else global_states,
            **{f"{CACHE}_length": cache_length},
        )
        if encoder_attention_mask is not None:
            # The globals' queries have cross-attention too; of the states the mask takes shape, dtype and device.
            num_queries = states.shape[1] + (0 if global_states.tensor is None else global_states.tensor.shape[1])
            encoder_attention_mask = create_bidirectional_mask(
                self.config, states[:, :1].expand(-1, num_queries, -1), encoder_attention_mask, encoder_hidden_states
            )
        outputs = self.encoder(
            states,
            attention_mask=attention_mask,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            use_cache=use_cache,
            global_states=global_states.tensor,
            **{CACHE: cache, **kwargs},
        )
        states = outputs.last_hidden_state
        pooled = None if self.pooler is None else self.pooler(states)
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=states, pooler_output=pooled, **{CACHE: outputs.get(CACHE)}
        )


def _validate(config):
    if not hasattr(config, "validate_lsg"):
        raise TypeError(
            f"LSG models take an LSGConfig, got {type(config).__name__}: LSGConfig(**config.to_dict()) makes one of "
            "XLM-RoBERTa's."
        )
    config.validate_lsg()


class _LSGHead:
    """Puts [`LSGXLMRobertaModel`] in the place of the stock encoder under a stock head."""

    def __init__(self, config):
        _validate(config)
        num_hidden_layers = config.num_hidden_layers
        checkpointing = getattr(config, "gradient_checkpointing", False)
        with no_init_weights():
            # The stock encoder goes again: with one layer, and no initial weights, it costs neither time nor memory.
            config.num_hidden_layers = 1
            try:
                super().__init__(config)
            finally:
                config.num_hidden_layers = num_hidden_layers
            if checkpointing:  # an old config's request, which the encoder above has taken
                config.gradient_checkpointing = True
            # transformers 5.0 builds the multiple choice head without the pooler that its forward needs
            has_pooler = self.roberta.pooler is not None or isinstance(self, XLMRobertaForMultipleChoice)
            self.roberta = LSGXLMRobertaModel(config, add_pooling_layer=has_pooler)
            if hasattr(self, "lm_head"):
                self.lm_head = LSGLMHead(config)
        self.post_init()


class LSGXLMRobertaForMaskedLM(_LSGHead, LSGXLMRobertaPreTrainedModel, XLMRobertaForMaskedLM):
    """
    [`~transformers.XLMRobertaForMaskedLM`] with LSG attention.

    With `config.sparse_prediction=True` (the name is ModernBERT's) the LM head runs only where it is asked. Where
    gradients are on and `labels` given, as in training, that is at the positions whose label is not
    `config.sparse_pred_ignore_index`, and `logits` are theirs, of shape `(num_labelled, vocab_size)`. Where gradients
    are off, as in evaluation, the loss takes the same positions, and `logits` are [`LazyLogits`] of shape
    `(batch_size, sequence_length, vocab_size)`, computed where they are looked at. `train()` and `eval()` change
    nothing in this.
    """

    @explains_labels(wrong_token_labels)
    @wraps(XLMRobertaForMaskedLM.forward)
    @can_return_tuple
    def forward(self, *args, labels=None, num_items_in_batch=None, **kwargs):
        if not self.config.sparse_prediction:
            return self._dense_forward(*args, labels=labels, num_items_in_batch=num_items_in_batch, **kwargs)
        outputs = self.roberta(*args, return_dict=True, **kwargs)
        features, loss = outputs.last_hidden_state, None
        if labels is None:
            logits = lazy_logits(self, features)
        else:
            labels = labels.to(features.device)
            is_labelled = labels != self.config.sparse_pred_ignore_index
            if torch.is_grad_enabled():
                logits = of_labelled = self.lm_head(features[is_labelled])
            else:
                logits = lazy_logits(self, features)
                of_labelled = logits[is_labelled]
            loss = fixed_cross_entropy(of_labelled, labels[is_labelled], num_items_in_batch)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    _dense_forward = of_whole_batch(XLMRobertaForMaskedLM.forward, cross_entropy, wrong_token_labels)


class LSGXLMRobertaForCausalLM(_LSGHead, LSGXLMRobertaPreTrainedModel, XLMRobertaForCausalLM):
    """
    [`~transformers.XLMRobertaForCausalLM`] with causal LSG attention where `config.is_decoder=True`; without it
    attention sees both sides.
    """

    forward = explains_labels(wrong_token_labels)(XLMRobertaForCausalLM.forward)

    def generate(self, *args, **kwargs):
        """
        [`~transformers.GenerationMixin.generate`].

        Raises:
            TypeError, ValueError: the model is no decoder, or is an assistant or given positions, which are for the
                stock decoder alone.
        """
        check_arguments(kwargs)
        if not self.config.is_decoder:
            raise ValueError("A model that sees both sides cannot generate: load it with is_decoder=True.")
        if getattr(kwargs.get("generation_config"), "is_assistant", False) and not self.config.is_stock:
            raise ValueError(
                "An LSG decoder cannot be an `assistant_model`: it does not keep the tokens it would have to go back "
                "to. Load it with dense_decoder=True."
            )
        if kwargs.get("position_ids") is not None and not self.config.is_stock:
            raise ValueError("`generate` counts positions itself, by the attention_mask: leave `position_ids` out.")
        return super().generate(*args, **kwargs)

    # By its signature transformers sees that a prompt may be embeddings.
    @wraps(XLMRobertaForCausalLM.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(self, *args, **kwargs):
        if kwargs.get(CACHE) is not None and not self.config.is_stock:
            self_attention_cache(kwargs[CACHE])
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        position_ids, mask = inputs.get("position_ids"), inputs.get("attention_mask")
        if position_ids is not None and not self.config.is_stock:
            # XLM-RoBERTa's own: transformers counts from 0, it from after the position of padding.
            padding_idx = self.config.pad_token_id
            if mask is None:
                position_ids = position_ids + padding_idx + 1
            else:
                position_ids = ((mask.cumsum(1) * mask)[:, -position_ids.shape[1] :] + padding_idx).long()
            inputs["position_ids"] = position_ids
        return inputs


class LSGXLMRobertaForSequenceClassification(
    _LSGHead, LSGXLMRobertaPreTrainedModel, XLMRobertaForSequenceClassification
):
    """[`~transformers.XLMRobertaForSequenceClassification`] with LSG attention."""

    forward = of_whole_batch(
        XLMRobertaForSequenceClassification.forward, sequence_classification_loss, wrong_text_labels
    )


class LSGXLMRobertaForTokenClassification(_LSGHead, LSGXLMRobertaPreTrainedModel, XLMRobertaForTokenClassification):
    """[`~transformers.XLMRobertaForTokenClassification`] with LSG attention."""

    forward = of_whole_batch(XLMRobertaForTokenClassification.forward, cross_entropy, wrong_token_labels)


class LSGXLMRobertaForQuestionAnswering(_LSGHead, LSGXLMRobertaPreTrainedModel, XLMRobertaForQuestionAnswering):
    """[`~transformers.XLMRobertaForQuestionAnswering`] with LSG attention."""

    forward = of_whole_batch(XLMRobertaForQuestionAnswering.forward, question_answering_loss, wrong_answers)


class LSGXLMRobertaForMultipleChoice(_LSGHead, LSGXLMRobertaPreTrainedModel, XLMRobertaForMultipleChoice):
    """[`~transformers.XLMRobertaForMultipleChoice`] with LSG attention."""

    forward = of_whole_batch(XLMRobertaForMultipleChoice.forward, cross_entropy, wrong_choices)


__all__ = [
    "LSGConfig",
    "LSGXLMRobertaConfig",
    "LSGXLMRobertaForCausalLM",
    "LSGXLMRobertaForMaskedLM",
    "LSGXLMRobertaForMultipleChoice",
    "LSGXLMRobertaForQuestionAnswering",
    "LSGXLMRobertaForSequenceClassification",
    "LSGXLMRobertaForTokenClassification",
    "LSGXLMRobertaModel",
    "LSGXLMRobertaPreTrainedModel",
]


# ==== model/encoder_decoder ==========================================================================================
# An encoder and a decoder of which either may have LSG attention, as one model.


STOCK_FORWARD = signature(EncoderDecoderModel.forward)


def wrong_decoder_labels(model, shape, look, labels):
    """One word of the decoder's a label, as many a text as one likes."""
    if labels.ndim != 2:
        return f"`labels` must be of shape ({shape[0]}, length), got {tuple(labels.shape)}."
    return wrong_token_labels(model.decoder, (shape[0], labels.shape[1]), look, labels)


class LSGEncoderDecoderModel(SavedWithItsCode, EncoderDecoderModel):
    """
    [`~transformers.EncoderDecoderModel`] of which either part may have LSG attention, and whose loss heeds
    `num_items_in_batch`. Special tokens that its configuration leaves open are the decoder's; the first one of an
    output is `<s>`.
    """

    config_class = LSGEncoderDecoderConfig
    _keys_to_ignore_on_load_unexpected = [r"^encoder\.pooler"]

    def __init__(self, config=None, encoder=None, decoder=None):
        if config is None and encoder is not None and decoder is not None:
            config = LSGEncoderDecoderConfig.from_encoder_decoder_configs(encoder.config, decoder.config)
        if config is not None:
            # From a folder it comes with the folder's own copy of these classes.
            _take_as(LSGEncoderDecoderConfig, config)
            _take_as(LSGConfig, config.encoder)
            _take_as(LSGConfig, config.decoder)
            _complete(config)
        if config is not None and encoder is None and isinstance(config.encoder, LSGConfig):
            encoder = LSGXLMRobertaModel._from_config(config.encoder, add_pooling_layer=False)
        if config is not None and decoder is None and isinstance(config.decoder, LSGConfig):
            decoder = LSGXLMRobertaForCausalLM._from_config(config.decoder)
        super().__init__(config, encoder, decoder)

    @classmethod
    def from_encoder_decoder_pretrained(
        cls, encoder_pretrained_model_name_or_path=None, decoder_pretrained_model_name_or_path=None, **kwargs
    ):
        """
        [`~transformers.EncoderDecoderModel.from_encoder_decoder_pretrained`]. A decoder is causal and has
        cross-attention, and an encoder has neither, whatever their checkpoints say.

        Args:
            encoder_pretrained_model_name_or_path, decoder_pretrained_model_name_or_path (`str`, *optional*): folders,
                or models on the hub. LSG checkpoints are read by this code, others by transformers.
            kwargs: for the encoder's `from_pretrained` with the prefix `encoder_`, for the decoder's with `decoder_`;
                the others, and `decoder_start_token_id`, are fields of the configuration. `encoder_model` and
                `decoder_model` stand for parts that are loaded already.

        Raises:
            ValueError: a part has neither a name nor a model.
        """
        of_encoder, of_decoder = (
            {
                name.removeprefix(part): kwargs.pop(name)
                for name in list(kwargs)
                if name.startswith(part) and name != "decoder_start_token_id"
            }
            for part in ("encoder_", "decoder_")
        )
        encoder = of_encoder.pop("model", None) or _load(
            encoder_pretrained_model_name_or_path,
            partial(LSGXLMRobertaModel.from_pretrained, add_pooling_layer=False),
            AutoModel.from_pretrained,
            of_encoder,
            is_decoder=False,
        )
        decoder = of_decoder.pop("model", None) or _load(
            decoder_pretrained_model_name_or_path,
            LSGXLMRobertaForCausalLM.from_pretrained,
            AutoModelForCausalLM.from_pretrained,
            of_decoder,
            is_decoder=True,
        )
        config = LSGEncoderDecoderConfig.from_encoder_decoder_configs(encoder.config, decoder.config, **kwargs)
        return cls(config, encoder, decoder)

    @explains_labels(wrong_decoder_labels)
    @wraps(EncoderDecoderModel.forward)
    @can_return_tuple
    def forward(self, *args, num_items_in_batch=None, **kwargs):
        inputs = _inputs_by_name(*args, **kwargs)
        labels = inputs.pop("labels", None)
        has_inputs = "decoder_input_ids" in inputs or "decoder_inputs_embeds" in inputs
        if labels is not None and not has_inputs:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
            mask = (decoder_input_ids != self.config.pad_token_id).long()
            defaults = {"decoder_attention_mask": mask, "use_cache": False}
            inputs = {"decoder_input_ids": decoder_input_ids} | defaults | inputs
        outputs = super().forward(return_dict=True, **inputs)
        if labels is None:
            return outputs
        return type(outputs)(loss=cross_entropy(self, outputs, num_items_in_batch, labels), **outputs)

    @wraps(EncoderDecoderModel.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(self, input_ids, *args, **kwargs):
        inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        if isinstance(self.decoder, XLMRobertaForCausalLM):
            # The ones it gives a token after a cache count the padding before the prompt.
            padding_idx, length = self.decoder.config.pad_token_id, inputs["decoder_input_ids"].shape[1]
            position_ids = LSGEmbeddings.create_position_ids_from_input_ids(input_ids, padding_idx)
            inputs.setdefault("decoder_position_ids", position_ids[:, -length:])
        return inputs


def _take_as(config_class, config):
    """Makes `config` one of `config_class` where it is of a copy of that class."""
    if type(config).__name__ == config_class.__name__:
        config.__class__ = config_class


def _complete(config):
    """Gives `config` the special tokens it leaves open, by those of its decoder."""
    decoder = config.decoder
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = getattr(decoder, "pad_token_id", None)
    if getattr(config, "eos_token_id", None) is None:
        config.eos_token_id = getattr(decoder, "eos_token_id", None)
    if getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = getattr(decoder, "bos_token_id", None)


def _inputs_by_name(*args, **kwargs):
    """What the stock forward is given, however it is given it; `None` is what it takes for what it is not given."""
    inputs = STOCK_FORWARD.bind_partial(None, *args, **kwargs).arguments
    inputs |= inputs.pop("kwargs", {})
    return {name: value for name, value in inputs.items() if value is not None}


def _load(name_or_path, load_lsg, load_stock, kwargs, is_decoder):
    """A part, by `load_lsg` or `load_stock`: each a `from_pretrained`, which `kwargs` are for."""
    part = "decoder" if is_decoder else "encoder"
    if name_or_path is None:
        raise ValueError(
            f"There is no {part}: give a folder or a name on the hub as `{part}_pretrained_model_name_or_path`, or a "
            f"model as `{part}_model`."
        )
    config = deepcopy(kwargs.pop("config", None))
    if config is None:
        config, kwargs = _load_config(name_or_path, kwargs)
    config.is_decoder = config.add_cross_attention = is_decoder
    load = load_lsg if is_lsg_config(config.to_dict()) else load_stock
    return load(name_or_path, config=config, **kwargs)


def _load_config(name_or_path, kwargs):
    """A part's configuration, with those of `kwargs` that are its fields, and the others."""
    dtype = {name: kwargs.pop(name) for name in ("dtype", "torch_dtype") if name in kwargs}  # may be "auto"
    is_lsg = is_lsg_config(PretrainedConfig.get_config_dict(name_or_path, **kwargs)[0])
    config = (LSGConfig if is_lsg else AutoConfig).from_pretrained(name_or_path, **kwargs)
    return config, {name: value for name, value in kwargs.items() if not hasattr(config, name)} | dtype
