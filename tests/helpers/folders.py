"""Folders as people have them, built from the small checkpoints of this repository."""

import json
import shutil
from pathlib import Path

from repository import DATA


SMALL = DATA / "parity_conversion" / "source"
LIBRARY = "sentence_transformers.models"


def write(folder, name, content=""):
    """The file `name` in `folder`, with its parents; a `dict` or `list` as JSON."""
    path = Path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def modules(*paths, kinds=("Transformer", "Pooling", "Normalize")):
    """What `modules.json` holds of modules in `paths`, the encoder's first."""
    return [
        {"idx": number, "name": str(number), "path": path, "type": f"{LIBRARY}.{kind}"}
        for number, (path, kind) in enumerate(zip(paths, kinds, strict=False))
    ]


def embedder(folder, source=SMALL):
    """A sentence-transformers model as they are today: the encoder in the folder itself."""
    shutil.copytree(source, folder)
    write(folder, "modules.json", modules("", "1_Pooling", "2_Normalize"))
    write(folder, "sentence_bert_config.json", {"max_seq_length": 128, "do_lower_case": False})
    prompts = {"query": "query: ", "document": "passage: "}
    write(folder, "config_sentence_transformers.json", {"prompts": prompts, "similarity_fn_name": "cosine"})
    size = json.loads(Path(folder, "config.json").read_text())["hidden_size"]
    write(folder, "1_Pooling/config.json", {"word_embedding_dimension": size, "pooling_mode_mean_tokens": True})
    return Path(folder)


def old_embedder(folder, source=SMALL, encoder="0_Transformer", kind="Transformer"):
    """A sentence-transformers model as they were: the encoder in a folder too, and a root config.json of a version."""
    embedder(folder, source)
    inner = Path(folder, encoder)
    inner.mkdir()
    outer = ("modules.json", "config_sentence_transformers.json", "README.md")
    for path in [path for path in Path(folder).iterdir() if path.is_file() and path.name not in outer]:
        path.rename(inner / path.name)
    write(folder, "config.json", {"__version__": "0.3.8"})
    paths = (encoder, "1_Pooling", "2_Normalize")
    write(folder, "modules.json", modules(*paths, kinds=(kind, "Pooling", "Normalize")))
    return Path(folder)


def cut_at(folder, length):
    """Makes each file of a tokenizer cut at `length` tokens and pad to it."""
    path = Path(folder, "tokenizer.json")
    truncation = {"direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": length}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>"}
    write(folder, path.name, {**json.loads(path.read_text()), "truncation": truncation, "padding": padding})
    settings = json.loads(Path(folder, "tokenizer_config.json").read_text())
    settings |= {"max_length": length, "model_max_length": length, "stride": 0, "is_local": True}
    write(folder, "tokenizer_config.json", {**settings, "name_or_path": "/home/someone/model"})


def without_mask(folder):
    """Takes the mask from the tokenizer."""
    tokenizer = json.loads(Path(folder, "tokenizer.json").read_text())
    kept = [token for token in tokenizer["added_tokens"] if token["content"] != "<mask>"]
    write(folder, "tokenizer.json", {**tokenizer, "added_tokens": kept})
    special = {"unk_token": "<unk>", "bos_token": "<s>"}
    special |= {"cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}
    write(folder, "tokenizer_config.json", {**special, "tokenizer_class": "PreTrainedTokenizerFast"})
    for name in ("special_tokens_map.json", "sentencepiece.bpe.model"):
        Path(folder, name).unlink(missing_ok=True)
