# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""A source as stock transformers loads it, to hold the converted model against."""

import transformers

from ..configuration_lsg import LSGConfig
from .adapters import without_adapter
from .architectures import ARCHITECTURES
from .families import own_config


def stock_config_of(source, fields=()):
    """
    Args:
        source ([`Source`]).
        fields (`dict`): of the configuration, with which it is converted; those that are LSG's count for LSG alone.

    Returns:
        the configuration of the source's own class; an [`LSGConfig`] if it is LSG already.
    """
    fields = dict(fields)
    if source.is_lsg:
        return source.config_as(LSGConfig, **fields)
    fields = {name: value for name, value in fields.items() if name not in LSGConfig.lsg_fields()}
    return own_config({**source.own_config, **fields})


def first_position(config):
    """The position (`int`) of the first token: BERT's begin at 0, those of XLM-RoBERTa and its kin after padding."""
    return 0 if config.model_type == "bert" else config.pad_token_id + 1


def load_stock(source, architecture, config, dtype):
    """
    Args:
        source ([`Source`]).
        architecture (`str`): name of the LSG class whose head is wanted.
        config: of the source, see [`stock_config_of`].
        dtype (`torch.dtype`): of the weights.

    Returns:
        the source under that head, in eval mode, an adapter merged; and whether it has such a head.
    """
    auto_class, model_class = ARCHITECTURES[architecture]
    if not source.is_lsg:
        model_class = getattr(transformers, auto_class)
    model, missing = _load_as(model_class, source, config, dtype)
    if auto_class == "AutoModelForMultipleChoice" and model.base_model.pooler is None:
        # transformers 5.0 builds the head without the pooler that its forward needs
        encoder, missing = _load_as(transformers.AutoModel, source, config, dtype)
        setattr(model, model.base_model_prefix, encoder)
    return model, not missing


def _load_as(model_class, source, config, dtype):
    adapter = source.adapter
    with without_adapter(source.encoder) as folder:
        model, info = model_class.from_pretrained(
            folder, config=config, dtype=dtype, trust_remote_code=False, output_loading_info=True
        )
    missing = [key for key in info["missing_keys"] if adapter is None or not adapter.brings(key)]
    return (model if adapter is None else adapter.merged_into(model)).eval(), missing
