# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Tries a converted checkpoint: whether it runs as users run it, and is still the source's function."""

import time
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer

from .answers import TEXT, question
from .architectures import ARCHITECTURES
from .comparison import Comparison
from .messages import first_line


def check_checkpoint(folder, source, **fields):
    """
    Tries what the checkpoint is, nothing else: its own head, loaded by its Auto class with `trust_remote_code=True`,
    on a short input and on one of the greatest length; and, for a sentence-transformers folder, where that is
    installed, `SentenceTransformer` on both.

    Then it is held against its source, see [`Comparison`].

    Args:
        folder (`str`): the converted checkpoint.
        source ([`Source`]): what was converted.
        fields: of the configuration, with which it was converted.

    Yields:
        `tuple[str, bool]`: a line that says what was done, and whether all was well.
    """
    name = "loading"
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        architecture = config.architectures[0]
        name = ARCHITECTURES[architecture][0]
        model = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        yield f"{name:<36}" + "   ".join(_run(model, tokenizer)), True
        if Path(folder, "modules.json").is_file() and find_spec("sentence_transformers"):
            name = "SentenceTransformer"
            yield f"{name:<36}" + "   ".join(_embed(folder, config.max_sequence_length)), True
        name = f"{source.architecture} before and after"
        comparison = Comparison(model, tokenizer, source, fields)
        del model  # one of the two at a time in memory
        yield comparison.finding(folder)
    except Exception as error:  # whatever it is, it is the finding
        yield f"{name:<35} failed: {first_line(error)}", False


@torch.inference_mode()
def _run(model, tokenizer):
    """Each of the two inputs, with its length and time."""
    maximum = model.config.max_sequence_length
    for repeated in (1, maximum):
        inputs = question(type(model).__name__, tokenizer, model.config, maximum, repeated)
        length = inputs["input_ids"].shape[-1]
        started = time.perf_counter()
        outputs = model(**inputs)
        seconds = time.perf_counter() - started
        if not all(x.isfinite().all() for x in outputs.values() if isinstance(x, torch.Tensor)):
            raise ValueError(f"not all outputs for {length} tokens are finite")
        yield f"{length} tokens {seconds:.2f} s"


def _embed(folder, maximum):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    for kind, text in (("short", TEXT), ("long", f"{TEXT} " * maximum)):
        started = time.perf_counter()
        vector = model.encode(text, convert_to_tensor=True, show_progress_bar=False)
        seconds = time.perf_counter() - started
        if not vector.isfinite().all():
            raise ValueError(f"not all of the vector of the {kind} text is finite")
        yield f"{kind} text {seconds:.2f} s"
