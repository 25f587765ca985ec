# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
Makes an LSG checkpoint from an XLM-RoBERTa one, without training: the position embeddings are repeated up to the new
length, the global tokens are made of embeddings that are there already, every other weight is carried over.
"""

import torch
from torch import nn
from transformers.utils import logging

from ..configuration_lsg import LSGConfig
from .architectures import lsg_class
from .families import xlm_roberta_class
from .lengths import set_length
from .source import Source
from .tables import global_table, tile_positions


logger = logging.get_logger(__name__)

DEFAULT_LENGTH, MAX_LENGTH = 4096, 2**24  # tokens


class LSGConverter:
    """
    Converts XLM-RoBERTa checkpoints to LSG, and LSG checkpoints to another length or other settings.

    Args:
        max_sequence_length (`int`, *optional*):
            Longest input of the result in tokens, `<s>` and `</s>` included. May be shorter than the source's. By
            default 4,096, or the source's where that is longer.
        random_global_init (`bool`, defaults to `False`):
            Draw the global tokens from the normal distribution fitted to the word embeddings, instead of starting
            each from the mask token's embedding.
        global_positional_stride (`int`, defaults to 64):
            Distance in tokens between the positions added to one global token and the next.
        keep_first_global_token (`bool`, defaults to `False`):
            Keep the first global token of a source that is LSG already; the others are made anew.
        resize_lsg (`bool`, defaults to `False`):
            Keep all global tokens of a source that is LSG already: only the number of positions changes.
        seed (`int`, defaults to 123):
            Seed of `random_global_init` and of weights the source lacks, such as a new head.
        dtype (`str` or `torch.dtype`, *optional*):
            Type of the weights of the result; that of the source's weights if not given.
        token (`str`, *optional*):
            Access token for a source on the Hugging Face hub.

    Raises:
        ValueError: a value breaks its rule; the message names it and the rule.

    Example:

    ```python
    >>> model, tokenizer = LSGConverter(max_sequence_length=4096).convert_from_pretrained("xlm-roberta-base")
    ```
    """

    def __init__(
        self,
        max_sequence_length=None,
        random_global_init=False,
        global_positional_stride=64,
        keep_first_global_token=False,
        resize_lsg=False,
        seed=123,
        dtype=None,
        token=None,
    ):
        length = DEFAULT_LENGTH if max_sequence_length is None else max_sequence_length
        for name, value, minimum, maximum, example in (
            # <s>, one token and </s> is the least a tokenizer gives
            ("max_sequence_length", length, 3, MAX_LENGTH, 4096),
            ("global_positional_stride", global_positional_stride, 1, MAX_LENGTH, 64),
            ("seed", seed, 0, 2**63 - 1, 123),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
                raise ValueError(
                    f"LSGConverter: `{name}` must be an int of at least {minimum} and at most {maximum}, got "
                    f"{value!r}; {name}={example} would do."
                )
        if isinstance(dtype, str):
            dtype = getattr(torch, dtype, dtype)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"LSGConverter: `dtype` must be a float type such as 'bfloat16', got {dtype!r}.")
        self.max_sequence_length = max_sequence_length
        self.random_global_init = random_global_init
        self.global_positional_stride = global_positional_stride
        self.keep_first_global_token = keep_first_global_token
        self.resize_lsg = resize_lsg
        self.seed = seed
        self.dtype = dtype
        self.token = token

    def convert_from_pretrained(self, name_or_path, architecture=None, **lsg_kwargs):
        """
        Args:
            name_or_path (`str`, `Path` or [`Source`]):
                A folder with a checkpoint of XLM-RoBERTa's family ([`FAMILIES`]), LSG or not, and its tokenizer, or a
                name on the hub.
            architecture (`str`, *optional*):
                Class of the result, such as `"LSGXLMRobertaForMaskedLM"`, `"XLMRobertaForMaskedLM"` or, of a BERT,
                `"BertForMaskedLM"`; by default the first of the source's `architectures`, and the base model where
                it names none.
            lsg_kwargs:
                Fields of [`LSGConfig`] for the result.

        Returns:
            the LSG model, in eval mode, and the tokenizer, both for the same number of tokens.

        Raises:
            ValueError: the source is no checkpoint of that family, its head or its positions are not XLM-RoBERTa's,
                its weights cannot be read, it has no tokenizer, or an argument breaks its rule.
        """
        source = Source.of(name_or_path, self.token)
        if architecture is None:
            architecture = source.architecture
        model_class = lsg_class(xlm_roberta_class(architecture, source.model_type))
        check_fields(lsg_kwargs)
        config = source.lsg_config(model_class, **lsg_kwargs)
        length = self.max_sequence_length or max(DEFAULT_LENGTH, config.max_sequence_length)
        tokenizer = source.tokenizer(config.vocab_size)
        set_length(tokenizer, length)
        model, is_lsg = source.load(model_class, config, self.dtype, self.seed)
        self._warn_of_idle_options(is_lsg)
        with torch.no_grad():
            self._convert_embeddings(model, tokenizer, is_lsg, length, source.model_type == "bert")
        if length <= 2 * config.block_size:
            logger.warning(
                f"max_sequence_length={length} is at most two blocks (block_size="
                f"{config.block_size}): attention will always be full."
            )
        return model, tokenizer

    def _warn_of_idle_options(self, is_lsg):
        if is_lsg and not self.resize_lsg and not self.keep_first_global_token:
            logger.warning(
                "The source is LSG already and its global tokens are made anew; resize_lsg keeps them all, "
                "keep_first_global_token the first."
            )
        for name in ("resize_lsg", "keep_first_global_token"):
            if getattr(self, name) and not is_lsg:
                logger.warning(f"{name} changes nothing: the source has no global tokens.")

    def _convert_embeddings(self, model, tokenizer, is_lsg, length, has_types):
        embeddings, config = model.base_model.embeddings, model.config
        offset = config.pad_token_id + 1  # XLM-RoBERTa's positions start after it
        position_table = embeddings.position_embeddings.weight
        _warn_of_repeated_positions(config, len(position_table) - offset, length)
        if not (is_lsg and self.resize_lsg):
            kept = 1 if is_lsg and self.keep_first_global_token else 0
            table = global_table(
                embeddings.word_embeddings.weight,
                position_table[offset:],
                tokenizer,
                self.global_positional_stride,
                self.seed if self.random_global_init else None,
            )
            if has_types:  # a BERT has seen no word without one; XLM-RoBERTa's tokenizer knows of none
                table += embeddings.token_type_embeddings.weight[0]
            embeddings.global_embeddings.weight[kept:] = table[kept:]

        config.max_position_embeddings = length + offset
        position_table = tile_positions(position_table, config.max_position_embeddings, offset)
        embeddings.position_embeddings = nn.Embedding.from_pretrained(
            position_table, freeze=False, padding_idx=config.pad_token_id
        )
        embeddings.position_ids = torch.arange(config.max_position_embeddings)[None]
        embeddings.token_type_ids = torch.zeros_like(embeddings.position_ids)


def check_fields(names):
    """
    Raises:
        ValueError: one of `names` (`iterable` of `str`) is no field of [`LSGConfig`] that can be set.
    """
    unknown = sorted(name for name in names if not _is_field(name))
    if unknown:
        raise ValueError(
            f"LSGConfig has no field {', '.join(map(repr, unknown))}. Its LSG fields are "
            f"{', '.join(LSGConfig.lsg_fields())}."
        )


def _is_field(name):
    """Whether a configuration has the field `name` and does not compute it."""
    config = LSGConfig()
    is_computed = getattr(getattr(LSGConfig, name, None), "fset", True) is None
    return hasattr(config, name) and not callable(getattr(config, name)) and not is_computed


def _warn_of_repeated_positions(config, num_positions, length):
    """Within what a query sees, no position may come twice: its heads could not tell near from far."""
    reach = 2 * config.block_size
    if config.has_sparse_tokens:
        reach += config.sparsity_factor * config.sparse_block_size
    if length > num_positions and reach > num_positions:
        logger.warning(
            f"A token sees others up to {reach} tokens away, but the source's {num_positions} positions are "
            f"repeated after {num_positions}: heads that look by position will take far tokens for near ones. "
            f"Keep 2 * block_size + sparsity_factor * sparse_block_size at {num_positions} or below, or train "
            "further."
        )
