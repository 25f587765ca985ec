# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""A folder that is written whole or not at all."""

import hashlib
import shutil
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from filelock import FileLock, Timeout


# What a checkpoint may hold at its top; a folder that holds anything else is not replaced.
CHECKPOINT_FILES = (
    *("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"),
    *("pytorch_model*.bin", "pytorch_model.bin.index.json", "training_args.bin"),
    *("configuration_lsg.py", "modeling_lsg_*.py", "__pycache__"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "*.bpe.model"),
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "[0-9]_*"),
    *("README.md", "LICENSE", ".gitattributes", "onnx"),
)
CHECKPOINT_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
ONNX_FILES = ("*.onnx", "*.onnx.data", "*.onnx_data", "*.json")


@contextmanager
def new_folder(target, overwrite=False, sources=(), replaceable=CHECKPOINT_FILES):
    """
    Gives an empty folder that becomes `target` when the block ends without an exception. Otherwise `target` is as it
    was, and nothing else is left. What a process that was killed has left behind, the next one for the same target
    removes; if the old folder was just being replaced, it is put back first.

    Args:
        target (`str` or `Path`): the folder to be, with its parents where they are missing.
        overwrite (`bool`): replace `target` if it is there and not empty.
        sources (iterable of `Path`): folders that are read meanwhile: `target` may neither hold nor be in one.
        replaceable (iterable of `str`): what a folder may hold to be replaced, as patterns of file names.

    Raises:
        ValueError: `target` may not be written, or another process is writing it.
    """
    name, target = target, Path(target).resolve()
    _check_place(name, target, sources)
    # On the same file system, so that the moves at the end are only changes of name; by the whole path, since the
    # parents of another target of this name may be missing too.
    beside = next(parent for parent in target.parents if parent.is_dir())
    number = hashlib.sha256(str(target).encode()).hexdigest()[:8]
    with _locked(beside / f".{target.name}-{number}", name) as work:
        new, old = work / "new", work / "old"
        if old.exists() and not target.exists():
            old.rename(target)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
        _check_content(name, target, overwrite, replaceable)
        new.mkdir()
        yield new
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if target.exists():
                target.rename(old)
            new.rename(target)
        except BaseException:  # a signal too
            if old.exists() and not target.exists():
                old.rename(target)
            raise


@contextmanager
def _locked(work, name):
    """The folder `work`, of this process alone until the block ends, when it is gone; a lock ends with its process."""
    lock = FileLock(work / "lock", thread_local=False)
    try:
        while not (lock.is_locked and (work / "lock").exists()):  # or the process before has just removed the folder
            lock.release()
            work.mkdir(exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except FileNotFoundError:
                continue
            except Timeout:
                message = f"Another process is writing {str(name)!r}: wait for it, or name a new folder."
                raise ValueError(message) from None
        yield work
    finally:
        try:
            _remove(work, lock)
        except BaseException:  # a signal
            _remove(work, lock)
            raise


def _remove(work, lock):
    """Removes `work` unless it is another process's; a signal may have come while it was being locked."""
    try:
        if work.is_dir():
            lock.acquire(timeout=0)
            shutil.rmtree(work, ignore_errors=True)
    except (Timeout, FileNotFoundError):
        pass
    lock.release(force=True)


def _check_place(name, target, sources):
    for kept in (Path.cwd(), Path.home(), *sources):
        if target in (Path(kept).resolve(), *Path(kept).resolve().parents):
            raise ValueError(f"{str(name)!r} is {str(kept)!r} or holds it, and would replace it: name a new folder.")
    for source in sources:
        if Path(source).resolve() in target.parents:
            raise ValueError(f"{str(name)!r} is in the source {str(source)!r}: name a folder outside.")
    if target.exists() and not target.is_dir():
        raise ValueError(f"{str(name)!r} is a file: name a folder.")


def _check_content(name, target, overwrite, replaceable):
    names = sorted(path.name for path in target.iterdir()) if target.is_dir() else []
    if not names:
        return
    if not overwrite:
        raise ValueError(f"{str(name)!r} is not empty: name a new folder, or add --overwrite to replace it.")
    unknown = [name for name in names if not any(fnmatch(name, pattern) for pattern in replaceable)]
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise ValueError(
            f"{str(name)!r} holds {', '.join(unknown[:3])}{more}, which would be lost with it: move that away, or "
            "name a new folder."
        )
    weights = [name for name in names if any(fnmatch(name, pattern) for pattern in CHECKPOINT_WEIGHTS)]
    if replaceable is CHECKPOINT_FILES and not (weights and "config.json" in names):
        raise ValueError(f"{str(name)!r} holds no checkpoint, and is not replaced: name a new folder.")
