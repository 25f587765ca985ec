# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Writes the ONNX files of an LSG checkpoint. The packages that it takes are asked for only here."""

import logging
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoTokenizer

from ..conversion import ARCHITECTURES, Source
from ..conversion.messages import quiet_transformers
from ..conversion.model_card import with_onnx_section
from ..conversion.new_folder import ONNX_FILES, new_folder


# As optimum and transformers.js name them; sentence-transformers and fastembed take a file's name.
FILE, INT8_FILE, FLOAT16_FILE = "model.onnx", "model_quantized.onnx", "model_fp16.onnx"
FILES = {"float32": FILE, "int8": INT8_FILE, "float16": FLOAT16_FILE}
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET, MIN_OPSET = 20, 18
FLOAT16_OPSET = 22  # ONNX Runtime before 1.21, which does not open it, gives wrong numbers in float16
MAX_DIFFERENCE = 1e-4
MAX_BYTES = 2**31 - 2**24  # of weights in a protobuf file, which leaves room for the graph


@dataclass(frozen=True)
class OnnxReport:
    """
    What was measured of the files, see [`Trials`].

    Args:
        difference (`float`): the greatest between the answers of `model.onnx` and the model's.
        int8_cosine (`float`, *optional*): the mean between the answers of `model_quantized.onnx` and the model's.
        float16_cosine (`float`, *optional*): the same of `model_fp16.onnx`.
    """

    difference: float
    int8_cosine: float | None = None
    float16_cosine: float | None = None


def export_onnx(folder, int8=False, overwrite=False, opset_version=OPSET, *, float16=False, logits="masks"):
    """
    Write `onnx/model.onnx` into the folder of an LSG checkpoint. Its inputs are `input_ids`, `attention_mask` and, for
    a tokenizer such as BERT's, `token_type_ids`, each `(batch, length)` int64, of any size up to the model's length
    and padded anyhow, its outputs named as the model's. It opens in ONNX Runtime without torch, transformers and
    `trust_remote_code`, and in OpenVINO and transformers.js. The `logits` of a masked LM are those of the masks, in
    the order in which they stand in the batch: `(masks, vocab_size)`.

    The answers are held against PyTorch's before anything is there; the folder's README.md tells of the files.

    Args:
        folder (`str` or `Path`): an LSG checkpoint, as `lsg-convert` or `save_pretrained` writes it.
        int8 (`bool`, defaults to `False`): write `onnx/model_quantized.onnx` too, whose weights have 8 bits.
        overwrite (`bool`, defaults to `False`): replace `onnx/` if it is there.
        opset_version (`int`, defaults to 20): version of ONNX's operators; 20 takes ONNX Runtime 1.17 or newer.
        float16 (`bool`, defaults to `False`): write `onnx/model_fp16.onnx` too, which computes in float16, for GPUs.
            Its answers are float32. It takes ONNX Runtime 1.21 or newer.
        logits (`str`, defaults to `"masks"`): `"all"` for the logits of a masked LM at every position, `(batch,
            length, vocab_size)`, as pipelines that know nothing of LSG expect them.

    Returns:
        [`OnnxReport`].

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is not installed.
        ValueError: the folder is no LSG checkpoint or that of a decoder, `onnx/` is there already, `opset_version` is
            too old, `logits` does not go with the model's class, or the file does not give the model's answers.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"There is no folder {str(folder)!r}: name that of an LSG checkpoint.")
    if not Source(folder).is_lsg:
        raise ValueError(f"{str(folder)!r} is a checkpoint without LSG attention: convert it first, by lsg-convert.")
    with new_folder(folder / "onnx", overwrite, replaceable=ONNX_FILES) as new:
        report = write_onnx(folder, new, int8, opset_version, float16, logits)
    card, new_card = folder / "README.md", folder / ".README.md.new"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    new_card.write_text(with_onnx_section(text, report), encoding="utf-8")
    os.replace(new_card, card)
    return report


def require_onnx():
    """
    Raises:
        ImportError: a package that writes or runs ONNX files is missing, or torch is too old.
    """
    if not hasattr(torch.onnx, "ops"):
        raise ImportError(f"ONNX files need torch 2.8 or newer, and this is {torch.__version__}: pip install -U torch")
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"ONNX files need {', '.join(missing)}, to be installed by: pip install {' '.join(PACKAGES)}"
        )


def write_onnx(folder, target, int8=False, opset_version=OPSET, float16=False, logits="masks"):
    """
    The files that [`export_onnx`] describes, of the checkpoint in `folder`, into the folder `target`, which exists.

    Returns:
        [`OnnxReport`].
    """
    require_onnx()
    if not isinstance(opset_version, int) or opset_version < MIN_OPSET:
        raise ValueError(
            f"opset_version must be an int of at least {MIN_OPSET}, got {opset_version!r}; {OPSET} would do."
        )
    from .check import Trials
    from .graph import input_names, onnx_model

    model, tokenizer = _load(folder), AutoTokenizer.from_pretrained(folder)
    mask_token_id, inputs = _mask_token_id(model, tokenizer, logits), input_names(model.config, tokenizer)
    trials = Trials(model, tokenizer, tokenizer.mask_token_id or 0)
    has_own_file = save(onnx_model(model, mask_token_id, opset_version, inputs), target / FILE)
    del model
    difference = trials.difference(target / FILE)
    if not difference <= MAX_DIFFERENCE:  # NaN is not
        raise ValueError(
            f"The answers of the ONNX file differ from the model's by {difference:.1e} of the greatest, more than "
            f"{MAX_DIFFERENCE:.0e}: it is not written."
        )
    int8_cosine = float16_cosine = None
    if int8:
        quantize(target, has_own_file)
        int8_cosine = trials.cosine(target / INT8_FILE)
    if float16:
        opset_version = max(opset_version, FLOAT16_OPSET)
        save(onnx_model(_load(folder).half(), mask_token_id, opset_version, inputs), target / FLOAT16_FILE)
        float16_cosine = trials.cosine(target / FLOAT16_FILE)
    return OnnxReport(difference, int8_cosine, float16_cosine)


def _mask_token_id(model, tokenizer, logits):
    """Where a masked LM's graph answers; `None` for everywhere, as those of other heads do."""
    is_masked_lm = type(model).__name__ == "LSGXLMRobertaForMaskedLM"
    if logits not in ("masks", "all"):
        raise ValueError(f"logits must be 'masks' or 'all', got {logits!r}.")
    if logits == "all" and not is_masked_lm:
        raise ValueError(
            f"logits='all' is for a masked LM, and this is a {type(model).__name__}, whose answers are whole anyway: "
            "leave it out."
        )
    if logits == "all" or not is_masked_lm:
        return None
    if tokenizer.mask_token_id is None:
        raise ValueError(
            "The ONNX file of a masked LM answers where the masks are, and the tokenizer has no mask_token: name it "
            "in tokenizer_config.json, or ask for the logits of all tokens (--logits all)."
        )
    return tokenizer.mask_token_id


