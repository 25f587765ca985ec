# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
# Made from the files of lsg_xlmr/ by `python lsg_xlmr/conversion/drop_in.py .`: edit those, not this one.
"""Configuration of the LSG (local + sparse + global) attention version of XLM-RoBERTa."""

import inspect
import math
import re
import shutil
from pathlib import Path

import transformers
from transformers import EncoderDecoderConfig, XLMRobertaConfig
from transformers.activations import ACT2FN
from transformers.utils import cached_file, get_torch_version, logging


def require(name, version, oldest):
    """
    Args:
        name (`str`): of a package.
        version (`str`): which of it is there; what holds no numbers is none.
        oldest (`str`): version that will do, two numbers.

    Raises:
        ImportError: it is too old.
    """
    found, needed = (re.findall(r"\d+", x)[:2] for x in (version, oldest))
    if found and [*map(int, found)] < [*map(int, needed)]:
        raise ImportError(f"LSG models need {name} {oldest} or newer, and this is {version}: pip install -U {name}")


# Here, where all code of it begins: what comes after would fail for lack of some part.
require("transformers", transformers.__version__, "5.0")
require("torch", get_torch_version(), "2.6")

logger = logging.get_logger(__name__)

SPARSITY_TYPES = ("none", "norm", "pooling", "bos_pooling", "lsh", "stride", "block_stride")
MAX_GLOBAL_TOKENS = 512
MAX_PRE_ROUNDS = 64
MAX_INT = 2**31 - 1

CODE_FILES = ("configuration_lsg.py", "modeling_lsg_xlm_roberta.py")


class TravelsWithItsCode:
    """A configuration that puts the code of its models beside itself."""

    AUTO_MAP = {}  # names published checkpoints and users' scripts rely on

    def save_pretrained(self, save_directory, push_to_hub=False, **kwargs):
        """
        [`~transformers.PretrainedConfig.save_pretrained`], which also puts the code beside `config.json`, so that the
        folder loads with `trust_remote_code=True` where `lsg_xlmr` is not installed. Saving a model or a `Trainer`
        checkpoint comes through here as well.
        """
        # A hub load rewrites the entries to "repo--module.Class"; the code travels with this folder.
        self.auto_map = dict(self.AUTO_MAP)
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        self.write_code(save_directory)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def write_code(self, save_directory):
        """
        Copy the two files this class and the models are defined in to `save_directory`.

        Raises:
            OSError: one of them is neither beside this one, nor there already, nor where `self` was loaded.
        """
        for name in CODE_FILES:
            source, target = Path(__file__).with_name(name), Path(save_directory) / name
            if not source.is_file():  # a config alone was loaded: only its own file was fetched
                if target.is_file():
                    continue
                source = self._fetch(name)
            if source.resolve() != target.resolve():
                shutil.copyfile(source, target)

    def _fetch(self, name):
        try:
            return Path(cached_file(self.name_or_path, name, revision=getattr(self, "_commit_hash", None)))
        except OSError as error:
            raise OSError(
                f"{name} belongs beside config.json, and is no longer in {self.name_or_path!r}, where this "
                "configuration was loaded: put it back there, or load the model and save that."
            ) from error


