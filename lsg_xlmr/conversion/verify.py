# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Whether the code in a checkpoint's folder is that of this release, before anybody trusts it."""

import hashlib
from pathlib import Path

from ..version import __version__
from .drop_in import SOURCES, drop_in_files
from .files import is_inside, read_json


CODE_SUFFIXES = (".py", ".pyw", ".pyc", ".pyd", ".so")
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
# What makes transformers, peft or sentence-transformers import something, by its field in a JSON file at any depth,
# and with what that may begin.
OWN_CODE = tuple(name.removesuffix("py") for name in SOURCES)
FIELDS = {
    "auto_map": OWN_CODE,
    "custom_pipelines": OWN_CODE,
    "base_model_name_or_path": (),  # of an adapter: the model is taken from there, with its code
    "types": ("sentence_transformers.",),  # of a Router
    "activation_fn": ("torch.",),
    "activation_function": ("torch.",),
    "sbert_ce_default_activation_function": ("torch.",),
}
# Whose fields are words: nobody looks for classes there.
VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json")
MODULES_FIELDS = {**FIELDS, "type": ("sentence_transformers.",)}  # in modules.json


def verify(folder):
    """
    Reads files and runs nothing of them.

    Args:
        folder (`str` or `os.PathLike`): a checkpoint.

    Returns:
        a list of `(line, well)`: each of the two code files with its SHA-256, whatever else is there that Python could
        run, links that lead elsewhere, and what JSON files would take from elsewhere. Pickles are named, and well.

    Raises:
        ValueError: there is no such folder, or it holds no `config.json` that can be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"There is no folder {str(folder)!r} to verify: download the checkpoint first.")
    read_json(folder / "config.json", dict)
    findings = [_compare(folder / name, text.encode()) for name, text in drop_in_files().items()]
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        findings += [(f"{name}: {line}", well) for line, well in _look_at(path, name, folder)]
    return findings


def _look_at(path, name, folder):
    if not is_inside(path, folder):
        yield "a link out of the folder, to what may change", False
    elif path.suffix in CODE_SUFFIXES and name not in SOURCES and not _is_cache(path):
        yield "code that is not of this project", False
    elif path.suffix == ".json" and path.is_file():
        try:
            yield from ((line, False) for line in foreign(read_json(path), path.name))
        except ValueError:
            yield "cannot be read", False
    elif path.suffix in PICKLE_SUFFIXES:
        yield "a pickle, which can run code unless it is read with weights_only=True", True


def _is_cache(path):
    """Whether Python would run the file only for a source beside it."""
    return path.suffix == ".pyc" and path.parent.name == "__pycache__"


def foreign(content, name):
    """What `content`, of a JSON file `name`, takes from elsewhere: a line (`str`) for each."""
    if name in VOCABULARIES:
        return
    fields = MODULES_FIELDS if name == "modules.json" else FIELDS
    left = [(None, content)]
    while left:
        field, value = left.pop()
        if isinstance(value, dict):
            left += [(field if field in fields else key, inner) for key, inner in value.items()]
        elif isinstance(value, list):
            left += [(field, inner) for inner in value]
        elif field in fields and value is not None and not str(value).startswith(fields[field]):
            yield f"{field} names {value!r}, which is not in these files"


def _compare(path, expected):
    if not path.is_file():
        return f"{path.name}: missing", False
    found, right = (hashlib.sha256(data).hexdigest() for data in (path.read_bytes(), expected))
    if found == right:
        return f"{path.name}: that of lsg-xlmr {__version__}, sha256 {found}", True
    return f"{path.name}: sha256 {found}, and that of lsg-xlmr {__version__} has {right}", False