def _load(folder):
    name = Source(folder).architecture
    if name not in ARCHITECTURES:
        raise ValueError(f"config.json names no LSG class but {name!r}; it may be one of {', '.join(ARCHITECTURES)}.")
    with quiet_transformers():
        model = ARCHITECTURES[name][1].from_pretrained(folder, dtype=torch.float32).eval()
    if model.config.is_decoder:
        raise ValueError(f"{str(folder)!r} is a decoder (is_decoder=True): its ONNX file would have no cache.")
    return model


def save(graph, path):
    """
    Write `graph` (`onnx_ir.Model`) to `path`; weights too large for it to a file beside it, named as optimum names it.

    Returns:
        `bool`: whether they have that file of their own.
    """
    import onnx_ir

    has_own_file = sum(x.const_value.nbytes for x in graph.graph.initializers.values()) > MAX_BYTES
    onnx_ir.save(graph, path, external_data=f"{path.name}_data" if has_own_file else None)
    return has_own_file


def quantize(target, has_own_file):
    """
    Quantize the weights of `model.onnx` in the folder `target` to 8 bits, to `model_quantized.onnx`. Activations are
    quantized when it runs. Seven of the eight bits are used, or CPUs without VNNI instructions would overflow.

    Args:
        has_own_file (`bool`): what [`save`] returned.
    """
    import onnx_ir
    from onnxruntime.quantization import quantize_dynamic

    logging.disable(logging.WARNING)  # it advises a pass that has nothing to do here
    try:
        quantize_dynamic(
            target / FILE,
            target / INT8_FILE,
            per_channel=True,
            reduce_range=True,
            use_external_data_format=has_own_file,
        )
    finally:
        logging.disable(logging.NOTSET)
    # It puts nodes at the end that others, before them, take from.
    graph = onnx_ir.load(target / INT8_FILE)
    graph.graph.sort()
    onnx_ir.save(graph, target / INT8_FILE)
