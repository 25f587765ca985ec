# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
XLM-RoBERTa with LSG (local + sparse + global) attention: the stock model with other embeddings, another
self-attention and another encoder loop; heads, losses and everything else are transformers' own.

With `config.is_decoder=True` it is the stock causal decoder: dense causal attention, a cache, no global tokens.
"""

import torch
from torch import nn
from torch.nn.functional import pad
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.xlm_roberta.modeling_xlm_roberta import (
    XLMRobertaEmbeddings,
    XLMRobertaEncoder,
    XLMRobertaForCausalLM,
    XLMRobertaForMaskedLM,
    XLMRobertaForMultipleChoice,
    XLMRobertaForQuestionAnswering,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
    XLMRobertaLayer,
    XLMRobertaModel,
    XLMRobertaPooler,
    XLMRobertaPreTrainedModel,
    XLMRobertaSelfAttention,
    XLMRobertaSelfOutput,
)
from transformers.utils import logging
from transformers.utils.import_utils import is_tracing

from .attention import IMPLEMENTATIONS, lsg_attention
from .configuration_lsg import MAX_GLOBAL_TOKENS, LSGConfig, LSGXLMRobertaConfig
from .dropout import draw_dropout, dropout_scale, kept_elements
from .parallel import has_own_threads, in_pieces, run_on_own_threads, runs_in_pieces
from .pattern import AttentionInputs
from .sparsity import lsh_cluster_counts, lsh_projections


logger = logging.get_logger(__name__)


class LSGDropout(nn.Dropout):
    """torch's dropout, drawn several times quicker on CPU; see [`draw_dropout`]."""

    def forward(self, input):
        """
        Args:
            input (`torch.Tensor`): of any shape and floating dtype.
        """
        if not self.training or self.p == 0 or not runs_in_pieces(input):
            return super().forward(input)
        kept = torch.empty_like(input, memory_format=torch.contiguous_format)
        kept_elements(*draw_dropout(input.shape, self.p), kept)
        return input * kept.mul_(dropout_scale(self.p))


class LSGEmbeddings(XLMRobertaEmbeddings):
    """XLM-RoBERTa's embeddings and, before them, the global tokens', which have neither position nor type."""

    def __init__(self, config):
        super().__init__(config)
        self.config = config
        self.dropout = LSGDropout(config.hidden_dropout_prob)
        self.global_embeddings = nn.Embedding(MAX_GLOBAL_TOKENS, config.hidden_size)

    def forward(
        self, input_ids=None, token_type_ids=None, position_ids=None, inputs_embeds=None, past_key_values_length=0
    ):
        """
        Returns:
            `torch.Tensor` of shape `(batch_size, num_global_tokens + sequence_length, hidden_size)`; without the
            globals for a decoder.

        Raises:
            ValueError: the input is longer than the positions, or than `adaptive=False` allows.
        """
        self._check_length(input_ids, position_ids, inputs_embeds, past_key_values_length)
        embeddings = super().forward(input_ids, token_type_ids, position_ids, inputs_embeds, past_key_values_length)
        if self.config.is_decoder:
            return embeddings
        index = torch.arange(self.config.num_global_tokens, device=embeddings.device)
        global_embeddings = self.LayerNorm(self.global_embeddings(index)).expand(embeddings.shape[0], -1, -1)
        return torch.cat([self.dropout(global_embeddings), embeddings], dim=1)

    def _check_length(self, input_ids, position_ids, inputs_embeds, past_key_values_length):
        length = past_key_values_length + (inputs_embeds if input_ids is None else input_ids).shape[1]
        maximum = self.config.max_sequence_length
        if length > maximum:
            # Padding takes no position, and positions may be given: only then is the input itself looked at.
            if position_ids is not None:
                length = int(position_ids.max()) - self.padding_idx
            elif input_ids is not None:
                length = past_key_values_length + int(input_ids.ne(self.padding_idx).sum(1).max())
            if length > maximum:
                raise ValueError(
                    f"The input has {length} tokens, but the model has positions for {maximum} "
                    f"(max_position_embeddings={self.config.max_position_embeddings}). Truncate the input "
                    f"(`truncation=True, max_length={maximum}`), or convert the checkpoint to a longer "
                    "max_sequence_length."
                )
        block_size = self.config.block_size
        if not self.config.adaptive and not self.config.is_decoder and length > 2 * block_size and length % block_size:
            shorter = length // block_size * block_size
            raise ValueError(
                f"The input has {length} tokens; with adaptive=False a length over {2 * block_size} must be a "
                f"multiple of block_size={block_size}: {shorter} or {shorter + block_size} would do, and so would "
                "adaptive=True, which pads inside the model."
            )


