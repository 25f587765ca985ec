# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""A folder that is written whole or not at all."""

import filecmp
import hashlib
import json
import os
import shutil
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path

from filelock import FileLock, Timeout


SHARD = f"{'[0-9]' * 5}-of-{'[0-9]' * 5}"
WEIGHT_FILES = (
    *("model.safetensors", f"model-{SHARD}.safetensors"),
    *("pytorch_model.bin", f"pytorch_model-{SHARD}.bin"),
)
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("sentencepiece.bpe.model", "spiece.model", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt"),
    *("bpe.codes", "dict.txt"),
)
ONNX_FILES = (
    *("model.onnx", "model.onnx[._]data", "model_*.onnx", "model_*.onnx[._]data"),
    *("config.json", "ort_config.json", *TOKENIZER_FILES),  # of optimum
    "model-inferred.onnx",  # of a quantization that was killed
)
KILLED_EXPORT = f".onnx-{'[0-9a-f]' * 8}"
ONNX_FOLDERS = ("onnx", f"{KILLED_EXPORT}/new", f"{KILLED_EXPORT}/old")
# What a checkpoint may hold; a folder with anything else that the source has not is not replaced. The state of a
# training (optimizer.pt, trainer_state.json) is not among it: no conversion would give it back.
CHECKPOINT_FILES = (
    *("config.json", "generation_config.json", "training_args.bin", *WEIGHT_FILES, *TOKENIZER_FILES),
    *("model.safetensors.index.json", "pytorch_model.bin.index.json"),
    *("configuration_lsg.py", "__pycache__/configuration_lsg.*.pyc"),
    *("modeling_lsg_xlm_roberta.py", "__pycache__/modeling_lsg_xlm_roberta.*.pyc"),
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
    *("sparse_linear.pt", "colbert_linear.pt"),  # of BGE-M3
    *("README.md", ".README.md.new", ".gitattributes", ".gitignore", ".DS_Store"),
    *("LICEN[CS]E", "LICEN[CS]E.*", "LICEN[CS]E-*", "NOTICE", "NOTICE.*", "COPYING", "COPYING.*", "CITATION.cff"),
    *(".cache/huggingface/*", ".cache/huggingface/*/*", ".cache/huggingface/*/*/*"),  # of the hub's downloads
    *(f"{folder}/{file}" for folder in ONNX_FOLDERS for file in ONNX_FILES),
    f"{KILLED_EXPORT}/lock",
)
# Only beside a modules.json, which says that these folders are of sentence-transformers.
MODULE_FILES = ("[0-9]*_*/*config.json", "[0-9]*_*/model.safetensors", "[0-9]*_*/pytorch_model.bin")


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
        replaceable (iterable of `str`): the files a folder may hold to be replaced, as patterns of their paths.

    Raises:
        ValueError: `target` may not be written, or another process is writing it.
        OSError: it cannot be, for want of permission or space.
    """
    name, target = target, Path(os.path.realpath(target))
    _check_place(name, target, sources)
    # On the same file system, so that the moves at the end are only changes of name; by the whole path, since the
    # parents of another target of this name may be missing too.
    beside = next(parent for parent in target.parents if parent.is_dir())
    number = hashlib.sha256(str(target).encode()).hexdigest()[:8]
    with _locked(beside / f".{target.name}-{number}", target, name) as work:
        _clear(work, target)
        _check_content(name, target, overwrite, replaceable, sources)
        new = work / "new"
        new.mkdir()
        yield new
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            target.rename(work / "old")
        new.rename(target)


@contextmanager
def _locked(work, target, name):
    """The folder `work`, of this process alone until the block ends, when it is gone; a lock ends with its process."""
    lock = FileLock(work / "lock", thread_local=False)
    try:
        while not (lock.is_locked and (work / "lock").exists()):  # or the process before has just removed the folder
            lock.release()
            try:
                work.mkdir(exist_ok=True)
                with suppress(FileNotFoundError):
                    lock.acquire(timeout=0)
            except Timeout:
                message = f"Another process is writing {str(name)!r}: wait for it, or name a new folder."
                raise ValueError(message) from None
            except OSError as error:
                raise OSError(f"{str(name)!r} cannot be written in {str(work.parent)!r}: {error.strerror}.") from error
        yield work
    finally:
        try:
            _remove(work, target, lock)
        except BaseException:  # a signal
            _remove(work, target, lock)
            raise


def _remove(work, target, lock):
    """Removes `work` unless it is another process's; a signal may have come while it was being locked."""
    try:
        if work.is_dir():
            lock.acquire(timeout=0)
            _clear(work, target)
            shutil.rmtree(work, ignore_errors=True)
    except (Timeout, OSError):
        pass
    lock.release(force=True)


