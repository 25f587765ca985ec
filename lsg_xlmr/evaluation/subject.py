# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""The source and its converted versions, which read the same texts."""

import hashlib
from functools import partial

import torch

from ..conversion import LSGConverter, Source
from ..conversion.architectures import lsg_class
from ..conversion.converter import DEFAULT_LENGTH, check_fields
from ..conversion.families import xlm_roberta_class
from ..conversion.lengths import set_length
from ..conversion.stock import first_position, load_stock, stock_config_of
from .scores import CONVERTED
from .ways import Way


DTYPE = torch.float32
# By name, those that are tried if nothing is said first.
SETTINGS = {
    "defaults": {},
    "local": {"sparsity_type": "none"},
    "64/64": {"block_size": 64, "sparse_block_size": 64},
    "stride": {"sparsity_type": "stride"},
    "block_stride": {"sparsity_type": "block_stride"},
    "pooling": {"sparsity_type": "pooling"},
    "lsh": {"sparsity_type": "lsh"},
    "no-globals": {"num_global_tokens": 0},
    "64/64-local": {"block_size": 64, "sparsity_type": "none"},
}
USUAL = ("defaults", "local", "64/64")


class Subject:
    """
    What is evaluated. Nothing is converted yet; whatever forbids it is found.

    Args:
        name (`str`): folder or hub name of the source.
        settings (`dict[str, dict]`): fields of [`LSGConfig`] by the name of the setting.
        length (`int`, *optional*): tokens that the converted models take; the converter's default if not given.
        architecture (`str`, *optional*): class of the models; the source's if not given, the encoder of an embedder's.
        token (`str`, *optional*): access token of the hub.

    Raises:
        ValueError: the source cannot be converted, or not with one of the settings.
    """

    def __init__(self, name, settings, length=None, architecture=None, token=None):
        self.source, self.name, self.settings = Source(name, token), name, settings
        self.source.read()
        if self.source.is_lsg:
            raise ValueError(f"{name!r} has LSG attention already: name the checkpoint that it was converted from.")
        if architecture is None:
            architecture = "XLMRobertaModel" if self.is_embedder else self.source.architecture
        model_class = lsg_class(xlm_roberta_class(architecture, self.source.model_type))
        self.architecture = model_class.__name__
        self.config = self.source.lsg_config(model_class)
        self.stock_config = stock_config_of(self.source)
        positions = self.stock_config.max_position_embeddings - first_position(self.stock_config)
        cut = self.source.sentence_settings.get("max_seq_length") if self.source.is_embedder else None
        self.short = min(positions, cut) if isinstance(cut, int) else positions
        self.converter = LSGConverter(length, dtype=DTYPE)
        self.length = length or max(DEFAULT_LENGTH, positions)
        if self.length <= self.short:
            raise ValueError(
                f"--max_sequence_length {self.length} is no more than the {self.short} tokens that {name!r} reads as "
                f"it is: {8 * self.short} would do."
            )
        for fields in settings.values():
            check_fields(fields)
            self.source.lsg_config(model_class, **fields)
        self.tokenizer = self.source.tokenizer(self.config.vocab_size)
        set_length(self.tokenizer, self.length)
        first, *_, last = self.encode("a")
        if self.tokenizer.num_special_tokens_to_add() != 2 or not {first, last} <= set(self.tokenizer.all_special_ids):
            raise ValueError(f"The tokenizer of {name!r} puts no <s> and </s> around a text, as all of its family do.")
        if self.architecture != "LSGXLMRobertaModel":  # which lacks no head
            self._load_source()
        self.whole = Way("whole", None)
        self.outside = {name: i for i, name in self.config.id2label.items()}.get("O", -1)  # of tags

    @property
    def is_embedder(self):
        """Whether the source is a sentence-transformers folder that gives a text one vector."""
        kind = self.source.embedder_config.get("model_type", "SentenceTransformer")
        return self.source.is_embedder and kind == "SentenceTransformer"

    @property
    def fingerprint(self):
        """What changes (`str`) when a file of the source is written anew."""
        files = [path for path in sorted(self.source.root.rglob("*")) if path.is_file()]
        stats = [(path.relative_to(self.source.root).as_posix(), path.stat()) for path in files]
        return hashlib.sha256(repr([(x, y.st_size, y.st_mtime_ns) for x, y in stats]).encode()).hexdigest()[:16]

    def encode(self, text):
        """The tokens (`list[int]`) of a text, those that the converted model takes."""
        return self.tokenizer(text, truncation=True, max_length=self.length)["input_ids"]

    def source_ways(self, *names):
        """The source's `Way`s: `truncated`, or `chunks` or `sliding` windows, whatever else stands in their names."""
        for name in names:
            told, stride = {
                "truncated": (f"truncated to {self.short}", None),
                "chunks": (f"chunks of {self.short}", self.short - 2),
                "sliding": ("sliding windows", (self.short - 2) // 2),
            }[name.split()[0]]
            yield Way(f"source, {' '.join([told, *name.split()[1:]])}", self._load_source, self.short, stride)

    def converted_ways(self):
        """A `Way` for each of the settings."""
        for name, fields in self.settings.items():
            yield Way(f"{CONVERTED} {name}", partial(self._convert, fields))

    def _load_source(self):
        model, has_head = load_stock(self.source, self.architecture, self.stock_config, DTYPE)
        if not has_head and self.architecture != "LSGXLMRobertaModel":  # a pooler is not asked
            raise ValueError(
                f"{self.name!r} has no weights for the head of {self.architecture.removeprefix('LSG')}: there is "
                "nothing to compare a conversion with. --architecture XLMRobertaModel evaluates its encoder as an "
                "embedder."
            )
        return model

    def _convert(self, fields):
        return self.converter.convert_from_pretrained(self.source, self.architecture, **fields)[0]
