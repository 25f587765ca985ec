# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""A checkpoint as it is found: read once, everything known of it, and every refusal said here."""

from copy import deepcopy
from functools import cached_property, partial
from pathlib import Path
from pickle import UnpicklingError

import torch
from transformers import XLMRobertaConfig
from transformers.utils import logging

from ..configuration_lsg import LSGConfig, is_lsg_config
from . import families
from .adapters import with_labels, without_adapter
from .architectures import ARCHITECTURES
from .files import read_json
from .layouts import told_of_parts, told_of_whole
from .messages import first_sentence, quiet_transformers, shortened
from .source_folder import SourceFolder
from .tokenizer import read_tokenizer
from .tying import settle_tied_weights
from .verify import foreign


logger = logging.get_logger(__name__)


class Source(SourceFolder):
    """
    A checkpoint that is to be converted. What is asked of it is read at first need, and kept.

    Args:
        name_or_path (`str` or `Path`): its folder, or its name on the Hugging Face hub.
        token (`str`, *optional*): access token for the hub.

    Raises:
        ValueError: by every member that reads, where the source cannot be what it is asked to be.
    """

    @classmethod
    def of(cls, source, token=None):
        """`source`, which may be one already."""
        return source if isinstance(source, cls) else cls(source, token)

    @cached_property
    def own_config(self):
        """The `config.json` (`dict`) of its encoder as it stands there."""
        if self.base is not self:
            return with_labels(self.base.own_config, self.adapter.num_labels)
        path = Path(self.encoder, "config.json")
        config = read_json(path, dict) if path.is_file() else None
        if not config or (config.keys() <= {"__version__"} and not self.modules):
            raise ValueError(told_of_parts(self.name, self.root))
        return with_labels(config, self.adapter.num_labels) if self.adapter else config

    @cached_property
    def config(self):
        """The configuration (`dict`) of the XLM-RoBERTa that it is, whatever its own `config.json` calls it."""
        return families.as_xlm_roberta(self.own_config, self.name, partial(read_tokenizer, self))

    @property
    def model_type(self):
        """Its own `model_type`, one of [`FAMILIES`]."""
        _ = self.config  # refuses what is of none
        return self.own_config["model_type"]

    @property
    def is_lsg(self):
        """Whether its attention is LSG attention already."""
        return is_lsg_config(self.config) and self.model_type not in families.PREFIXES

    @property
    def position_counts(self):
        """By how many positions (`set[int]`) a table of them may be known; other sizes of the model are none."""
        config = self.config_as(XLMRobertaConfig)
        counts = {config.max_position_embeddings, config.max_position_embeddings - (config.pad_token_id or 0) - 1}
        return counts - {config.hidden_size, config.intermediate_size, config.vocab_size, config.num_labels}

    @property
    def architecture(self):
        """The name of its class as XLM-RoBERTa has it; the base model's where it names none."""
        if self.adapter and self.adapter.architecture:
            return families.xlm_roberta_class(self.adapter.architecture, self.model_type)
        names = self.config.get("architectures") or [f"{'LSG' if self.is_lsg else ''}XLMRobertaModel"]
        if not isinstance(names, list) or not isinstance(names[0], str):
            raise ValueError(f"`architectures` in config.json must be a list of names of classes, got {names!r}.")
        return families.xlm_roberta_class(names[0], self.model_type)

    def read(self):
        """Read what can be wrong of it before any work is done: its configuration, and where its files lie."""
        return self.config, self.files

    def config_as(self, config_class, **fields):
        """Its configuration as a `config_class` with other `fields`."""
        config = {name: value for name, value in self.config.items() if not any(foreign({name: value}, "config.json"))}
        return config_class.from_dict(deepcopy(config), name_or_path=self.encoder, **fields)

    def lsg_config(self, model_class, **fields):
        """The [`LSGConfig`] for a model of `model_class`, with other `fields`."""
        try:
            config = self.config_as(LSGConfig, **fields)
            with torch.device("meta"):
                model_class(config)
        except Exception as error:  # each layer raises its own
            if isinstance(error, ValueError) and str(error).startswith("LSGConfig"):
                raise
            raise ValueError(
                f"No model can be made by the configuration of {self.name!r}: {first_sentence(error)}."
            ) from error
        config.architectures = [model_class.__name__]
        # The field may contradict the weights; left empty, transformers looks at the weights.
        config.dtype = None
        return config

    def tokenizer(self, vocab_size):
        """Its tokenizer, for a model of `vocab_size` words."""
        tokenizer = read_tokenizer(self)
        if len(tokenizer) > vocab_size:
            raise ValueError(
                f"{self.name!r} does not fit together: the tokenizer has {len(tokenizer)} words and the model "
                f"{vocab_size}. Take the tokenizer that the model was trained with."
            )
        return tokenizer

    def load(self, model_class, config, dtype, seed):
        """
        Args:
            model_class, config: of the model, see `lsg_config`.
            dtype (`torch.dtype`, *optional*): of its weights; the source's if not given.
            seed (`int`): of weights that the source lacks.

        Returns:
            the model with the source's weights, and whether it has global tokens of the source's.
        """
        _ = self.files  # refuses weights that are said to be elsewhere
        if self.is_local and (warning := told_of_whole(self.root)):
            logger.warning(warning)
        families.check_head(self.model_type, model_class, config)
        try:
            with (
                quiet_transformers(),
                torch.random.fork_rng(devices=[]),
                without_adapter(self.encoder) as folder,
            ):
                torch.default_generator.manual_seed(seed)
                model, info = families.load(
                    self.model_type,
                    model_class,
                    folder,
                    config,
                    dtype=dtype or "auto",
                    ignore_mismatched_sizes=True,  # reported below, by name and shape
                )
        except Exception as error:  # safetensors, pickle, zip and torch each raise their own
            if isinstance(error, UnpicklingError):
                raise ValueError(
                    f"The weights of {self.name!r} are a pickle that holds more than tensors, and may run code when "
                    "it is read: refused. Have its owner save it as safetensors."
                ) from error
            raise ValueError(
                f"The weights of {self.name!r} cannot be read: {first_sentence(error)}. Get the file again, or save "
                "the model again."
            ) from error
        has_global_tokens = self._account_for(info, model_class)
        settle_tied_weights(model)
        if self.adapter:
            with quiet_transformers():
                model = self.adapter.merged_into(model)
            logger.warning(f"The adapter in {self.name} is merged into {self.adapter.base_name}.")
        unsound = sorted(name for name, weight in model.named_parameters() if not is_finite(weight))
        if unsound:
            in_dtype = f" in {dtype}" if dtype else ""
            logger.warning(f"The weights of {self.name} are not all finite{in_dtype}: {shortened(unsound)}.")
        return model, has_global_tokens

    def _account_for(self, info, model_class):
        """Tells which weights do not fit, are missing or are left over; whether the global tokens are there."""
        if info["mismatched_keys"]:
            key, there, here = sorted(info["mismatched_keys"])[0]
            raise ValueError(
                f"The weights of {self.name!r} do not fit the configuration: {key} has shape {tuple(there)}, the "
                f"configuration asks for {tuple(here)}."
            )
        new = sorted(key for key in info["missing_keys"] if "global_embeddings" not in key)
        if self.adapter:
            new = [key for key in new if not self.adapter.brings(key)]
        if self.is_embedder and model_class is ARCHITECTURES["LSGXLMRobertaModel"][1]:
            new = [key for key in new if not key.startswith("pooler.")]  # its modules take the tokens' states
        base = sorted(key for key in new if ".layer." in key or "embeddings." in key)
        if base:
            raise ValueError(
                f"The weights of {self.name!r} are not those of an XLM-RoBERTa (of the model_type "
                f"{self.model_type!r}): {shortened(base)} not there."
            )
        if new:
            logger.warning(f"{self.name} lacks {shortened(new)}: newly initialized, to be trained.")
        # Some versions of transformers name old buffers, and leave a tied weight apart that is stored twice.
        left = sorted(key for key in info["unexpected_keys"] if not key.endswith("position_ids"))
        if left:
            logger.warning(f"{model_class.__name__} has no place for {shortened(left)}.")
        return not any(key.endswith("embeddings.global_embeddings.weight") for key in info["missing_keys"])


def is_finite(weight):
    """Whether no value is NaN or infinite; by the extremes, which take no memory."""
    return weight.numel() == 0 or all(x.isfinite() for x in weight.detach().aminmax())
