# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""The folder of a converted checkpoint: written whole or not at all, with what else the source's folder holds."""

import json
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import snapshot_download


# What a conversion needs of a source on the hub beside its weights: the README, the tokenizer, the settings and the
# modules (1_Pooling, 2_Dense, ...) of sentence-transformers.
SIDE_FILES = ("README.md", "*.json", "sentencepiece.bpe.model", "[0-9]_*/*")


@contextmanager
def new_folder(target, overwrite=False, keep=()):
    """
    Gives an empty folder that becomes `target` when the block ends without an exception. Otherwise `target` is as it
    was, and nothing else is left.

    Args:
        target (`str` or `Path`): the folder to be, with its parents where they are missing.
        overwrite (`bool`): replace `target` if it is there and not empty.
        keep (iterable of `Path`): folders that must not be replaced, nor a parent of theirs.

    Raises:
        ValueError: `target` may not be written.
    """
    name, target = target, Path(target).resolve()
    for kept in (Path.cwd(), Path.home(), *keep):
        if target in (Path(kept).resolve(), *Path(kept).resolve().parents):
            raise ValueError(f"{str(name)!r} is {str(kept)!r} or holds it, and would replace it: name a new folder.")
    if target.exists() and not target.is_dir():
        raise ValueError(f"{str(name)!r} is a file: name a folder.")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise ValueError(f"{str(name)!r} is not empty: name a new folder, or add --overwrite to replace it.")
    # On the same file system, so that the move at the end is only a change of name.
    beside = next(parent for parent in target.parents if parent.is_dir())
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=beside) as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        new.mkdir()
        yield new
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise


def side_files(source, token=None):
    """
    Returns:
        `Path`: a folder with the source's files, a hub model's without its weights.
    """
    if Path(source).is_dir():
        return Path(source)
    return Path(snapshot_download(str(source), token=token, allow_patterns=SIDE_FILES))


def save_checkpoint(model, tokenizer, folder, source_files):
    """
    Write the model, its code, the tokenizer and what else belongs to them to `folder`.

    Args:
        source_files (`Path`): the folder with the source's files. Its SentencePiece model and tokenizer.json go along
            and, if it is that of a sentence-transformers model, its settings and modules.
    """
    # In the original format transformers 5.0 would rename the LayerNorms' weights to gamma and beta.
    model.save_pretrained(folder, save_original_format=False)
    tokenizer.save_pretrained(folder)
    if (source_files / "sentencepiece.bpe.model").is_file():
        shutil.copyfile(source_files / "sentencepiece.bpe.model", folder / "sentencepiece.bpe.model")
    if (source_files / "tokenizer.json").is_file():
        _copy_tokenizer(source_files, folder, tokenizer.model_max_length)
    if (source_files / "modules.json").is_file():
        _copy_sentence_transformers(source_files, folder, tokenizer.model_max_length)


def folder_size(folder):
    """
    Returns:
        `tuple[int, int]`: how many files are in `folder`, and their bytes.
    """
    sizes = [path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)


def _copy_tokenizer(source_files, folder, max_sequence_length):
    """The source's own tokenizer.json: transformers 5.0 would write one without its normalization of the text."""
    shutil.copyfile(source_files / "tokenizer.json", folder / "tokenizer.json")
    tokenizer = json.loads((source_files / "tokenizer.json").read_text(encoding="utf-8"))
    if tokenizer.get("truncation"):  # who reads the file with no transformers would go on cutting at the old length
        tokenizer["truncation"]["max_length"] = max_sequence_length
        text = json.dumps(tokenizer, ensure_ascii=False, indent=2)
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")


def _copy_sentence_transformers(source_files, folder, max_sequence_length):
    for name in ("modules.json", "config_sentence_transformers.json"):
        if (source_files / name).is_file():
            shutil.copyfile(source_files / name, folder / name)
    settings = source_files / "sentence_bert_config.json"
    settings = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    settings["max_seq_length"] = max_sequence_length
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    for module in json.loads((source_files / "modules.json").read_text(encoding="utf-8")):
        if module["path"]:  # the transformer's is empty: it is the folder itself
            (folder / module["path"]).mkdir(parents=True, exist_ok=True)  # 2_Normalize holds no file
            if (source_files / module["path"]).is_dir():
                shutil.copytree(source_files / module["path"], folder / module["path"], dirs_exist_ok=True)
