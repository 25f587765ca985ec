# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""What causal LSG attention keeps of the tokens before: of any number of them, the same."""

from copy import copy
from inspect import signature

import torch
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaLayer


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
