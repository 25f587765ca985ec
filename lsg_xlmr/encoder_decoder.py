# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""An encoder and a decoder of which either may have LSG attention, as one model."""

from functools import wraps

from transformers import AutoModel, AutoModelForCausalLM, EncoderDecoderModel, PretrainedConfig
from transformers.loss.loss_utils import fixed_cross_entropy
from transformers.utils import can_return_tuple

from .configuration_lsg import LSGConfig, LSGEncoderDecoderConfig, is_lsg_config
from .modeling_lsg_xlm_roberta import LSGXLMRobertaForCausalLM, LSGXLMRobertaModel, SavedWithItsCode


class LSGEncoderDecoderModel(SavedWithItsCode, EncoderDecoderModel):
    """
    [`~transformers.EncoderDecoderModel`] of which either part may have LSG attention, and whose loss heeds
    `num_items_in_batch`.
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
        if config is not None and encoder is None and isinstance(config.encoder, LSGConfig):
            encoder = LSGXLMRobertaModel._from_config(config.encoder, add_pooling_layer=False)
        if config is not None and decoder is None and isinstance(config.decoder, LSGConfig):
            decoder = LSGXLMRobertaForCausalLM._from_config(config.decoder)
        super().__init__(config, encoder, decoder)

    @classmethod
    def from_encoder_decoder_pretrained(
        cls, encoder_pretrained_model_name_or_path, decoder_pretrained_model_name_or_path, **kwargs
    ):
        """
        [`~transformers.EncoderDecoderModel.from_encoder_decoder_pretrained`]. A decoder of LSG attention is causal
        and has cross-attention whatever its checkpoint says; its first token is `<s>`.

        Args:
            encoder_pretrained_model_name_or_path, decoder_pretrained_model_name_or_path (`str`): folders, or models on
                the hub. LSG checkpoints are read by this code, others by transformers.
            kwargs: for the encoder's `from_pretrained` with the prefix `encoder_`, for the decoder's with `decoder_`;
                the others are fields of the configuration.
        """
        of_encoder, of_decoder = (
            {name.removeprefix(part): kwargs.pop(name) for name in list(kwargs) if name.startswith(part)}
            for part in ("encoder_", "decoder_")
        )
        encoder = of_encoder.pop("model", None) or _load(
            encoder_pretrained_model_name_or_path,
            (LSGXLMRobertaModel, {"is_decoder": False, "add_cross_attention": False, "add_pooling_layer": False}),
            (AutoModel, {}),
            of_encoder,
        )
        of_a_decoder = {"is_decoder": True, "add_cross_attention": True}
        decoder = of_decoder.pop("model", None) or _load(
            decoder_pretrained_model_name_or_path,
            (LSGXLMRobertaForCausalLM, of_a_decoder),
            (AutoModelForCausalLM, of_a_decoder),
            of_decoder,
        )
        special_tokens = {
            "pad_token_id": decoder.config.pad_token_id,
            "eos_token_id": decoder.config.eos_token_id,
            "decoder_start_token_id": decoder.config.bos_token_id,
        }
        config = LSGEncoderDecoderConfig.from_encoder_decoder_configs(
            encoder.config, decoder.config, **special_tokens | kwargs
        )
        return cls(config, encoder, decoder)

    @wraps(EncoderDecoderModel.forward)
    @can_return_tuple
    def forward(self, *args, labels=None, num_items_in_batch=None, **kwargs):
        has_inputs = any(kwargs.get(name) is not None for name in ("decoder_input_ids", "decoder_inputs_embeds"))
        if labels is not None and not has_inputs:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
            mask = (decoder_input_ids != self.config.pad_token_id).long()
            kwargs |= {"decoder_input_ids": decoder_input_ids, "use_cache": kwargs.get("use_cache") or False}
            kwargs.setdefault("decoder_attention_mask", mask)
        outputs = super().forward(*args, return_dict=True, **kwargs)
        if labels is None:
            return outputs
        logits = outputs.logits
        labels = labels.to(logits.device).view(-1)
        loss = fixed_cross_entropy(logits.view(-1, logits.shape[-1]), labels, num_items_in_batch)
        return type(outputs)(loss=loss, **outputs)


def _take_as(config_class, config):
    """Makes `config` one of `config_class` where it is of a copy of that class."""
    if type(config).__name__ == config_class.__name__:
        config.__class__ = config_class


def _load(name_or_path, lsg, stock, kwargs):
    """A model by `lsg` or `stock`, each a class and what its `from_pretrained` is given beside `kwargs`."""
    token = {"token": kwargs["token"]} if "token" in kwargs else {}
    model_class, defaults = lsg if is_lsg_config(PretrainedConfig.get_config_dict(name_or_path, **token)[0]) else stock
    return model_class.from_pretrained(name_or_path, **defaults | kwargs)
