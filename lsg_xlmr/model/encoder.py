# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""XLM-RoBERTa's encoder with another self-attention: the global tokens run beside the tokens."""

from functools import partial

import torch
from torch import nn
from torch.nn.functional import pad
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.xlm_roberta.modeling_xlm_roberta import (
    XLMRobertaEncoder,
    XLMRobertaLayer,
    XLMRobertaSelfAttention,
)
from transformers.utils import logging

from ..attention.causal_attention import causal_attention
from ..attention.causal_pattern import CausalInputs
from ..attention.encoder_attention import lsg_attention
from ..attention.flex import has_flex_attention
from ..attention.lengths import count_padding, is_open, is_short
from ..attention.pattern import AttentionInputs
from ..attention.sparsity import lsh_cluster_counts, lsh_projections
from ..cpu.plain import is_plain, is_untouched, plain
from ..cpu.products import fastest
from ..cpu.threads import has_own_threads, in_pieces, run_on_own_threads
from .cache import CACHE, LSGCacheLayer, self_attention_cache
from .checks import check_states
from .dense import LSGIntermediate, LSGOutput, LSGSelfOutput
from .mask import hide_token, key_mask
from .padded_rows import attend_from_first_tokens


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
