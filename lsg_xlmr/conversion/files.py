# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""The files of a folder that somebody else made: what is read and copied of them, and where their links may lead."""

import json
import os
import re
from contextlib import contextmanager
from pathlib import Path


# A file in the blobs of the hub's cache: SHA-1 of git, or SHA-256.
BLOB = re.compile("[0-9a-f]{40}([0-9a-f]{24})?")


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


def write_json(path, content):
    """Write `content` to the file `path`, as transformers writes its settings, but for characters as they are."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def is_inside(path, folder):
    """Whether `path` leads into `folder`, or into the hub's cache if `folder` is a snapshot in it."""
    folder = folder.resolve()
    # The files of a snapshot are links into its model's blobs, and these may be links into those of all models.
    blobs = [parent / "blobs" for parent in folder.parents[1:3]] if folder.parent.name == "snapshots" else []
    path = Path(os.path.realpath(path))
    return any(path.is_relative_to(place) for place in (folder, *blobs))


def check_links(folder, paths):
    """
    Raises:
        ValueError: one of the `paths`, which are carried over and may be published with the result, is another file of
            this machine than one of `folder` or of the hub's cache.
    """
    for path in paths:
        if path.is_dir() or not (is_inside(path, folder) or _is_blob(path)):
            raise ValueError(
                f"{str(path)!r} is a link out of the folder, or to a folder, and what it leads to would be copied: "
                "refused. Put the file itself there."
            )


def _is_blob(path):
    """Whether `path` leads to a file of the hub's cache: there each is named by its content."""
    path = Path(os.path.realpath(path))
    return path.is_file() and bool(BLOB.fullmatch(path.name)) and "blobs" in path.parts


def check_shards(folder):
    """
    Raises:
        ValueError: an index of weights names a file that is not beside it.
    """
    for index in folder.glob("*.index.json"):
        weight_map = read_json(index, dict).get("weight_map")
        for file in weight_map.values() if isinstance(weight_map, dict) else ():  # else transformers tells
            if Path(str(file)).name != file:
                raise ValueError(f"{str(index)!r} names {file!r}, which is not a file beside it: refused.")


@contextmanager
def unchanged(paths):
    """
    Args:
        paths (callable): gives the files (iterable of `Path`) of a checkpoint.

    Raises:
        ValueError: at the end of the block, if one of them is another than at its beginning.
    """
    before = _state(paths())
    yield
    now = _state(paths())
    changed = sorted(str(path) for path in before.keys() | now.keys() if before.get(path) != now.get(path))
    if changed:
        raise ValueError(f"{changed[0]!r} has changed while it was read: start again when it is whole.")


def _state(paths):
    """What changes with a file's content, by its path."""
    stats = ((path, path.stat()) for path in paths if path.is_file())
    return {path: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in stats}
