# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""A source on the Hugging Face hub: what a conversion takes of it is fetched, and the rest is known by name."""

import glob
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache

from .contents import CARRIED, READ, TENSORS, WEIGHTS, kind_of
from .layouts import MODULE_FOLDER
from .messages import first_line


# Weights, by what tells that they are there, in the order in which transformers looks.
FORMS = (
    ("model.safetensors",),
    ("model.safetensors.index.json", "model-*.safetensors"),
    ("pytorch_model.bin",),
    ("pytorch_model.bin.index.json", "pytorch_model-*.bin"),
)


def fetch(name, token=None):
    """
    Args:
        name (`str`): of a model on the hub.
        token (`str`, *optional*): access token.

    Returns:
        `tuple[Path, list[str]]`: the folder, in the cache, with all of it that is read or carried, and the names of
        all its files. Of weights that are there in several forms one is fetched.

    Raises:
        ValueError: the hub does not give it.
    """
    try:
        info = HfApi(token=token).model_info(name)
        names = [file.rfilename for file in info.siblings or ()]
        wanted = [glob.escape(file) for file in _wanted(names)]
        # By no revision, so that the cache knows it as the newest where there is no net.
        return Path(snapshot_download(name, token=token, allow_patterns=wanted)), names
    except Exception as error:  # of huggingface_hub, or of the client of whichever version
        cached = (
            try_to_load_from_cache(name, file) for file in ("config.json", "modules.json", "adapter_config.json")
        )
        folder = next((Path(path).parent for path in cached if isinstance(path, str)), None)
        if folder is None:
            raise ValueError(
                f"{name!r} is neither a folder here nor a model the hub gives (a private one takes --token): "
                f"{first_line(error)}"
            ) from error
        return folder, [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _wanted(names):
    for name in names:
        folder, _, file = name.rpartition("/")
        top = name.split("/")[0]
        # modules.json is not read yet: a folder of its kind may be a module's or the encoder's.
        is_module = MODULE_FOLDER.fullmatch(top)
        kinds = {kind_of(name, {top})} | ({kind_of(file)} if is_module and folder == top else set())
        if not kinds & {WEIGHTS, READ, CARRIED, TENSORS}:
            continue
        there = {other.rpartition("/")[2] for other in names if other.rpartition("/")[0] == folder}
        if WEIGHTS not in kinds or _is_of_best_form(file, there):
            yield name


def _is_of_best_form(file, there):
    """Whether `file` is of the weights that transformers reads, of all files that are `there` beside it."""
    best = next((form for form in FORMS if form[0] in there), ())
    return any(fnmatch(file, pattern) for pattern in best)
