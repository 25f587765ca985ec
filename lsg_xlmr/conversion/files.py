# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""The files of a folder that somebody else made: what is read and copied of them, and where their links may lead."""

import json
import os
import re
from contextlib import contextmanager
from pathlib import Path


# What a conversion needs of a source on the hub beside its weights: the README, the tokenizer, the settings and the
# modules (1_Pooling, 2_Dense, ...) of sentence-transformers.
SIDE_FILES = ("README.md", "*.json", "sentencepiece.bpe.model", "[0-9]_*/*")
WEIGHT_FILES = ("*.safetensors", "*.bin")
# What goes into the result as it is, or as transformers has read it.
CARRIED_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "additional_chat_templates/*", "[0-9]_*/**/*")
MODULE_FOLDER = re.compile(r"[0-9]_\w+")


def read_json(path, kind=object):
    """
    Returns:
        what the file `path` holds, a `kind` (`dict` or `list`, if given).

    Raises:
        ValueError: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}.") from error
    if not isinstance(content, kind):
        raise ValueError(f"{str(path)!r} must hold one JSON {'object' if kind is dict else 'list'}, not {content!r}.")
    return content


def is_inside(path, folder):
    """Whether `path` leads into `folder`, or into the hub's cache if `folder` is a snapshot in it."""
    folder = folder.resolve()
    # The files of a snapshot are links into its model's blobs, and these may be links into those of all models.
    blobs = [parent / "blobs" for parent in folder.parents[1:3]] if folder.parent.name == "snapshots" else []
    path = Path(os.path.realpath(path))
    return any(path.is_relative_to(place) for place in (folder, *blobs))


def check_links(folder):
    """
    Raises:
        ValueError: what is carried over, and may be published with the result, is another file of this machine.
    """
    for path in (path for pattern in CARRIED_FILES for path in folder.glob(pattern)):
        if path.match("*.index.json"):  # is read like the weights, which may well be on another disk
            continue
        if not is_inside(path, folder) or (path.is_symlink() and path.is_dir()):
            raise ValueError(
                f"{str(path)!r} is a link out of the folder, or to a folder, and what it leads to would be copied: "
                "refused. Put the file itself there."
            )


def check_shards(folder):
    """
    Raises:
        ValueError: an index of weights names a file that is not beside it.
    """
    for index in (path for pattern in WEIGHT_FILES for path in folder.glob(f"{pattern}.index.json")):
        weight_map = read_json(index, dict).get("weight_map")
        for file in weight_map.values() if isinstance(weight_map, dict) else ():  # else transformers tells
            if Path(str(file)).name != file:
                raise ValueError(f"{str(index)!r} names {file!r}, which is not a file beside it: refused.")


def module_folders(folder):
    """
    Returns:
        `list[str]`: the folders of the modules of a sentence-transformers model but the transformer's, whose path is
        empty: it is the folder itself.

    Raises:
        ValueError: `modules.json` is no list of modules, or names something else.
    """
    modules = read_json(folder / "modules.json", list)
    try:
        paths = [module["path"] for module in modules if module["path"] != ""]
    except (TypeError, KeyError) as error:
        raise ValueError(f"modules.json is no list of modules, each with a path: {error!r}.") from error
    for path in paths:  # what it names is copied: it may be no other folder of this machine, nor the source itself
        is_named_well = isinstance(path, str) and MODULE_FOLDER.fullmatch(path)
        if not is_named_well or (folder / path).is_symlink() or (folder / path).is_file():
            raise ValueError(f"modules.json names {path!r}, which is not a module's folder like 1_Pooling: refused.")
    return paths


@contextmanager
def unchanged(folder):
    """
    Raises:
        ValueError: at the end of the block, if a file of the checkpoint in `folder` is another than at its beginning.
    """
    before = _state(folder)
    yield
    now = _state(folder)
    changed = sorted(str(path) for path in before.keys() | now.keys() if before.get(path) != now.get(path))
    if changed:
        raise ValueError(f"{changed[0]!r} has changed while it was read: start again when it is whole.")


def _state(folder):
    """What changes with a file's content, by the path of each file that a conversion may read."""
    paths = (path for pattern in SIDE_FILES + WEIGHT_FILES for path in folder.glob(pattern) if path.is_file())
    return {path: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in ((x, x.stat()) for x in paths)}
