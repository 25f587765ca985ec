# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Where the parts of a source lie: its encoder, its tokenizer, and every file beside them."""

from contextlib import nullcontext
from functools import cached_property
from pathlib import Path

from huggingface_hub.utils import validate_repo_id

from .adapters import CONFIG, find_adapter
from .contents import CARRIED, LINKS, READ, TENSORS, is_left, kind_of, survey
from .files import check_links, check_shards, read_json, unchanged
from .hub import fetch
from .layouts import read_modules, takes_own_classes


class SourceFolder:
    """
    The folder of a checkpoint, or of what is fetched of it from the hub. What is asked of it is read at first need,
    and kept.

    Args:
        name_or_path (`str` or `Path`): its folder, or its name on the Hugging Face hub.
        token (`str`, *optional*): access token for the hub.

    Raises:
        ValueError: by every member that reads, where the source cannot be what it is asked to be.
    """

    def __init__(self, name_or_path, token=None):
        self.name, self.token = str(name_or_path), token

    @property
    def is_local(self):
        """Whether it is a folder of this machine."""
        return Path(self.name).is_dir()

    @property
    def folders(self):
        """The folders (`list[Path]`) of this machine that the user keeps it in."""
        if not self.is_local:
            return []
        sources = dict.fromkeys((self, self.base))
        return list(dict.fromkeys(folder for source in sources for folder in (source.root, source.part)))

    @cached_property
    def _fetched(self):
        """Its folder, and the names of all files of a model on the hub."""
        if self.is_local:
            return Path(self.name), []
        if not _may_be_on_the_hub(self.name):
            raise ValueError(
                f"There is no folder {self.name!r}. Name the folder of a checkpoint, or a model of the hub such as "
                "'FacebookAI/xlm-roberta-base'."
            )
        return fetch(self.name, self.token)

    @property
    def root(self):
        """The folder (`Path`) that is the whole of it; a hub model's in the cache, with what is taken of it."""
        return self._fetched[0]

    @cached_property
    def modules(self):
        """The modules (`list[dict]`) of a sentence-transformers model, the encoder first; none of any other."""
        return read_modules(self.root)

    @property
    def part(self):
        """The folder (`Path`) of the encoder: the root itself or, of an older sentence-transformers, one in it."""
        return self.root / self.modules[0]["path"] if self.modules else self.root

    @cached_property
    def adapter(self):
        """The [`Adapter`] that is merged into its weights, or `None`."""
        return find_adapter(self.part)

    @cached_property
    def base(self):
        """The source whose weights and configuration are converted: itself but for an adapter alone."""
        if self.adapter is None or not self.adapter.is_alone:
            return self
        base = type(self)(self.adapter.base_name, self.token)
        if (base.part / CONFIG).is_file():
            raise ValueError(
                f"{base.name!r}, of which {self.name!r} is an adapter, holds one itself: merge that first."
            )
        return base

    @property
    def encoder(self):
        """Where transformers finds the encoder (`str`): the folder itself, or another."""
        return str(self.base.part)

    @cached_property
    def files(self):
        """The root, when it is sure that nothing in it leads to a file of this machine that is not of it."""
        linked = [path for path, kind in self._own.values() if kind == LINKS and self._is_of_module(path)]
        check_links(
            self.root, [path for path, kind in self._own.values() if kind in (CARRIED, READ, TENSORS)] + linked
        )
        check_shards(Path(self.encoder))
        return self.root

    @cached_property
    def _own(self):
        return survey(self.part, self.root, self.module_folders)

    @property
    def contents(self):
        """
        Every file of it ([`SourceFile`]) by its name in the result; of the model that an adapter was trained on what
        belongs to the tokenizer, if that is taken from there.
        """
        if self.tokenizer_folder == self.part:
            return self._own
        taken = (
            (name, file)
            for name, file in self.base.contents.items()
            if file.kind == CARRIED or name == "tokenizer.json"
        )
        return {**dict(taken), **self._own}

    @property
    def not_fetched(self):
        """What each file of a hub model is (`dict[str, str]`) that is left there."""
        kinds = {name: kind_of(name, self.module_folders) for name in self._fetched[1]}
        return {name: kind for name, kind in kinds.items() if is_left(kind)}

    @property
    def tokenizer_folder(self):
        """The folder (`Path`) with its tokenizer."""
        has_own = any((self.part / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
        return self.part if has_own else Path(self.encoder)

    @property
    def is_embedder(self):
        """Whether it is the folder of a sentence-transformers model that needs no code of its own."""
        return bool(self.modules) and takes_own_classes(self.modules)

    @property
    def module_folders(self):
        """The folders (`list[str]`) of the modules that sentence-transformers has beside the encoder."""
        return [module["path"] for module in self.modules[1:] if module["path"]] if self.is_embedder else []

    @cached_property
    def sentence_settings(self):
        """What sentence-transformers knows of the encoder (`dict`), by whichever name of its file."""
        paths = (path for folder in (self.part, self.root) for path in sorted(folder.glob("sentence_*_config.json")))
        path = next(paths, None)
        return read_json(path, dict) if path else {}

    @cached_property
    def embedder_config(self):
        """What sentence-transformers knows of the whole (`dict`): prompts, similarity, and which class it is."""
        path = self.root / "config_sentence_transformers.json"
        return read_json(path, dict) if path.is_file() else {}

    def unchanged(self):
        """A context at whose end a file that has changed meanwhile is a `ValueError`."""
        return unchanged(self._paths) if self.is_local else nullcontext()

    def _paths(self):
        """The files that are read of it."""
        sources = dict.fromkeys((self, self.base))
        there = [survey(source.part, source.root, source.module_folders) for source in sources]
        return [path for files in there for path, kind in files.values() if not is_left(kind)]

    def _is_of_module(self, path):
        return path.relative_to(self.root).parts[0] in (*self.module_folders, "additional_chat_templates")


def _may_be_on_the_hub(name):
    if Path(name).exists():
        return False
    try:
        validate_repo_id(name)
    except ValueError:
        return False
    return True
