# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
Makes an LSG checkpoint from an XLM-RoBERTa one, without training: the position embeddings are repeated up to the new
length, the global tokens are made of embeddings that are there already, every other weight is carried over.
"""

from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from huggingface_hub.utils import validate_repo_id
from torch import nn
from transformers import AutoTokenizer, XLMRobertaConfig
from transformers.utils import logging

from ..configuration_lsg import MAX_GLOBAL_TOKENS, LSGConfig
from ..model import modeling_lsg_xlm_roberta
from .folder import read_json, side_files


logger = logging.get_logger(__name__)

DEFAULT_LENGTH, MAX_LENGTH = 4096, 2**24  # tokens

# The Auto class and the LSG class of each architecture, by the name of the LSG class.
ARCHITECTURES = {
    entry.split(".")[1]: (auto_class, getattr(modeling_lsg_xlm_roberta, entry.split(".")[1]))
    for auto_class, entry in LSGConfig.AUTO_MAP.items()
    if auto_class != "AutoConfig"
}


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
            name_or_path (`str` or `Path`):
                A folder with an XLM-RoBERTa or LSG-XLM-RoBERTa checkpoint and its tokenizer, or a name on the hub.
            architecture (`str`, *optional*):
                Class of the result, such as `"LSGXLMRobertaForMaskedLM"` or `"XLMRobertaForMaskedLM"`; by default the
                first of the source's `architectures`, and the base model where it names none.
            lsg_kwargs:
                Fields of [`LSGConfig`] for the result.

        Returns:
            the LSG model, in eval mode, and the tokenizer, both for the same number of tokens.

        Raises:
            ValueError: the source is no XLM-RoBERTa checkpoint, its weights cannot be read, it has no tokenizer, or
                an argument breaks its rule.
        """
        source = str(name_or_path)
        model_class = _model_class(architecture, read_config(source, self.token))
        config = self._config(source, model_class, lsg_kwargs)
        length = self.max_sequence_length or max(DEFAULT_LENGTH, config.max_sequence_length)
        tokenizer = self._tokenizer(source, config.vocab_size)
        tokenizer.model_max_length = length
        model, is_lsg = self._load(model_class, source, config)
        self._warn_of_idle_options(is_lsg)
        with torch.no_grad():
            self._convert_embeddings(model, tokenizer, is_lsg, length)
        if length <= 2 * config.block_size:
            logger.warning(
                f"max_sequence_length={length} is at most two blocks (block_size="
                f"{config.block_size}): attention will always be full."
            )
        return model, tokenizer

    def _config(self, source, model_class, lsg_kwargs):
        unknown = sorted(name for name in lsg_kwargs if not _is_field(name))
        if unknown:
            raise ValueError(
                f"LSGConfig has no field {', '.join(map(repr, unknown))}. Its LSG fields are "
                f"{', '.join(LSGConfig.lsg_fields())}."
            )
        try:
            config = LSGConfig.from_pretrained(source, token=self.token, **lsg_kwargs)
            with torch.device("meta"):
                model_class(config)
        except Exception as error:  # huggingface_hub and each layer raise their own
            if isinstance(error, ValueError) and str(error).startswith("LSGConfig"):
                raise
            raise ValueError(f"No model can be made by the configuration of {source!r}: {_told(error)}.") from error
        config.architectures = [model_class.__name__]
        # The field may contradict the weights; left empty, transformers looks at the weights.
        config.dtype = None
        return config

    def _tokenizer(self, source, vocab_size):
        try:
            with quiet_transformers():
                tokenizer = AutoTokenizer.from_pretrained(source, token=self.token)
        except Exception as error:  # sentencepiece, tokenizers and json each raise their own
            raise ValueError(
                f"The tokenizer of {source!r} cannot be read: {_told(error)}. Get its files again."
            ) from error
        # Without files transformers gives a tokenizer that knows nothing but the special tokens.
        if len(tokenizer) <= len(tokenizer.all_special_ids):
            raise ValueError(
                f"{source!r} has no tokenizer. Put the tokenizer's files (sentencepiece.bpe.model or tokenizer.json, "
                "and tokenizer_config.json) beside the weights."
            )
        if len(tokenizer) > vocab_size:
            raise ValueError(
                f"{source!r} does not fit together: the tokenizer has {len(tokenizer)} words and the model "
                f"{vocab_size}. Take the tokenizer that the model was trained with."
            )
        return tokenizer

    def _load(self, model_class, source, config):
        """The model as the source has it, and whether it has global tokens."""
        if Path(source).is_dir():
            side_files(source)  # refuses weights that are said to be elsewhere
        try:
            with quiet_transformers(), torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(self.seed)
                model, info = model_class.from_pretrained(
                    source,
                    config=config,
                    dtype=self.dtype or "auto",
                    token=self.token,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # reported below, by name and shape
                )
        except Exception as error:  # safetensors, pickle, zip and torch each raise their own
            if isinstance(error, UnpicklingError):
                raise ValueError(
                    f"The weights of {source!r} are a pickle that holds more than tensors, and may run code when it "
                    "is read: refused. Have its owner save it as safetensors."
                ) from error
            raise ValueError(
                f"The weights of {source!r} cannot be read: {_told(error)}. Get the file again, or save the model "
                "again."
            ) from error
        if info["mismatched_keys"]:
            key, there, here = sorted(info["mismatched_keys"])[0]
            raise ValueError(
                f"The weights of {source!r} do not fit the configuration: {key} has shape {tuple(there)}, the "
                f"configuration asks for {tuple(here)}."
            )
        is_lsg = not any(key.endswith("embeddings.global_embeddings.weight") for key in info["missing_keys"])
        new = sorted(key for key in info["missing_keys"] if "global_embeddings" not in key)
        base = sorted(key for key in new if ".layer." in key or "embeddings." in key)
        if base:
            raise ValueError(
                f"The weights of {source!r} are not those of an XLM-RoBERTa: {_shortened(base)} not there."
            )
        if new:
            logger.warning(f"{source} lacks {_shortened(new)}: newly initialized, to be trained.")
        # Some versions of transformers name old buffers, and leave a tied weight apart that is stored twice.
        left = sorted(key for key in info["unexpected_keys"] if not key.endswith("position_ids"))
        if left:
            logger.warning(f"{model_class.__name__} has no place for {_shortened(left)}.")
        model.tie_weights()
        unsound = sorted(name for name, weight in model.named_parameters() if not _is_finite(weight))
        if unsound:
            in_dtype = f" in {self.dtype}" if self.dtype else ""
            logger.warning(f"The weights of {source} are not all finite{in_dtype}: {_shortened(unsound)}.")
        return model, is_lsg

    def _warn_of_idle_options(self, is_lsg):
        if is_lsg and not self.resize_lsg and not self.keep_first_global_token:
            logger.warning(
                "The source is LSG already and its global tokens are made anew; resize_lsg keeps them all, "
                "keep_first_global_token the first."
            )
        for name in ("resize_lsg", "keep_first_global_token"):
            if getattr(self, name) and not is_lsg:
                logger.warning(f"{name} changes nothing: the source has no global tokens.")

    def _convert_embeddings(self, model, tokenizer, is_lsg, length):
        embeddings, config = model.base_model.embeddings, model.config
        offset = config.pad_token_id + 1  # XLM-RoBERTa's positions start after it
        position_table = embeddings.position_embeddings.weight
        _warn_of_repeated_positions(config, len(position_table) - offset, length)
        if not (is_lsg and self.resize_lsg):
            kept = 1 if is_lsg and self.keep_first_global_token else 0
            global_table = self._global_table(embeddings.word_embeddings.weight, position_table[offset:], tokenizer)
            embeddings.global_embeddings.weight[kept:] = global_table[kept:]

        config.max_position_embeddings = length + offset
        position_table = tile_positions(position_table, config.max_position_embeddings, offset)
        embeddings.position_embeddings = nn.Embedding.from_pretrained(
            position_table, freeze=False, padding_idx=config.pad_token_id
        )
        embeddings.position_ids = torch.arange(config.max_position_embeddings)[None]
        embeddings.token_type_ids = torch.zeros_like(embeddings.position_ids)

    def _global_table(self, word_table, position_table, tokenizer):
        """The 512 global tokens, `(512, hidden_size)`: words plus spread positions, `<s>` plus position 0 first."""
        if self.random_global_init and not _is_finite(word_table):
            raise ValueError(
                "Global tokens cannot be drawn like word embeddings that are not all finite: repair the source, or "
                "leave random_global_init out."
            )
        if self.random_global_init:
            words = draw_like(word_table, MAX_GLOBAL_TOKENS, self.seed)
        else:
            words = _special_word(word_table, tokenizer, "mask_token").repeat(MAX_GLOBAL_TOKENS, 1)
        words[0] = _special_word(word_table, tokenizer, "bos_token", "cls_token")
        return words + position_table[spread_positions(len(position_table), self.global_positional_stride)]