def _clear(work, target):
    """Removes what is half made, and puts back the old folder if it was just being replaced."""
    new, old = work / "new", work / "old"
    if old.exists() and not target.exists():
        old.rename(target)
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)


def _check_place(name, target, sources):
    there = next(path for path in (target, *target.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise ValueError(f"{str(name)!r} is a file, in one, or a link to itself: name a folder.")
    for kept in (Path.cwd(), Path.home(), *sources):
        if _holds(target, Path(kept)):
            raise ValueError(f"{str(name)!r} is {str(kept)!r} or holds it, and would replace it: name a new folder.")
    for source in sources:
        if any(_is_same(Path(source), folder) for folder in target.parents):
            raise ValueError(f"{str(name)!r} is in the source {str(source)!r}: name a folder outside.")
        for path in Path(source).rglob("*"):
            if path.is_symlink() and _holds(target, path):
                raise ValueError(
                    f"{str(name)!r} holds what {str(path)!r} of the source is a link to, and would replace it: name a "
                    "new folder."
                )


def _holds(folder, path):
    path = Path(os.path.realpath(path))
    return any(_is_same(folder, part) for part in (path, *path.parents))


def _is_same(one, other):
    """Whether both are one folder, whatever links, mounts and the case of letters make of their names."""
    return one.exists() and other.exists() and one.samefile(other)


def _check_content(name, target, overwrite, replaceable, sources):
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"{str(name)!r} is not empty: name a new folder, or add --overwrite to replace it.")
    known = (*replaceable, *MODULE_FILES) if (target / "modules.json").is_file() else replaceable
    unknown = (path for path in _files(target) if not any(_matches(path, pattern) for pattern in known))
    unknown = (path for path in unknown if not any(_is_copy(target / path, Path(source, path)) for source in sources))
    unknown = sorted(str(path) for path in islice(unknown, 4))
    if unknown:
        raise ValueError(
            f"{str(name)!r} holds {', '.join(unknown[:3])}{' and more' if unknown[3:] else ''}, which would be lost "
            "with it: move that away, or name a new folder."
        )
    if replaceable is CHECKPOINT_FILES and not _is_checkpoint(target):
        raise ValueError(f"{str(name)!r} holds no checkpoint, and is not replaced: name a new folder.")


def _is_checkpoint(folder):
    """Whether `folder` holds weights, and a configuration that says of which kind of model."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    has_weights = any(_matches(path.relative_to(folder), file) for path in folder.iterdir() for file in WEIGHT_FILES)
    return has_weights and isinstance(config, dict) and "model_type" in config


def _is_copy(path, other):
    """Whether the file `other` holds what `path` does: a conversion may have carried it, and it is not lost."""
    return path.is_file() and not path.is_symlink() and other.is_file() and filecmp.cmp(path, other, shallow=False)


def _files(folder):
    """The path from `folder` of everything in it, at any depth, that is no folder."""
    return (path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


def _matches(path, pattern):
    parts = Path(pattern).parts
    return len(parts) == len(path.parts) and all(map(fnmatch, path.parts, parts))
