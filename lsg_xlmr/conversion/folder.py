# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""What the folder of a converted checkpoint holds beside what transformers writes."""

import json
import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open


# What a conversion needs of a source on the hub beside its weights: the README, the tokenizer, the settings and the
# modules (1_Pooling, 2_Dense, ...) of sentence-transformers.
SIDE_FILES = ("README.md", "*.json", "sentencepiece.bpe.model", "[0-9]_*/*")
WEIGHT_FILES = ("*.safetensors", "*.bin")
# What goes into the result as it is, or as transformers has read it.
CARRIED_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "additional_chat_templates/*", "[0-9]_*/**/*")
MODULE_FOLDER = re.compile(r"[0-9]_\w+")


def side_files(source, token=None):
    """
    Returns:
        `Path`: a folder with the source's files, a hub model's without its weights.

    Raises:
        ValueError: the source is a folder that takes files from elsewhere.
    """
    if not Path(source).is_dir():
        return Path(snapshot_download(str(source), token=token, allow_patterns=SIDE_FILES))
    _check_links(Path(source))
    _check_shards(Path(source))
    return Path(source)


def is_inside(path, folder):
    """Whether `path` leads into `folder`, or into the hub's cache if `folder` is a snapshot in it."""
    folder = folder.resolve()
    # The files of a snapshot are links into its model's blobs, and these may be links into those of all models.
    blobs = [parent / "blobs" for parent in folder.parents[1:3]] if folder.parent.name == "snapshots" else []
    path = Path(os.path.realpath(path))
    return any(path.is_relative_to(place) for place in (folder, *blobs))


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


def _check_links(folder):
    """What is carried over may be published with the result: it may be no other file of this machine."""
    for path in (path for pattern in CARRIED_FILES for path in folder.glob(pattern)):
        if path.match("*.index.json"):  # is read like the weights, which may well be on another disk
            continue
        if not is_inside(path, folder) or (path.is_symlink() and path.is_dir()):
            raise ValueError(
                f"{str(path)!r} is a link out of the folder, or to a folder, and what it leads to would be copied: "
                "refused. Put the file itself there."
            )


def _check_shards(folder):
    for index in (path for pattern in WEIGHT_FILES for path in folder.glob(f"{pattern}.index.json")):
        weight_map = read_json(index, dict).get("weight_map")
        for file in weight_map.values() if isinstance(weight_map, dict) else ():  # else transformers tells
            if Path(str(file)).name != file:
                raise ValueError(f"{str(index)!r} names {file!r}, which is not a file beside it: refused.")


@contextmanager
def unchanged(*folders):
    """
    Raises:
        ValueError: at the end of the block, if a file of a checkpoint in `folders` is another than at its beginning.
    """
    before = [_state(folder) for folder in folders]
    yield
    for folder, then in zip(folders, before):
        now = _state(folder)
        changed = sorted(str(path) for path in then.keys() | now.keys() if then.get(path) != now.get(path))
        if changed:
            raise ValueError(f"{changed[0]!r} has changed while it was read: start again when it is whole.")


def _state(folder):
    """What changes with a file's content, by the path of each file that a conversion may read."""
    paths = (path for pattern in SIDE_FILES + WEIGHT_FILES for path in Path(folder).glob(pattern) if path.is_file())
    return {path: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in ((x, x.stat()) for x in paths)}


def save_checkpoint(model, tokenizer, folder, source_files):
    """
    Write the model, its code, the tokenizer and what else belongs to them to `folder`.

    Args:
        source_files (`Path`): the folder with the source's files. Its SentencePiece model and tokenizer.json go along
            and, if it is that of a sentence-transformers model, its settings and modules.

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
    settings = read_json(settings, dict) if settings.is_file() else {}
    settings["max_seq_length"] = max_sequence_length
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    for path in _module_folders(source_files):
        (folder / path).mkdir(parents=True, exist_ok=True)  # 2_Normalize holds no file
        if (source_files / path).is_dir():
            shutil.copytree(source_files / path, folder / path, dirs_exist_ok=True)


def _module_folders(source_files):
    """The folders of the modules but the transformer's, whose path is empty: it is the source itself."""
    modules = read_json(source_files / "modules.json", list)
    try:
        paths = [module["path"] for module in modules if module["path"] != ""]
    except (TypeError, KeyError) as error:
        raise ValueError(f"modules.json is no list of modules, each with a path: {error!r}.") from error
    for path in paths:  # what it names is copied: it may be no other folder of this machine, nor the source itself
        is_named_well = isinstance(path, str) and MODULE_FOLDER.fullmatch(path)
        if not is_named_well or (source_files / path).is_symlink() or (source_files / path).is_file():
            raise ValueError(f"modules.json names {path!r}, which is not a module's folder like 1_Pooling: refused.")
    return paths