def _is_field(name):
    """Whether a configuration has the field `name` and does not compute it."""
    config = LSGConfig()
    is_computed = getattr(getattr(LSGConfig, name, None), "fset", True) is None
    return hasattr(config, name) and not callable(getattr(config, name)) and not is_computed


def _is_finite(weight):
    """Whether no value is NaN or infinite; by the extremes, which take no memory."""
    return weight.numel() == 0 or all(x.isfinite() for x in weight.detach().aminmax())


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


def tile_positions(table, num_rows, offset):
    """
    Args:
        table (`torch.Tensor` of shape `(rows, hidden_size)`): position embeddings; the first `offset` rows are no
            positions.
        num_rows (`int`): rows of the result.

    Returns:
        `torch.Tensor` of shape `(num_rows, hidden_size)`: the positions repeated as often as it takes, or cut.
    """
    index = torch.arange(num_rows)
    index[offset:] = (index[offset:] - offset) % (len(table) - offset) + offset
    return table[index]


def spread_positions(num_positions, stride):
    """
    Which position goes to which global token: 0, `stride`, `2 * stride`, ... to the first of them, so that however
    few are used they stand far apart; at the end it starts again with the positions in between.

    Returns:
        `torch.LongTensor` of shape `(512,)`, each in `[0, num_positions)`.
    """
    # Of a longer table every num_positions // 512-th position is used, so that 512 tokens reach its end.
    spacing = max(1, num_positions // MAX_GLOBAL_TOKENS)
    index = torch.arange(MAX_GLOBAL_TOKENS)
    index = index[torch.argsort(index % max(1, stride // spacing), stable=True)]
    return index * spacing % num_positions


def draw_like(table, count, seed):
    """
    Args:
        table (`torch.Tensor` of shape `(rows, hidden_size)`): vectors of any float type.

    Returns:
        `torch.Tensor` of shape `(count, hidden_size)` and the table's type: a draw from the normal distribution with
        the mean and the covariance of the rows; same seed, same draw.
    """
    mean = table.mean(0, dtype=torch.float32)
    centred = table.float() - mean
    covariance = (centred.T @ centred / (len(table) - 1)).double()
    # The symmetric root: unlike Cholesky's it exists for singular matrices too, and it is unique.
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    noise = torch.randn(count, table.shape[1], dtype=root.dtype, generator=torch.Generator().manual_seed(seed))
    return (mean + noise @ root).to(table.dtype)


def read_config(source, token=None):
    """
    Returns:
        `dict`: the source's `config.json`.

    Raises:
        ValueError: there is none, or it is not that of an XLM-RoBERTa.
    """
    if not _may_be_there(source):
        raise ValueError(
            f"There is no folder {source!r}. Name the folder of a checkpoint, or a model of the hub such as "
            "'FacebookAI/xlm-roberta-base'."
        )
    if Path(source).is_dir():
        path = Path(source, "config.json")
        config = read_json(path, dict) if path.is_file() else None
    else:
        config = _hub_config(source, token)
    if not config:
        raise ValueError(f"{source!r} is not a checkpoint: it has no config.json.")
    if config.get("model_type") != "xlm-roberta":
        raise ValueError(
            f"{source!r} is not an XLM-RoBERTa checkpoint: its model_type is {config.get('model_type')!r}, and only "
            "'xlm-roberta' can be converted."
        )
    return config


def _hub_config(name, token):
    try:
        with quiet_transformers():
            return XLMRobertaConfig.get_config_dict(name, token=token)[0]
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name!r} is neither a folder here nor a model the hub gives (a private one takes --token): "
            f"{first_line(error)}"
        ) from error


@contextmanager
def quiet_transformers():
    """transformers logs nothing but errors: what matters of its reports is said in our own words."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def first_line(error):
    """The first line of an exception's message, or its name where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _told(error):
    """The first sentence of an exception's message: torch goes on with advice to load unsafely."""
    told = " ".join(str(error).split()).split(". ")[0].rstrip(".")
    is_bare = isinstance(error, (AttributeError, EOFError, LookupError, TypeError))  # says little without its name
    return f"{type(error).__name__}: {told}" if is_bare or not told else told


def _may_be_there(source):
    """Whether `source` is a folder, or could be the name of a model on the hub."""
    if Path(source).exists():
        return Path(source).is_dir()
    try:
        validate_repo_id(source)
    except ValueError:
        return False
    return True


def _model_class(architecture, config):
    if architecture is None:
        names = config.get("architectures") or ["LSGXLMRobertaModel"]
        if not isinstance(names, list) or not isinstance(names[0], str):
            raise ValueError(f"`architectures` in config.json must be a list of names of classes, got {names!r}.")
        architecture = names[0]
    name = architecture if architecture.startswith("LSG") else f"LSG{architecture}"
    if name not in ARCHITECTURES:
        raise ValueError(
            f"There is no LSG version of architecture {architecture!r}. Give one of {', '.join(ARCHITECTURES)}, or "
            "its name without LSG."
        )
    return ARCHITECTURES[name][1]


def _special_word(word_table, tokenizer, *names):
    """The embedding, `(hidden_size,)`, of the first of the special tokens that the tokenizer has."""
    token_ids = [getattr(tokenizer, f"{name}_id") for name in names]
    token_id = next((token_id for token_id in token_ids if token_id is not None), None)
    if token_id is None or token_id >= len(word_table):
        raise ValueError(
            f"Global tokens are made of the {names[0]}'s embedding, but it has id {token_id} and the model "
            f"{len(word_table)} word embeddings. Set {names[0]} in tokenizer_config.json."
        )
    return word_table[token_id]


def _shortened(keys):
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