class LSGAttention(XLMRobertaSelfAttention):
    """XLM-RoBERTa's self-attention with the LSG product in the place of the dense one."""

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        output_attentions=False,
        num_padding=0,
        **kwargs,
    ):
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, num_global_tokens + sequence_length, hidden_size)`):
                globals first, the tokens padded to whole blocks where they are more than two.
            attention_mask (`torch.BoolTensor` of shape `hidden_states.shape[:2]`, *optional*): `True` where a key
                may be seen; `None` where all may.
            output_attentions (`bool`): return the attention weights, by eager attention if need be.
            num_padding (`int`): how many of the last positions fill the last block only.

        Returns:
            the context, of the shape of `hidden_states`, and the attention weights of shape `(batch_size, num_heads,
            num_global_tokens + sequence_length, num_global_tokens + sequence_length)` where they are asked for,
            otherwise `None`.
        """
        if self.is_decoder:
            kwargs["output_attentions"] = output_attentions
            return super().forward(hidden_states, attention_mask, past_key_values=past_key_values, **kwargs)
        implementation = self.config._attn_implementation
        if output_attentions and implementation != "eager":
            logger.warning_once(f"`output_attentions=True` needs eager attention: {implementation} gives way to it.")
            implementation = "eager"
        hidden_shape = (*hidden_states.shape[:2], -1, self.attention_head_size)
        projections = self.query, self.key, self.value
        query, key, value = (
            x.view(hidden_shape).transpose(1, 2)  # n h T d
            for x in in_pieces(
                lambda states: tuple(projection(states) for projection in projections),
                projections,
                hidden_states,
                num_results=3,
            )
        )
        inputs = AttentionInputs(
            query,
            key,
            value,
            attention_mask,
            self.config,
            self.scaling,
            self.dropout.p if self.training else 0.0,
            self.lsh_projections(hidden_states.device),
            num_padding,
        )
        context, weights = lsg_attention(inputs, implementation)
        return context.reshape(hidden_states.shape), weights

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
        forward = super().forward
        return in_pieces(lambda *states: (forward(*states),), self.children(), hidden_states, input_tensor)[0]


class LSGLayer(XLMRobertaLayer):
    """
    XLM-RoBERTa's layer on globals, tokens and padding together. Takes and returns them apart, so that the hidden
    states a user asks for are the tokens' alone.
    """

    def __init__(self, config, layer_idx=None):
        super().__init__(config, layer_idx=layer_idx)
        self.attention.self = LSGAttention(config, is_causal=config.is_decoder, layer_idx=layer_idx)
        self.attention.output = LSGSelfOutput(config)
        self.output.dropout = LSGDropout(config.hidden_dropout_prob)

    def forward(self, hidden_states, attention_mask=None, global_states=None, padding_states=None, **kwargs):
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`): the tokens.
            attention_mask (`torch.BoolTensor`, *optional*): as [`LSGAttention`] takes it.
            global_states (`torch.Tensor` of shape `(batch_size, num_global_tokens, hidden_size)`): the globals.
            padding_states (`torch.Tensor` of shape `(batch_size, padding, hidden_size)`): what fills the last block.

        Returns:
            the tokens, the globals and the padding, of the same shapes.
        """
        parts = (global_states, hidden_states, padding_states)
        num_padding = padding_states.shape[1]
        states = super().forward(torch.cat(parts, dim=1), attention_mask, num_padding=num_padding, **kwargs)
        global_states, hidden_states, padding_states = states.split([part.shape[1] for part in parts], dim=1)
        return hidden_states, global_states, padding_states

    def feed_forward_chunk(self, attention_output):
        """The feed-forward part; see [`in_pieces`]."""
        forward = super().feed_forward_chunk
        return in_pieces(lambda states: (forward(states),), (self.intermediate, self.output), attention_output)[0]


class LSGEncoder(XLMRobertaEncoder):
    """The stack of layers, with the global tokens and the padding running beside the tokens."""

    def __init__(self, config):
        nn.Module.__init__(self)  # the stock one would build a stack of its own first
        self.config = config
        self.layer = nn.ModuleList([LSGLayer(config, layer_idx=i) for i in range(config.num_hidden_layers)])

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, num_global_tokens + sequence_length, hidden_size)`).
            attention_mask (`torch.BoolTensor`, *optional*): as [`LSGAttention`] takes it.

        Returns:
            the last hidden state, `(batch_size, sequence_length, hidden_size)`: with `pool_with_global` the first
            global token's stands in the place of the first token's.
        """
        global_states, hidden_states = hidden_states.tensor_split([self.config.num_global_tokens], dim=1)
        batch_size, length, hidden_size = hidden_states.shape
        padding_states = hidden_states.new_zeros(batch_size, _padded_length(length, self.config) - length, hidden_size)
        states = hidden_states, global_states, padding_states
        is_dense = self.config._attn_implementation == "eager" or kwargs.get("output_attentions")
        if (
            length > 2 * self.config.block_size
            and not is_dense
            and not self.training
            and has_own_threads(hidden_states)
        ):
            states = run_on_own_threads(self._run_layers, attention_mask, *states, **kwargs)
        else:
            states = self._run_layers(attention_mask, *states, **kwargs)
        hidden_states, global_states, _ = states
        if self.config.pool_with_global:
            hidden_states = torch.cat([global_states[:, :1], hidden_states[:, 1:]], dim=1)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden_states)

    def _run_layers(self, attention_mask, hidden_states, global_states, padding_states, **kwargs):
        for layer in self.layer:
            hidden_states, global_states, padding_states = layer(
                hidden_states, attention_mask, global_states, padding_states, **kwargs
            )
        return hidden_states, global_states, padding_states


