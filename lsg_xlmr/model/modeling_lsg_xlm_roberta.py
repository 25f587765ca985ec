# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
XLM-RoBERTa with LSG (local + sparse + global) attention: the stock model with other embeddings and another encoder;
heads and everything else are transformers' own.

With `config.is_decoder=True` attention is causal, with a cache; with `config.dense_decoder=True` too it is the stock
decoder: dense causal attention, no global tokens.
"""

import re
from functools import wraps
from pathlib import Path

import torch
from transformers import DynamicCache, EncoderDecoderCache
from transformers.initialization import no_init_weights
from transformers.loss.loss_utils import fixed_cross_entropy
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions, MaskedLMOutput
from transformers.models.xlm_roberta.modeling_xlm_roberta import (
    XLMRobertaEncoder,
    XLMRobertaForCausalLM,
    XLMRobertaForMaskedLM,
    XLMRobertaForMultipleChoice,
    XLMRobertaForQuestionAnswering,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
    XLMRobertaModel,
    XLMRobertaPooler,
    XLMRobertaPreTrainedModel,
)
from transformers.utils import can_return_tuple

from ..attention.encoder_attention import IMPLEMENTATIONS
from ..configuration_lsg import LSGConfig, LSGXLMRobertaConfig
from .cache import CACHE, self_attention_cache
from .checks import check_arguments, check_ids, check_states
from .dense import LSGLMHead
from .embeddings import GlobalStates, LSGEmbeddings
from .encoder import LSGEncoder
from .labels import explains_labels, wrong_answers, wrong_choices, wrong_text_labels, wrong_token_labels
from .lazy_logits import lazy_logits
from .losses import cross_entropy, of_whole_batch, question_answering_loss, sequence_classification_loss
from .trained_rows import TrainedRows


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
