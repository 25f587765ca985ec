# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""What the folder of a converted checkpoint holds beside what transformers writes."""

import json
import shutil
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open


# What a conversion needs of a source on the hub beside its weights: the README, the tokenizer, the settings and the
# modules (1_Pooling, 2_Dense, ...) of sentence-transformers.
SIDE_FILES = ("README.md", "*.json", "sentencepiece.bpe.model", "[0-9]_*/*")


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

    Raises:
        OSError: what stands in the files is not what was written.
    """
    # In the original format transformers 5.0 would rename the LayerNorms' weights to gamma and beta.
    model.save_pretrained(folder, save_original_format=False)
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
    weights = model.state_dict()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                there, here = (x.flatten().view(torch.uint8) for x in (file.get_tensor(name), weights[name]))
                if not torch.equal(there, here):
                    raise OSError(f"{path.name} was not written right: {name} reads otherwise. Look at the disk.")


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