class LSGXLMRobertaPreTrainedModel(XLMRobertaPreTrainedModel):
    """What all LSG models share: see [`~transformers.PreTrainedModel`]."""

    config_class = LSGConfig
    _no_split_modules = ["LSGEmbeddings", "LSGLayer"]
    _supports_flash_attn = False

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


class LSGXLMRobertaModel(LSGXLMRobertaPreTrainedModel, XLMRobertaModel):
    """The bare encoder, [`~transformers.XLMRobertaModel`] with LSG attention. `hidden_states` are the tokens' only."""

    def __init__(self, config, add_pooling_layer=True):
        config.validate_lsg()
        XLMRobertaPreTrainedModel.__init__(self, config)
        self.gradient_checkpointing = False
        self.embeddings = LSGEmbeddings(config)
        self.encoder = XLMRobertaEncoder(config) if config.is_decoder else LSGEncoder(config)
        self.pooler = XLMRobertaPooler(config) if add_pooling_layer else None
        self.post_init()

    def _create_attention_masks(self, attention_mask, embedding_output, **kwargs):
        if self.config.is_decoder:
            return super()._create_attention_masks(
                attention_mask=attention_mask, embedding_output=embedding_output, **kwargs
            )
        return self._create_lsg_mask(attention_mask, embedding_output), None

    def _create_lsg_mask(self, attention_mask, embedding_output):
        """The mask of globals and padded tokens, `(batch_size, length)`, or `None` if it would hide nothing."""
        batch_size, length, _ = embedding_output.shape
        num_global_tokens = self.config.num_global_tokens
        length -= num_global_tokens
        padding = _padded_length(length, self.config) - length
        if attention_mask is None and not padding and not self.config.mask_first_token:
            return None
        if attention_mask is None:
            mask = torch.ones(batch_size, length, dtype=torch.bool, device=embedding_output.device)
        elif attention_mask.shape == (batch_size, length):
            mask = attention_mask.to(embedding_output.device) != 0
        else:
            raise ValueError(
                f"`attention_mask` has shape {tuple(attention_mask.shape)}, but LSG attention takes one value per "
                f"token: {(batch_size, length)}."
            )
        if self.config.mask_first_token:
            mask = torch.cat([torch.zeros_like(mask[:, :1]), mask[:, 1:]], dim=1)
        if not padding and not is_tracing(mask) and mask.all():
            return None
        return pad(pad(mask, (0, padding), value=False), (num_global_tokens, 0), value=True)


class _LSGHead:
    """Puts [`LSGXLMRobertaModel`] in the place of the stock encoder under a stock head."""

    def __init__(self, config):
        super().__init__(config)
        # An old config may ask for checkpointing: the encoder above has taken the request, and goes.
        checkpointing = any(getattr(module, "gradient_checkpointing", False) for module in self.modules())
        # transformers 5.0 builds the multiple choice head without the pooler that its forward needs
        has_pooler = self.roberta.pooler is not None or isinstance(self, XLMRobertaForMultipleChoice)
        self.roberta = LSGXLMRobertaModel(config, add_pooling_layer=has_pooler)
        self.post_init()
        if checkpointing:
            self.gradient_checkpointing_enable()


class LSGXLMRobertaForMaskedLM(_LSGHead, LSGXLMRobertaPreTrainedModel, XLMRobertaForMaskedLM):
    """[`~transformers.XLMRobertaForMaskedLM`] with LSG attention."""


class LSGXLMRobertaForCausalLM(_LSGHead, LSGXLMRobertaPreTrainedModel, XLMRobertaForCausalLM):
    """
    [`~transformers.XLMRobertaForCausalLM`]: the stock causal decoder with `config.is_decoder=True`; without it LSG
    attention, which sees both sides and has no cache.
    """


class LSGXLMRobertaForSequenceClassification(
    _LSGHead, LSGXLMRobertaPreTrainedModel, XLMRobertaForSequenceClassification
):
    """[`~transformers.XLMRobertaForSequenceClassification`] with LSG attention."""


class LSGXLMRobertaForTokenClassification(_LSGHead, LSGXLMRobertaPreTrainedModel, XLMRobertaForTokenClassification):
    """[`~transformers.XLMRobertaForTokenClassification`] with LSG attention."""


class LSGXLMRobertaForQuestionAnswering(_LSGHead, LSGXLMRobertaPreTrainedModel, XLMRobertaForQuestionAnswering):
    """[`~transformers.XLMRobertaForQuestionAnswering`] with LSG attention."""


class LSGXLMRobertaForMultipleChoice(_LSGHead, LSGXLMRobertaPreTrainedModel, XLMRobertaForMultipleChoice):
    """[`~transformers.XLMRobertaForMultipleChoice`] with LSG attention."""


def _padded_length(length, config):
    """`length` tokens in whole blocks; up to two blocks they stay as they are."""
    if length <= 2 * config.block_size:
        return length
    return -(-length // config.block_size) * config.block_size


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
