# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""One length in every file of a result: nobody cuts at the old one, or pads to it."""

# Where settings in JSON hold the longest input, at any depth.
FIELDS = ("max_seq_length", "model_max_length", "max_length", "document_length")
# What transformers notes of the machine that it ran on, and the code that it would look for.
NOTED = ("is_local", "local_files_only", "name_or_path", "special_tokens_map_file", "tokenizer_file", "auto_map")


def set_length(tokenizer, length):
    """
    Make a tokenizer of transformers one for `length` (`int`) tokens: what it would cut at and pad to by its own files
    too. What it notes of this machine goes.
    """
    tokenizer.model_max_length = length
    for name in NOTED:
        tokenizer.init_kwargs.pop(name, None)
    tokenizer._auto_map = None
    settings = with_length(tokenizer.init_kwargs, length)
    if isinstance(settings.get("stride"), int):
        settings["stride"] = _stride(settings["stride"], length)
    tokenizer.init_kwargs.update(settings)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and backend.truncation:
        stride = _stride(backend.truncation["stride"], length)
        backend.enable_truncation(**{**backend.truncation, "max_length": length, "stride": stride})
    if backend is not None and backend.padding:
        backend.enable_padding(**{**backend.padding, "length": None})


def with_length(settings, length):
    """`settings`, of a JSON file, with `length` (`int`) wherever they hold the longest input."""
    if isinstance(settings, list):
        return [with_length(value, length) for value in settings]
    if not isinstance(settings, dict):
        return settings
    return {
        name: length if name in FIELDS and _is_number(value) else with_length(value, length)
        for name, value in settings.items()
    }


def tokenizer_with_length(content, length):
    """`content` (`dict`), of a tokenizer.json: it cuts at `length`, if at all, and pads to the longest of a batch."""
    truncation, padding = content.get("truncation"), content.get("padding")
    if truncation:
        stride = _stride(truncation.get("stride", 0), length)
        content = {**content, "truncation": {**truncation, "max_length": length, "stride": stride}}
    if padding:
        content = {**content, "padding": {**padding, "strategy": "BatchLongest"}}
    return content


def _stride(stride, length):
    """Windows of `length` tokens, `<s>` and `</s>` among them, cannot overlap by more: tokenizers would refuse."""
    return stride if stride < length - 4 else 0


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)
