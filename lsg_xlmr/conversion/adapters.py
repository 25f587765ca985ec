# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""An adapter of peft in a source: merged into the weights it was trained on, or told why not."""

import os
import shutil
import tempfile
import warnings
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers.utils import is_peft_available

from .files import read_json
from .messages import first_sentence


CONFIG, WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
CLASSES = {
    "SEQ_CLS": "XLMRobertaForSequenceClassification",
    "TOKEN_CLS": "XLMRobertaForTokenClassification",
    "QUESTION_ANS": "XLMRobertaForQuestionAnswering",
    "CAUSAL_LM": "XLMRobertaForCausalLM",
    "FEATURE_EXTRACTION": "XLMRobertaModel",
}


class Adapter:
    """
    Args:
        folder (`Path`): with `adapter_config.json` and the adapter's weights.
        is_alone (`bool`): the model it was trained on is not in the same folder.

    Raises:
        ValueError: it cannot be merged into its model.
    """

    def __init__(self, folder, is_alone):
        self.folder, self.is_alone = folder, is_alone
        self.config = read_json(folder / CONFIG, dict)
        self.base_name = self.config.get("base_model_name_or_path")
        told = f"{str(folder)!r} holds an adapter of {self.base_name!r}"
        if is_alone and not (isinstance(self.base_name, str) and Path(self.base_name).is_dir()):
            raise ValueError(
                f"{told}, which is no folder here: load both with peft, call merge_and_unload, save the model and its "
                "tokenizer, and convert that."
            )
        if not is_peft_available():
            raise ValueError(
                f"{told}, and is merged into it by peft, which is not installed: pip install peft"
                + ("." if is_alone else f"; or, if the weights are whole without it, move {CONFIG} away.")
            )

    @property
    def base(self):
        """The folder (`Path`) of the model it was trained on."""
        return Path(self.base_name) if self.is_alone else self.folder

    @property
    def architecture(self):
        """The class it was trained with (`str`), if it says so."""
        mapping = self.config.get("auto_mapping")
        named = mapping.get("base_model_class") if isinstance(mapping, dict) else None
        return CLASSES.get(str(self.config.get("task_type")), named)

    @cached_property
    def weights(self):
        """Its tensors (`dict[str, torch.Tensor]`) by name."""
        path = next(self.folder / name for name in WEIGHTS if (self.folder / name).is_file())
        try:
            is_safe = path.suffix == ".safetensors"
            return load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # safetensors, pickle, zip and torch each raise their own
            raise ValueError(f"The adapter {str(path)!r} cannot be read: {first_sentence(error)}.") from error

    @property
    def num_labels(self):
        """How many labels (`int`) the head that it brings has; `None` if it brings none."""
        ends = ("classifier.out_proj.weight", "classifier.weight", "classifier.base_layer.weight")
        return next((len(tensor) for name, tensor in self.weights.items() if name.endswith(ends)), None)

    def brings(self, key):
        """Whether it holds the weight `key` of the model, which the model's own file then may lack."""
        return f"base_model.model.{key}" in self.weights

    def merged_into(self, model):
        """The `model`, whose weights become those it was fine-tuned to."""
        from peft import PeftModel, get_peft_model_state_dict

        where = f"The adapter in {str(self.folder)!r} cannot be merged into {type(model).__name__}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of peft about itself
                tuned = PeftModel.from_pretrained(model, self.folder)
            # By the names of the file; words that were trained with the adapter have their names in the model.
            state = {**tuned.state_dict(), **get_peft_model_state_dict(tuned, save_embedding_layers=False)}
            unread = sorted(
                name for name, tensor in self.weights.items() if name not in state or not _is_same(state[name], tensor)
            )
            model = tuned.merge_and_unload()
        except Exception as error:  # of peft, of whichever kind of adapter
            raise ValueError(f"{where}: {first_sentence(error)}.") from error
        if unread:
            raise ValueError(f"{where}: {unread[0]} has no place in it. Name the class it was trained with.")
        return model.requires_grad_(True)


def find_adapter(folder):
    """
    Returns:
        the [`Adapter`] in the `folder` (`Path`) or `None`; settings that are left over without weights are none.

    Raises:
        ValueError: there is one, and it cannot be merged.
    """
    if not (folder / CONFIG).is_file():
        return None
    is_alone = not (folder / "config.json").is_file()
    if not any((folder / name).is_file() for name in WEIGHTS):
        if is_alone:
            raise ValueError(f"{str(folder)!r} holds the settings of an adapter, but neither weights nor a model.")
        return None
    return Adapter(folder, is_alone)


def with_labels(config, num_labels):
    """A `config` (`dict`) of a model with the head that an adapter brings, if it does: of `num_labels`, unnamed."""
    if num_labels in (None, config.get("num_labels"), len(config.get("id2label") or "12")):
        return config
    config = {name: value for name, value in config.items() if name not in ("id2label", "label2id")}
    return {**config, "num_labels": num_labels}


@contextmanager
def without_adapter(folder):
    """A folder (`Path`) with the weights in `folder`, where transformers finds no adapter that it would load too."""
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        yield folder
        return
    with tempfile.TemporaryDirectory() as view:
        for pattern in ("model*.safetensors*", "pytorch_model*.bin*", "generation_config.json"):
            for path in folder.glob(pattern):
                try:
                    os.symlink(path.resolve(), Path(view, path.name))
                except OSError:  # a system that makes links for nobody
                    shutil.copyfile(path, Path(view, path.name))
        yield Path(view)


def _is_same(one, other):
    return one.shape == other.shape and torch.equal(one.to(other.dtype), other)
