# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
What the labels of each head must be. Their values are looked at when a loss has failed, so that it costs nothing;
their shapes at all times: a loss of as many labels in another order is wrong, and nobody would see it.
"""

from functools import wraps
from inspect import signature

import torch
from transformers.utils.import_utils import is_tracing


LABELS = ("labels", "start_positions", "end_positions")


def explains_labels(wrong):
    """
    A decorator of a head's `forward`: an error within, or no loss or one of labels of another shape, becomes a
    `ValueError` that says what is wrong with the labels, where something is.

    Args:
        wrong (`Callable`): from the model, the shape of the input `(batch_size, ...)`, whether to look at values too,
            and the labels by name to what is wrong with them (`str`), or `None`.
    """

    def decorator(forward):
        arguments = signature(forward)

        @wraps(forward)
        def wrapper(self, *args, **kwargs):
            if is_tracing():
                return forward(self, *args, **kwargs)
            try:
                outputs = forward(self, *args, **kwargs)
            except Exception as error:
                _explain(wrong, self, arguments.bind_partial(self, *args, **kwargs).arguments, error)
                raise
            if args or not kwargs.keys().isdisjoint(LABELS):
                _explain(wrong, self, arguments.bind_partial(self, *args, **kwargs).arguments, None)
            return outputs

        return wrapper

    return decorator


def _explain(wrong, model, arguments, error):
    labels = {name: arguments[name] for name in LABELS if arguments.get(name) is not None}
    inputs = arguments.get("input_ids"), arguments.get("inputs_embeds")
    shapes = [x.shape[: x.ndim - dims] for x, dims in zip(inputs, (0, 1)) if isinstance(x, torch.Tensor)]
    if not labels or not shapes:
        return
    message = _no_tensors(labels) or wrong(model, tuple(shapes[0]), error is not None, **labels)
    if message is not None:
        raise ValueError(message) from error


def wrong_token_labels(model, shape, look, labels):
    """One class a token."""
    config = model.config
    has_words = model.get_output_embeddings() is not None
    return _wrong_classes("labels", labels, shape, look and (config.vocab_size if has_words else config.num_labels))


def wrong_text_labels(model, shape, look, labels):
    """Of sequence classification, by `config.problem_type`."""
    number, batch_size = model.config.num_labels, shape[0]
    kind = model.config.problem_type
    if kind not in (None, "regression", "single_label_classification", "multi_label_classification"):
        return (
            f"`config.problem_type` is {kind!r}, and must be regression, single_label_classification or "
            "multi_label_classification."
        )
    if kind == "regression" or (kind is None and number == 1):
        allowed = [(batch_size,), (batch_size, 1)] if number == 1 else [(batch_size, number)]
        return _wrong_shape("labels", labels, allowed)
    if kind == "single_label_classification" or (kind is None and labels.dtype in (torch.int64, torch.int32)):
        return _wrong_classes("labels", labels, (batch_size,), look and number)
    if not labels.is_floating_point():
        return f"`labels` of several classes a text must be floats, 1 for each class it has, got {labels.dtype}."
    return _wrong_shape("labels", labels, [(batch_size, number)])


def wrong_choices(model, shape, look, labels):
    """Which of the choices is right."""
    if len(shape) != 3:
        return f"The input must be of shape (batch_size, num_choices, sequence_length), got {shape}."
    return _wrong_classes("labels", labels, (shape[0],), look and shape[1])


def wrong_answers(model, shape, look, start_positions=None, end_positions=None):
    """Where an answer begins and ends; outside of the text is nowhere."""
    if start_positions is None or end_positions is None:
        return "`start_positions` and `end_positions` must be given both."
    of_text = (shape[0],)
    return _wrong_classes("start_positions", start_positions, of_text) or _wrong_classes(
        "end_positions", end_positions, of_text
    )


def _no_tensors(labels):
    for name, value in labels.items():
        if not isinstance(value, torch.Tensor):
            return f"`{name}` must be a torch.Tensor, got {type(value).__name__}."


def _wrong_classes(name, labels, shape, number=None):
    """Of labels that are numbers from 0 to `number`, where that is given, or -100 for none."""
    if labels.dtype != torch.int64:
        return f"`{name}` must be int64, got {labels.dtype}."
    wrong = _wrong_shape(name, labels, [shape, (*shape, 1)])
    if wrong or not number:
        return wrong
    outside = labels[((labels < 0) & (labels != -100)) | (labels >= number)]
    if outside.numel():
        return f"`{name}` holds {outside[0].item()}, and must be from 0 to {number - 1}, or -100 where there is none."


def _wrong_shape(name, labels, shapes):
    if tuple(labels.shape) not in shapes:
        return f"`{name}` must be of shape {shapes[0]}, got {tuple(labels.shape)}."
