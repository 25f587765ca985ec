# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""What a head is asked, and what it says, in words: one model's answer beside another's."""

import json
from pathlib import Path

from torch.nn.functional import cosine_similarity


TEXT = "Paris is the capital of France."
QUESTION = "What is the capital of France?"


def masked_text(tokenizer):
    """[`TEXT`] with a mask in it, where the tokenizer has one."""
    return TEXT.replace("capital", tokenizer.mask_token or "capital")


def question(architecture, tokenizer, config, maximum, repeated=1):
    """
    Args:
        architecture (`str`): name of the model's class.
        config: of the model.
        maximum (`int`): length in tokens at which the input is cut.
        repeated (`int`): how often the text comes after itself.

    Returns:
        `dict[str, torch.Tensor]`: what the model takes, a batch of one.
    """
    text = masked_text(tokenizer) if architecture.endswith("MaskedLM") else TEXT
    texts = [[" ".join([text] * repeated)]]
    if architecture.endswith("QuestionAnswering") or _is_score(architecture, config):
        texts = [[QUESTION], *texts]
    if architecture.endswith("MultipleChoice"):
        texts = [[QUESTION] * 2, [*texts[0], QUESTION]]
    inputs = dict(tokenizer(*texts, truncation=True, max_length=maximum, padding=True, return_tensors="pt"))
    if architecture.endswith("MultipleChoice"):
        inputs = {name: tensor[None] for name, tensor in inputs.items()}  # n choices t
    return inputs


def compared(architecture, tokenizer, config, inputs, before, after):
    """
    Args:
        architecture, tokenizer, config: of both models, see [`question`].
        inputs (`dict[str, torch.Tensor]`): what both were given, by [`question`].
        before, after (`dict[str, torch.Tensor]`): the outputs of one and of the other.

    Returns:
        `str`: both answers.
    """
    ids = inputs["input_ids"][0]
    if architecture.endswith(("MaskedLM", "CausalLM")):
        place = -2 if architecture.endswith("CausalLM") else mask_place(tokenizer, ids)  # before </s>
        words = (outputs["logits"][0, place].softmax(-1) for outputs in (before, after))
        asked = masked_text(tokenizer) if architecture.endswith("MaskedLM") else f"{TEXT} ..."
        return compared_words(tokenizer, asked, *words)[0]
    if architecture.endswith("QuestionAnswering"):
        return "{}  {!r} before, {!r} after".format(QUESTION, *(_span(tokenizer, ids, x) for x in (before, after)))
    if architecture.endswith("MultipleChoice"):
        names = [f"choice {i + 1}" for i in range(inputs["input_ids"].shape[1])]
        return _first(QUESTION, names, *(x["logits"][0].softmax(-1) for x in (before, after)))
    before, after = before["logits"][0], after["logits"][0]
    labels = [repr(config.id2label[i]) for i in range(before.shape[-1])]
    if _is_score(architecture, config) or config.problem_type == "regression":
        return _first(TEXT, ["score" if len(labels) == 1 else name for name in labels], before, after)
    if architecture.endswith("SequenceClassification"):
        is_multi_label = config.problem_type == "multi_label_classification"
        return _first(TEXT, labels, *(x.sigmoid() if is_multi_label else x.softmax(-1) for x in (before, after)))
    same = int((before.argmax(-1) == after.argmax(-1)).sum())
    first = _first(_word(tokenizer, ids[1]), labels, before[1].softmax(-1), after[1].softmax(-1))
    return f"{TEXT}  {same} of {len(ids)} labels as before; {first}"


def compared_words(tokenizer, text, before, after, names=("before", "after")):
    """
    Args:
        text (`str`): what was asked.
        before, after (`torch.Tensor` of shape `(vocab_size,)`): the words' probabilities, by two models.
        names (`tuple[str, str]`): of the two.

    Returns:
        `tuple[str, bool]`: a line with both answers, and whether they are alike: the first answer before is still the
        first, or at least half as probable as it was.
    """
    first, now = int(before.argmax()), int(after.argmax())
    words = {token_id: _word(tokenizer, token_id) for token_id in (first, now)}
    return _first(text, words, before, after, names), now == first or bool(after[first] >= before[first] / 2)


def compared_vectors(folder, before, after):
    """
    Args:
        folder (`str`): with `1_Pooling`, where it is an embedder.
        before, after (`torch.Tensor` of shape `(1, length, hidden_size)`): hidden states of two models.

    Returns:
        `str`: the cosine of the text's two vectors.
    """
    path = Path(folder, "1_Pooling", "config.json")
    pooling = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    is_first = pooling.get("pooling_mode_cls_token") or pooling.get("pooling_mode") == "cls"
    before, after = (states[0, 0] if is_first else states[0].mean(0) for states in (before, after))
    name = "first tokens" if is_first else "mean vectors"
    return f"{TEXT}  {name} before and after have cosine {cosine_similarity(before, after, 0):.3f}"


def mask_place(tokenizer, ids):
    """Where the mask is among `ids`, `(length,)`; the first word where the tokenizer has none."""
    places = (ids == tokenizer.mask_token_id).nonzero() if tokenizer.mask_token_id is not None else ()
    return int(places[0]) if len(places) else 1


def _is_score(architecture, config):
    """Whether the model gives one number, as those that hold a passage against a question do."""
    return architecture.endswith("SequenceClassification") and config.num_labels == 1


def _first(asked, answers, before, after, names=("before", "after")):
    """The greatest of `answers` before, what it is after, and which is the greatest then."""
    first, now = int(before.argmax()), int(after.argmax())
    line = f"{asked}  {answers[first]} {before[first]:.3f} {names[0]}, {after[first]:.3f} {names[1]}"
    return line if now == first else f"{line}, when {answers[now]} {after[now]:.3f} is the first"


def _span(tokenizer, ids, outputs):
    start = int(outputs["start_logits"][0].argmax())
    return tokenizer.decode(ids[start : start + 1 + int(outputs["end_logits"][0, start:].argmax())]).strip()


def _word(tokenizer, token_id):
    return repr(tokenizer.decode([int(token_id)]).strip())
