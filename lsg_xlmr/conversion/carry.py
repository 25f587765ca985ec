# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Takes into a result what still fits it of its source, and names what it leaves behind."""

import io
import json

import torch
from safetensors.torch import load
from transformers.utils import logging

from .contents import (
    ADAPTER,
    CARRIED,
    FOREIGN,
    GENERATION,
    OTHER_FORMS,
    PICKLES,
    POSITIONS,
    READ,
    TENSOR_SUFFIXES,
    TENSORS,
    TRAINING,
    UNKNOWN,
    is_left,
    told,
)
from .files import write_json
from .layouts import flat
from .lengths import tokenizer_with_length, with_length
from .verify import foreign


logger = logging.get_logger(__name__)


def carry(source, folder, length):
    """
    Into `folder`, which transformers has written to: the source's own tokenizer.json (transformers 5.0 would write one
    without its normalization of the text), all that its [`contents.survey`] says is carried, and the settings and
    modules of sentence-transformers, for `length` tokens. One warning names the files that are left behind.

    Raises:
        OSError: the files cannot be written.
        ValueError: settings of the source cannot be read.
    """
    left = {}
    for name, (path, kind) in source.contents.items():
        if kind in (CARRIED, TENSORS) or name == "tokenizer.json":
            kind = _carry(path, name, folder, length, source) or kind
        elif kind == READ:
            kind = _not_made_anew(name, folder, source) or kind
        if is_left(kind):
            left[name] = kind
    left |= _write_embedder(source, folder, length)
    left |= {f"{line.split()[0]} of config.json": FOREIGN for line in foreign(source.config, "config.json")}
    left |= {name: kind for name, kind in source.not_fetched.items() if name not in left}
    if left:
        logger.warning(f"Left behind of {source.name}: {told(left)}.")


def _carry(path, name, folder, length, source):
    """Copies one file; where it does not fit after all, nothing is written and what that means is given."""
    data = path.read_bytes()
    is_module = name.split("/")[0] in source.module_folders
    if path.suffix == ".json":
        content = _parsed(path, data)
        if any(foreign(content, path.name)):
            return FOREIGN
        settled = content
        if name == "tokenizer.json":
            settled = tokenizer_with_length(content, length)
        elif is_module:
            settled = with_length(content, length)
        if settled != content:
            data = json.dumps(settled, ensure_ascii=False, indent=2).encode()
    elif path.suffix in TENSOR_SUFFIXES:
        reason = _unfit(data, path.suffix, () if is_module else source.position_counts)
        if reason:
            return reason
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return None


def _unfit(data, suffix, position_counts):
    """Why tensors do not fit the result; `None` if they do."""
    try:
        content = load(data) if suffix == ".safetensors" else torch.load(io.BytesIO(data), "cpu", weights_only=True)
    except Exception:  # safetensors, pickle, zip and torch each raise their own
        return PICKLES if suffix != ".safetensors" else POSITIONS
    if isinstance(content, dict) and not all(isinstance(value, torch.Tensor) for value in content.values()):
        return TRAINING
    tensors = content if isinstance(content, dict) else {"": content}
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        return PICKLES
    if any("encoder.layer." in name for name in tensors):
        return OTHER_FORMS
    if any(size in position_counts for tensor in tensors.values() for size in tensor.shape):
        return POSITIONS
    return None


def _not_made_anew(name, folder, source):
    if name == "generation_config.json" and not (folder / name).is_file():
        return GENERATION
    if name.startswith("adapter_") and source.adapter is None:
        return ADAPTER
    if not source.is_embedder and name in ("modules.json", "config_sentence_transformers.json"):
        return FOREIGN if source.modules else UNKNOWN
    return None


def _write_embedder(source, folder, length):
    """The modules of sentence-transformers, and its settings; what is left of these is given."""
    left, files = {}, {}
    if source.is_embedder or source.sentence_settings:  # the part of a Router has these settings too
        files["sentence_bert_config.json"] = {**source.sentence_settings, "max_seq_length": length}
    if source.is_embedder and source.embedder_config:
        files["config_sentence_transformers.json"] = source.embedder_config
    for name, settings in files.items():
        foreign_fields = [field for field, value in settings.items() if any(foreign({field: value}, name))]
        left |= {f"{field} of {name}": FOREIGN for field in foreign_fields}
        kept = {field: value for field, value in settings.items() if field not in foreign_fields}
        write_json(folder / name, with_length(kept, length))
    if source.is_embedder:
        write_json(folder / "modules.json", flat(source.modules))
    for path in source.module_folders:
        (folder / path).mkdir(parents=True, exist_ok=True)  # 2_Normalize holds no file
    return left


def _parsed(path, data):
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}.") from error
