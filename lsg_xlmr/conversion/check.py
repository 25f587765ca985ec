# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Tries a converted checkpoint: every head on a short and a long input, and a filled mask before and after."""

import time

import torch
import transformers
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, XLMRobertaForMaskedLM

from ..configuration_lsg import LSGConfig
from ..model.modeling_lsg_xlm_roberta import LSGXLMRobertaForMaskedLM
from .messages import first_line


TEXT = "Paris is the {mask} of France."


def check_heads(folder):
    """
    Loads the checkpoint by each Auto class, with `trust_remote_code=True`, and runs it on a short input and on one of
    the greatest length. A head the checkpoint does not have gets random weights.

    Yields:
        `tuple[str, bool]`: a line that says what was done, and whether all was well.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    maximum = AutoConfig.from_pretrained(folder, trust_remote_code=True).max_sequence_length
    texts = ("Paris is the capital of France.", "Paris is the capital of France. " * maximum)
    inputs = [tokenizer(text, truncation=True, max_length=maximum, return_tensors="pt") for text in texts]
    for auto_class in LSGConfig.AUTO_MAP:
        if auto_class == "AutoConfig":
            continue
        try:
            yield f"{auto_class:<36}" + "   ".join(_run(auto_class, folder, inputs)), True
        except Exception as error:  # whatever it is, it is the finding
            yield f"{auto_class:<36}failed: {first_line(error)}", False


@torch.inference_mode()
def check_fill_mask(folder, source):
    """
    Fills a mask by the source ([`Source`]) and by the checkpoint in `folder`.

    Returns:
        `tuple[str, bool]`: see [`compared_words`].
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = TEXT.format(mask=tokenizer.mask_token)
    inputs = tokenizer(text, return_tensors="pt")
    probabilities = []
    for model in (_source_model(source), AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)):
        logits = model.eval()(**inputs).logits[inputs.input_ids == tokenizer.mask_token_id][0]
        probabilities.append(logits.float().softmax(-1))
    return compared_words(tokenizer, text, *probabilities)


def compared_words(tokenizer, text, before, after, names=("before", "after")):
    """
    Args:
        text (`str`): with a mask.
        before, after (`torch.Tensor` of shape `(vocab_size,)`): the words' probabilities in its place, by two models.
        names (`tuple[str, str]`): of the two.

    Returns:
        `tuple[str, bool]`: a line with both answers, and whether all is well: the first answer before is still the
        first, or at least half as probable as it was.
    """
    first, now = int(before.argmax()), int(after.argmax())
    line = f"{text}  {_word(tokenizer, first)} {before[first]:.3f} {names[0]}, {after[first]:.3f} {names[1]}"
    if now != first:
        line += f", when {_word(tokenizer, now)} {after[now]:.3f} is the first"
    return line, now == first or bool(after[first] >= before[first] / 2)


def _word(tokenizer, token_id):
    return repr(tokenizer.decode([token_id]).strip())


@torch.inference_mode()
def _run(auto_class, folder, inputs):
    model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True).eval()
    for tensors in inputs:
        length = tensors.input_ids.shape[1]
        if auto_class == "AutoModelForMultipleChoice":
            tensors = {name: tensor[:, None] for name, tensor in tensors.items()}
        started = time.perf_counter()
        output = model(**tensors)[0]
        seconds = time.perf_counter() - started
        if not output.isfinite().all():
            raise ValueError(f"not all outputs for {length} tokens are finite")
        yield f"{length} tokens {seconds:.2f} s"


def _source_model(source):
    model_class = LSGXLMRobertaForMaskedLM if source.is_lsg else XLMRobertaForMaskedLM
    config = source.config_as(model_class.config_class)
    return model_class.from_pretrained(source.encoder, config=config, token=source.token, dtype="auto")
