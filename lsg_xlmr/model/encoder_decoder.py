# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""An encoder and a decoder of which either may have LSG attention, as one model."""

from copy import deepcopy
from functools import partial, wraps
from inspect import signature

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, EncoderDecoderModel, PretrainedConfig
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaForCausalLM
from transformers.utils import can_return_tuple

from ..configuration_lsg import LSGConfig, LSGEncoderDecoderConfig, is_lsg_config
from .embeddings import LSGEmbeddings
from .labels import explains_labels, wrong_token_labels
from .losses import cross_entropy
from .modeling_lsg_xlm_roberta import LSGXLMRobertaForCausalLM, LSGXLMRobertaModel, SavedWithItsCode


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
