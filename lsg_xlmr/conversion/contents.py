# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""What each file of a source is, by its name: read and made anew, carried as it is, or left behind and named."""

import os
import re
from collections import namedtuple
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from .drop_in import SOURCES


# What a conversion does with a file; one that is of none of these kinds is left, and its kind says what that means.
NO_CONTENT, WEIGHTS, READ, CARRIED, TENSORS = "no content", "weights", "read", "carried", "tensors"

CODE = "could run code, which is never carried"
TRAINING = "state and reports of a training that does not go on"
OTHER_FORMS = "other forms of the old weights; --onnx makes ONNX files anew"
ADAPTER = "an adapter, which is not applied"
PICKLES = "pickles of more than tensors, which could run code"
FOREIGN = "settings that name code from elsewhere, which is not carried"
GENERATION = "settings of text generation, which the result does not do"
POSITIONS = "tensors that depend on the number of positions, or hold an encoder"
LINKS = "links to folders, which are not followed"
SHADOWED = "another file of this name is carried"
UNKNOWN = "not known to fit: copy by hand what does"

# The first rule that a file meets tells its kind. A pattern with a slash at its end is a folder's, at any depth; any
# other is a name's, in whichever folder, and in the rules `AT_THE_TOP` of the model's own folder alone.
RULES = (
    (NO_CONTENT, ".git/ .cache/ .huggingface/ __pycache__/ .ipynb_checkpoints/"),
    (NO_CONTENT, ".gitattributes .gitignore .gitkeep .DS_Store ._* Thumbs.db desktop.ini"),
    (CODE, "*.py *.pyw *.pyc *.pyd *.so *.dll *.dylib *.exe *.sh *.bat *.ps1 *.js *.jar *.wasm *.ipynb"),
    (TRAINING, "checkpoint-*/ global_step*/ runs/ logs/ wandb/ mlruns/ eval/ events.out.tfevents* *.log"),
    (TRAINING, "optimizer* scheduler* scaler.* rng_state* random_states_* trainer_state.* training_args.*"),
    (TRAINING, "train*.json *_results.* *_evaluation*.csv latest"),
    (OTHER_FORMS, "onnx/ openvino/ coreml/ tflite/ *.mlpackage/ *.onnx *.onnx_data* *.onnx.data openvino*"),
    (OTHER_FORMS, "*.gguf *.ggml imatrix* *.h5 *.msgpack *.ot *.tflite *.mlmodel *.npz *.pdparams *.nemo"),
    (OTHER_FORMS, "*.engine *.mnn *.ckpt*"),
    (PICKLES, "*.pkl *.pickle *.joblib *.dill *.npy"),
)
AT_THE_TOP = (
    (WEIGHTS, "model.safetensors model-*.safetensors pytorch_model.bin pytorch_model-*.bin"),
    (WEIGHTS, "model.safetensors.index.json pytorch_model.bin.index.json"),
    (OTHER_FORMS, "model*.safetensors pytorch_model*.bin consolidated*"),
    (READ, "config.json generation_config.json README.md modules.json tokenizer.json tokenizer_config.json"),
    (READ, "config_sentence_transformers.json sentence_*_config.json"),
    (READ, "adapter_config.json adapter_model.safetensors adapter_model.bin"),
    (CARRIED, "special_tokens_map.json added_tokens.json chat_template.json *.jinja"),
    (CARRIED, " *.model vocab.json vocab.txt merges.txt bpe.codes dict.txt"),
)
TENSOR_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
LEGAL = re.compile(
    r"(?i)(?:.*[\W_])?(?:licen[cs]es?|copying|notices?|copyright|patents|authors|citation|(?:use|acceptable)[-_]\w*policy)"
    r"(?:[\W_].*)?"
)
LEGAL_SUFFIXES = ("", ".txt", ".md", ".rst", ".cff", ".pdf", ".html")

SourceFile = namedtuple("SourceFile", "path kind")


def kind_of(name, modules=()):
    """
    Args:
        name (`str`): path of a file from the folder of the model, with slashes.
        modules (iterable of `str`): the folders of sentence-transformers' modules.

    Returns:
        `str`: what a conversion does with it.
    """
    path = PurePosixPath(name)
    if name in SOURCES:
        return READ
    for kind, patterns in RULES:
        if any(_meets(path, pattern) for pattern in patterns.split()):
            return kind
    top = path.parts[0]
    if len(path.parts) == 1 or path.parts[:-1] == ("additional_chat_templates",):
        for kind, patterns in AT_THE_TOP:
            if any(_meets(path, pattern) for pattern in patterns.split()):
                return kind
    if top in modules and path.suffix in (".json", ".txt", ".model"):
        return CARRIED
    if path.name.startswith("adapter_"):
        return ADAPTER
    if path.suffix in TENSOR_SUFFIXES:
        return TENSORS
    if path.suffix.lower() in LEGAL_SUFFIXES and (LEGAL.fullmatch(path.stem) or LEGAL.fullmatch(top)):
        return CARRIED
    return UNKNOWN


def is_left(kind):
    """Whether a file of the `kind` is left behind, and named."""
    return kind not in (NO_CONTENT, WEIGHTS, READ, CARRIED, TENSORS)


def survey(encoder, root, modules=()):
    """
    Args:
        encoder, root (`Path`): the folder of the model, and the one that holds it, which may be the same.
        modules (iterable of `str`): the folders of sentence-transformers' modules in `root`.

    Returns:
        `dict[str, SourceFile]`: path and kind of every file by its name in a flat folder; files of two folders that
        would have one name are told apart by the path from `root`.
    """
    found = {}
    for folder in dict.fromkeys((encoder, root)):
        for path in _walk(folder):
            if folder == root != encoder and path.is_relative_to(encoder):
                continue
            name = path.relative_to(folder).as_posix()
            kind = LINKS if path.is_dir() else kind_of(name, modules)
            if name in found and kind in (CARRIED, TENSORS):
                kind = SHADOWED
            if name not in found:
                found[name] = SourceFile(path, kind)
            elif is_left(kind):
                found[f"{name} beside {encoder.name}"] = SourceFile(path, kind)
    return found


def told(files):
    """
    Args:
        files (`dict[str, str]`): what is left behind, by name, and what its kind means.

    Returns:
        `str`: all of it in a few words: whole folders by their names.
    """
    by_kind = {}
    for name, kind in sorted(files.items()):
        top = PurePosixPath(name).parts[0]
        is_whole = top != name and {k for n, k in files.items() if n.startswith(f"{top}/")} == {kind}
        by_kind.setdefault(kind, {})[f"{top}/" if is_whole else name] = None
    return "; ".join(f"{', '.join(names)} ({kind})" for kind, names in by_kind.items())


def _meets(path, pattern):
    if pattern.endswith("/"):
        return any(fnmatch(part, pattern[:-1]) for part in path.parts[:-1])
    return fnmatch(path.name, pattern)


def _walk(folder):
    """Every file in `folder`, and every link to a folder, which is not followed; no content is left out."""
    for place, folders, names in os.walk(folder):
        place = Path(place)
        links = [name for name in folders if (place / name).is_symlink()]
        folders[:] = sorted(set(folders) - set(links))
        for name in folders[:]:
            if kind_of((place / name / "x").relative_to(folder).as_posix()) == NO_CONTENT:
                folders.remove(name)
        for path in (place / name for name in sorted(names + links)):
            if kind_of(path.relative_to(folder).as_posix()) != NO_CONTENT:
                yield path
