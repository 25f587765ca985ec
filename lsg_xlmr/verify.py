# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Whether the code in a checkpoint's folder is that of this release, before anybody trusts it."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

from .drop_in import drop_in_files


def verify(folder):
    """
    Reads files and runs nothing of them.

    Args:
        folder (`str` or `os.PathLike`): a checkpoint.

    Returns:
        a list of `(line, well)`: each of the two code files with its SHA-256, whatever else is there that Python could
        run, and classes that `config.json` takes from elsewhere.

    Raises:
        ValueError: there is no such folder, or it holds no `config.json` that can be read.
    """
    folder = Path(folder)
    auto_map = _auto_map(folder)
    release = {name: text.encode() for name, text in drop_in_files().items()}
    findings = [_compare(folder / name, text) for name, text in release.items()]
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        if name not in release:
            findings.append((f"{name}: code that is not of this project", False))
    modules = {Path(name).stem for name in release}
    for name, entries in auto_map.items():
        for entry in filter(None, entries if isinstance(entries, list) else [entries]):
            if entry.rpartition(".")[0] not in modules:
                findings.append((f"config.json: {name} is {entry}, which is not in these files", False))
    return findings


def _auto_map(folder):
    if not folder.is_dir():
        raise ValueError(f"There is no folder {str(folder)!r} to verify: download the checkpoint first.")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return dict(config.get("auto_map") or {})
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{str(folder / 'config.json')!r} cannot be read: {error}") from error


def _compare(path, expected):
    if not path.is_file():
        return f"{path.name}: missing", False
    found, right = (hashlib.sha256(data).hexdigest() for data in (path.read_bytes(), expected))
    if found == right:
        return f"{path.name}: that of lsg-xlmr {version('lsg-xlmr')}, sha256 {found}", True
    return f"{path.name}: sha256 {found}, and that of lsg-xlmr {version('lsg-xlmr')} has {right}", False
