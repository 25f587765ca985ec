# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""What the folder of a converted checkpoint holds beside what transformers writes."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from .carry import carry
from .files import read_json, write_json


def save_checkpoint(model, tokenizer, folder, source):
    """
    Write the model, its code, the tokenizer and what else belongs to them to `folder`.

    Args:
        source ([`Source`]): what else of it still fits goes along, see [`carry`].

    Raises:
        OSError: the files cannot be written, or what stands in them is not what was written.
    """
    try:
        # In the original format transformers 5.0 would rename the LayerNorms' weights to gamma and beta.
        model.save_pretrained(folder, save_original_format=False)
    except SafetensorError as error:
        raise OSError(f"The weights cannot be written: {error}") from error
    _read_back(model, folder)
    tokenizer.save_pretrained(folder)
    _name_class_for_all(folder / "tokenizer_config.json")
    _write_special_tokens_map(tokenizer, folder / "special_tokens_map.json")
    carry(source, folder, tokenizer.model_max_length)


def _name_class_for_all(path):
    """`PreTrainedTokenizerFast` by the name that transformers 4 knows too, which reads ONNX files by optimum."""
    settings = read_json(path, dict)
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        write_json(path, settings)


def _write_special_tokens_map(tokenizer, path):
    """As transformers 4 wrote it: fastembed up to 0.8.0 opens no folder without. The source's own replaces it."""
    fields = ("content", "lstrip", "normalized", "rstrip", "single_word")
    tokens = {str(token): token for token in tokenizer.added_tokens_decoder.values()}
    settings = {
        name: {field: getattr(tokens[token], field) for field in fields}
        for name, token in tokenizer.special_tokens_map.items()
        if isinstance(token, str) and token in tokens  # not the lists of further ones
    }
    write_json(path, settings)


def folder_size(folder):
    """
    Returns:
        `tuple[int, int]`: how many files are in `folder`, and their bytes.
    """
    sizes = [path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)


def _read_back(model, folder):
    """Tensor by tensor, the files against the model; as bytes, since NaN is not equal to itself."""
    weights, read = model.state_dict(), set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                there, here = (x.flatten().view(torch.uint8) for x in (file.get_tensor(name), weights[name]))
                if not torch.equal(there, here):
                    raise OSError(f"{path.name} was not written right: {name} reads otherwise. Look at the disk.")
                read.add(weights[name].data_ptr())  # tied weights are stored once
    missing = sorted(name for name, weight in weights.items() if weight.data_ptr() not in read)
    if missing:
        raise OSError(f"The weights were not written whole: {missing[0]} is not there. Look at the disk.")
