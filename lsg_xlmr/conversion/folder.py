# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""What the folder of a converted checkpoint holds beside what transformers writes."""

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from .files import read_json


def save_checkpoint(model, tokenizer, folder, source):
    """
    Write the model, its code, the tokenizer and what else belongs to them to `folder`.

    Args:
        source ([`Source`]): its SentencePiece model and tokenizer.json go along and, if it is a sentence-transformers
            model, its settings and modules.

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
    for name in ("sentencepiece.bpe.model", "tokenizer.json"):
        if (source.files / name).is_file():
            shutil.copyfile(source.files / name, folder / name)
    if (source.files / "tokenizer.json").is_file():
        _set_truncation(folder / "tokenizer.json", tokenizer.model_max_length)
    if source.is_embedder:
        _copy_sentence_transformers(source, folder, tokenizer.model_max_length)


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


def _set_truncation(path, max_sequence_length):
    """
    Whoever reads the file with no transformers would go on cutting at the old length. It is the source's own, since
    transformers 5.0 would write one without its normalization of the text.
    """
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    if tokenizer.get("truncation"):
        tokenizer["truncation"]["max_length"] = max_sequence_length
        path.write_text(json.dumps(tokenizer, ensure_ascii=False, indent=2), encoding="utf-8")


def _copy_sentence_transformers(source, folder, max_sequence_length):
    for name in ("modules.json", "config_sentence_transformers.json"):
        if (source.files / name).is_file():
            shutil.copyfile(source.files / name, folder / name)
    settings = source.files / "sentence_bert_config.json"
    settings = read_json(settings, dict) if settings.is_file() else {}
    settings["max_seq_length"] = max_sequence_length
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    for path in source.module_folders:
        (folder / path).mkdir(parents=True, exist_ok=True)  # 2_Normalize holds no file
        if (source.files / path).is_dir():
            shutil.copytree(source.files / path, folder / path, dirs_exist_ok=True)
