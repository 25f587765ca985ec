# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Whether the code in a checkpoint's folder is that of this release, before anybody trusts it."""

import hashlib
from importlib.metadata import version
from pathlib import Path

from .drop_in import drop_in_files
from .folder import is_inside, read_json


CODE_SUFFIXES = (".py", ".pyc", ".pyd", ".so")
# Where JSON files name what Python is to import: models and tokenizers, and `custom_pipelines`.
FIELDS = ("auto_map", "impl")


def verify(folder):
    """
    Reads files and runs nothing of them.

    Args:
        folder (`str` or `os.PathLike`): a checkpoint.

    Returns:
        a list of `(line, well)`: each of the two code files with its SHA-256, whatever else is there that Python could
        run, links that lead elsewhere, and classes that a JSON file would take from elsewhere.

    Raises:
        ValueError: there is no such folder, or it holds no `config.json` that can be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"There is no folder {str(folder)!r} to verify: download the checkpoint first.")
    read_json(folder / "config.json", dict)
    release = {name: text.encode() for name, text in drop_in_files().items()}
    modules = {Path(name).stem for name in release}
    findings = [_compare(folder / name, text) for name, text in release.items()]
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not is_inside(path, folder):
            findings.append((f"{name}: a link out of the folder, to what may change", False))
        elif path.suffix in CODE_SUFFIXES and path.parent.name != "__pycache__" and name not in release:
            findings.append((f"{name}: code that is not of this project", False))
        elif path.suffix == ".json" and path.is_file():
            findings += [(f"{name}: {line}", False) for line in _foreign(path, modules)]
    return findings


def _compare(path, expected):
    if not path.is_file():
        return f"{path.name}: missing", False
    found, right = (hashlib.sha256(data).hexdigest() for data in (path.read_bytes(), expected))
    if found == right:
        return f"{path.name}: that of lsg-xlmr {version('lsg-xlmr')}, sha256 {found}", True
    return f"{path.name}: sha256 {found}, and that of lsg-xlmr {version('lsg-xlmr')} has {right}", False


def _foreign(path, modules):
    """What is wrong with the code that the JSON file names."""
    try:
        content = read_json(path)
    except ValueError:
        return ["cannot be read"]
    is_modules = path.name == "modules.json"  # of sentence-transformers
    return [
        f"{entry} is not in these files"
        for entry in _named(content, ("type",) if is_modules else FIELDS)
        if entry.rpartition(".")[0] not in modules and not (is_modules and entry.startswith("sentence_transformers."))
    ]


def _named(value, fields, is_name=False):
    """Everything below one of the `fields`, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _named(inner, fields, is_name or key in fields)
    elif isinstance(value, list):
        for inner in value:
            yield from _named(inner, fields, is_name)
    elif is_name and value is not None:
        yield str(value)