class LSGConfig(TravelsWithItsCode, XLMRobertaConfig):
    r"""
    Configuration of an [`LSGXLMRobertaModel`]: everything of [`~transformers.XLMRobertaConfig`] plus the parameters of
    LSG attention (Condevaux & Harispe, "LSG Attention: Extrapolation of pretrained Transformers to long sequences",
    PAKDD 2023, arXiv 2210.15497).

    Sequence lengths, blocks and windows are counted in tokens, global tokens not included.

    Args:
        adaptive (`bool`, defaults to `True`):
            Pad inputs longer than two blocks to the next multiple of `block_size` inside the model (masked, cut off
            again before anything is returned). With `False` such a length is an error.
        block_size (`int`, defaults to 128):
            Tokens per local block. A query sees its own block and one block on either side. Inputs of at most
            `2 * block_size` tokens get full attention.
        sparse_block_size (`int`, defaults to 128):
            Sparse tokens a query sees on either side of its local window; 0 turns the sparse part off.
        sparsity_factor (`int`, defaults to 2):
            How many tokens stand behind one sparse token. Must divide `block_size`; 1 keeps all tokens.
        sparsity_type (`str`, defaults to `"norm"`):
            How sparse tokens are made from tokens: `"norm"` (keys of largest norm), `"pooling"` (means),
            `"bos_pooling"` (means weighted by the first token's query), `"lsh"` (centroids of hash clusters),
            `"stride"` (every `sparsity_factor`-th token, shifted per head), `"block_stride"` (a run of each block,
            shifted per head) or `"none"` (`None` is taken for it).
        num_global_tokens (`int`, defaults to 1):
            Learned tokens, at most 512, that see every token and are seen by every token. With 0 texts of up to two
            blocks are read as by XLM-RoBERTa.
        mask_first_token (`bool`, defaults to `False`):
            Hide the first token (`<s>`) as a key from every query; the first global token stands for it. Forces
            `pool_with_global=True`, and needs a global token.
        pool_with_global (`bool`, defaults to `True`):
            Put the first global token's last hidden state in the place of the first token's, so that every head that
            pools on `<s>` pools on the global token. Without global tokens they pool on `<s>`.
        lsh_num_pre_rounds (`int`, defaults to 1):
            Rounds of `"lsh"`, at most 64, that merge each chunk into as many clusters as it has tokens before the last
            round.
            `lsg_num_pre_rounds` is accepted as another name of it.
        lsh_seed (`int`, defaults to 0):
            Seed of the random projections of `"lsh"`: same seed, same clusters.
        sparse_prediction (`bool`, defaults to `False`):
            Run the LM head of a masked LM only where it is asked. With gradients and labels (training), `logits` are
            those of the labelled positions alone, as [`~transformers.ModernBertConfig`] has it, whose name this is.
            Without gradients (`torch.no_grad()`: inference, evaluation), they are those of all positions, computed
            where they are looked at, with the weights of the call: it is an error to look after these were changed
            in place.
        sparse_pred_ignore_index (`int`, defaults to -100):
            The label of positions that have none, with `sparse_prediction`.
        dense_decoder (`bool`, defaults to `False`):
            With `is_decoder=True`, be the stock decoder: dense causal attention, no global tokens.
        kwargs:
            Everything [`~transformers.XLMRobertaConfig`] takes.

    Raises:
        ValueError: a value breaks its rule; the message names the field, the value, the rule and one that would do.
            Raised at construction, by `from_pretrained(..., field=value)`, on load and on save.

    Example:

    ```python
    >>> config = LSGConfig(block_size=64, sparse_block_size=64, sparsity_type="pooling")
    ```
    """

    model_type = "xlm-roberta"
    attribute_map = {"lsg_num_pre_rounds": "lsh_num_pre_rounds"}
    AUTO_MAP = {
        "AutoConfig": "configuration_lsg.LSGConfig",
        "AutoModel": "modeling_lsg_xlm_roberta.LSGXLMRobertaModel",
        "AutoModelForCausalLM": "modeling_lsg_xlm_roberta.LSGXLMRobertaForCausalLM",
        "AutoModelForMaskedLM": "modeling_lsg_xlm_roberta.LSGXLMRobertaForMaskedLM",
        "AutoModelForMultipleChoice": "modeling_lsg_xlm_roberta.LSGXLMRobertaForMultipleChoice",
        "AutoModelForQuestionAnswering": "modeling_lsg_xlm_roberta.LSGXLMRobertaForQuestionAnswering",
        "AutoModelForSequenceClassification": "modeling_lsg_xlm_roberta.LSGXLMRobertaForSequenceClassification",
        "AutoModelForTokenClassification": "modeling_lsg_xlm_roberta.LSGXLMRobertaForTokenClassification",
    }

    def __init__(
        self,
        adaptive=True,
        block_size=128,
        sparse_block_size=128,
        sparsity_factor=2,
        sparsity_type="norm",
        num_global_tokens=1,
        mask_first_token=False,
        pool_with_global=True,
        lsh_num_pre_rounds=1,
        lsh_seed=0,
        sparse_prediction=False,
        sparse_pred_ignore_index=-100,
        dense_decoder=False,
        **kwargs,
    ):
        self.adaptive = adaptive
        self.block_size = block_size
        self.sparse_block_size = sparse_block_size
        self.sparsity_factor = sparsity_factor
        self.sparsity_type = sparsity_type
        self.num_global_tokens = num_global_tokens
        self.mask_first_token = mask_first_token
        self.pool_with_global = pool_with_global
        self.lsh_num_pre_rounds = lsh_num_pre_rounds
        self.lsh_seed = lsh_seed
        self.sparse_prediction = sparse_prediction
        self.sparse_pred_ignore_index = sparse_pred_ignore_index
        self.dense_decoder = dense_decoder
        super().__init__(**kwargs)
        self.validate_lsg()

    @classmethod
    def lsg_fields(cls) -> list[str]:
        """The names of the fields that XLM-RoBERTa's configuration has not."""
        return [name for name in inspect.signature(cls).parameters if name != "kwargs"]

    @property
    def has_sparse_tokens(self) -> bool:
        """Whether there is a sparse part at all."""
        return self.sparsity_type != "none" and self.sparse_block_size > 0

    @property
    def pools_with_global(self) -> bool:
        """Whether a global token stands in the place of `<s>` for what pools on it."""
        return self.pool_with_global and self.num_global_tokens > 0

    @property
    def is_stock(self) -> bool:
        """Whether attention is XLM-RoBERTa's own."""
        return self.is_decoder and self.dense_decoder

    @property
    def max_sequence_length(self) -> int:
        """Longest input in tokens: XLM-RoBERTa's positions start after `pad_token_id`."""
        return self.max_position_embeddings - self.pad_token_id - 1

    def validate_lsg(self):
        """
        Check the LSG parameters, each alone and together, after bringing `sparsity_type=None` and
        `mask_first_token=True` to their one form.

        Raises:
            ValueError: as described for the class.
        """
        if self.sparsity_type is None:
            self.sparsity_type = "none"
        if self.sparsity_type not in SPARSITY_TYPES:
            raise _error("sparsity_type", self.sparsity_type, f"must be one of {', '.join(SPARSITY_TYPES)}", "norm")
        flags = {"adaptive": True, "pool_with_global": True}
        flags |= {"mask_first_token": False, "sparse_prediction": False, "dense_decoder": False}
        for name, example in flags.items():
            if not isinstance(getattr(self, name), bool):
                raise _error(name, getattr(self, name), "must be a bool", example)
        self._validate_int("block_size", 1, 128)
        self._validate_int("sparse_block_size", 0, 128)
        self._validate_int("sparsity_factor", 1 if self.has_sparse_tokens else 0, 2)
        self._validate_int("num_global_tokens", 0, 1, MAX_GLOBAL_TOKENS)
        self._validate_int("lsh_num_pre_rounds", 0, 1, MAX_PRE_ROUNDS)
        self._validate_int("lsh_seed", 0, 0, 2**32 - 1)
        self._validate_int("sparse_pred_ignore_index", -MAX_INT, -100)
        self._validate_shape()
        if self.has_sparse_tokens:
            self._validate_blocks()
        if self.mask_first_token and not self.num_global_tokens:
            rule = "needs a global token to stand for <s>, and num_global_tokens=0"
            raise _error("mask_first_token", True, rule, False)
        if self.mask_first_token and not self.pool_with_global:
            logger.warning("`mask_first_token=True` hides <s> from every query, so `pool_with_global` is set to True.")
            self.pool_with_global = True

    def _validate_shape(self):
        """The fields of XLM-RoBERTa without which there is no model, or one that fails at its first text."""
        self._validate_int("vocab_size", 1, 250002)
        self._validate_int("hidden_size", 1, 768)
        self._validate_int("num_hidden_layers", 0, 12)
        self._validate_int("num_attention_heads", 1, 12)
        self._validate_int("intermediate_size", 1, 3072)
        self._validate_int("type_vocab_size", 1, 1)
        self._validate_int("pad_token_id", 0, 1, self.vocab_size - 1)
        self._validate_int("max_position_embeddings", self.pad_token_id + 2, 514)
        if isinstance(self.hidden_act, str) and self.hidden_act not in ACT2FN:
            raise _error("hidden_act", self.hidden_act, f"must be one of {', '.join(ACT2FN)}", "gelu")

    def _validate_int(self, name, minimum, example, maximum=MAX_INT):
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise _error(name, value, f"must be an int of at least {minimum}", example)
        if value > maximum:
            raise _error(name, value, f"must be an int of at most {maximum}", example)

    def _validate_blocks(self):
        block_size, sparse_block_size, factor = self.block_size, self.sparse_block_size, self.sparsity_factor
        if block_size % factor:
            small = [i for i in range(1, math.isqrt(block_size) + 1) if block_size % i == 0]
            nearest = min((*small, *(block_size // i for i in small)), key=lambda i: abs(i - factor))
            raise _error("sparsity_factor", factor, f"must divide block_size={block_size}", nearest)
        # These two choose among the tokens of a chunk of min(block_size, sparse_block_size): chunks must tile blocks.
        if self.sparsity_type in ("norm", "lsh") and sparse_block_size < block_size:
            if block_size % sparse_block_size or sparse_block_size % factor:
                raise _error(
                    "sparse_block_size",
                    sparse_block_size,
                    f"must divide block_size={block_size} and be a multiple of sparsity_factor={factor}, or be at "
                    f"least block_size, when sparsity_type={self.sparsity_type!r}",
                    block_size,
                )

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """[`~transformers.PretrainedConfig.from_dict`] whose result is valid with `kwargs` taken in too."""
        for name in kwargs.keys() & set(cls.lsg_fields()):
            if not isinstance(kwargs[name], (int, str, type(None))):  # transformers would fail to print it
                default = inspect.signature(cls).parameters[name].default
                raise _error(name, kwargs[name], "must be a bool, an int or a str", default)
        result = super().from_dict(config_dict, **kwargs)
        (result[0] if isinstance(result, tuple) else result).validate_lsg()
        return result

    def save_pretrained(self, save_directory, push_to_hub=False, **kwargs):
        """See above; only a valid configuration is saved."""
        self.validate_lsg()
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)


class LSGEncoderDecoderConfig(TravelsWithItsCode, EncoderDecoderConfig):
    """
    [`~transformers.EncoderDecoderConfig`] whose parts keep their parameters of LSG attention.

    Args:
        encoder, decoder (`dict`): each part's configuration, with `model_type`; one with LSG parameters becomes an
            [`LSGConfig`].
        kwargs:
            Everything [`~transformers.EncoderDecoderConfig`] takes.

    Raises:
        ValueError: as of [`LSGConfig`].
    """

    AUTO_MAP = {
        "AutoConfig": "configuration_lsg.LSGEncoderDecoderConfig",
        "AutoModelForSeq2SeqLM": "modeling_lsg_xlm_roberta.LSGEncoderDecoderModel",
    }

    def __init__(self, **kwargs):
        parts = {name: dict(kwargs[name]) for name in ("encoder", "decoder") if isinstance(kwargs.get(name), dict)}
        super().__init__(**{**kwargs, **{name: dict(part) for name, part in parts.items()}})
        for name, part in parts.items():
            if is_lsg_config(part):
                setattr(self, name, LSGConfig(**part))
        if kwargs.get("attn_implementation") is not None:  # nobody has told the parts that are new here
            self._attn_implementation = kwargs["attn_implementation"]


def is_lsg_config(config):
    """Whether a configuration, as a `dict`, is that of LSG attention; other models have a `block_size` too."""
    return config.get("model_type") == "xlm-roberta" and "block_size" in config


def _error(name, value, rule, example):
    return ValueError(f"LSGConfig: `{name}` {rule}, got {value!r}; {name}={example!r} would do.")


LSGXLMRobertaConfig = LSGConfig  # the name published checkpoints use
