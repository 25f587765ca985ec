# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""What labels must be: asked when a loss has failed, so that it costs nothing and stands in no other loss's way."""

from functools import wraps

import torch
from transformers.utils.import_utils import is_tracing


LABELS = ("labels", "start_positions", "end_positions")


def explains_labels(wrong):
    """
    A decorator of a head's `forward`: an error within, or no loss where there are labels, becomes a `ValueError` that
    says what is wrong with the labels, where something is.

    Args:
        wrong (`Callable`): from the model, the shape of the input `(batch_size, ...)` and the labels by name to what
            is wrong with them (`str`), or `None`.
    """

    def decorator(forward):
        @wraps(forward)
        def wrapper(self, *args, **kwargs):
            try:
                outputs = forward(self, *args, **kwargs)
            except Exception as error:
                _explain(wrong, self, args, kwargs, error)
                raise
            if getattr(outputs, "loss", outputs) is None:
                _explain(wrong, self, args, kwargs, None)
            return outputs

        return wrapper

    return decorator


def _explain(wrong, model, args, kwargs, error):
    labels = {name: kwargs[name] for name in LABELS if kwargs.get(name) is not None}
    inputs = kwargs.get("input_ids", args[0] if args else None), kwargs.get("inputs_embeds")
    shapes = [x.shape[: x.ndim - dims] for x, dims in zip(inputs, (0, 1)) if isinstance(x, torch.Tensor)]
    if is_tracing() or not labels or not shapes:
        return
    message = _no_tensors(labels) or wrong(model, tuple(shapes[0]), **labels)
    if message is not None:
        raise ValueError(message) from error


def wrong_token_labels(model, shape, labels):
    """One class a token."""
    config = model.config
    has_words = model.get_output_embeddings() is not None
    return _wrong_classes("labels", labels, shape, config.vocab_size if has_words else config.num_labels)


def wrong_text_labels(model, shape, labels):
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
        return _wrong_classes("labels", labels, (batch_size,), number)
    if not labels.is_floating_point():
        return f"`labels` of several classes a text must be floats, 1 for each class it has, got {labels.dtype}."
    return _wrong_shape("labels", labels, [(batch_size, number)])


def wrong_choices(model, shape, labels):
    """Which of the choices is right."""
    if len(shape) != 3:
        return f"The input must be of shape (batch_size, num_choices, sequence_length), got {shape}."
    return _wrong_classes("labels", labels, (shape[0],), shape[1])


def wrong_answers(model, shape, start_positions=None, end_positions=None):
    """Where an answer begins and ends; outside of the text is nowhere."""
    if start_positions is None or end_positions is None:
        return "`start_positions` and `end_positions` must be given both."
    return _wrong_classes("start_positions", start_positions, (shape[0],), None) or _wrong_classes(
        "end_positions", end_positions, (shape[0],), None
    )


def _no_tensors(labels):
    for name, value in labels.items():
        if not isinstance(value, torch.Tensor):
            return f"`{name}` must be a torch.Tensor, got {type(value).__name__}."


def _wrong_classes(name, labels, shape, number):
    """Of labels that are numbers from 0 to `number`, or -100 for none."""
    if labels.dtype != torch.int64:
        return f"`{name}` must be int64, got {labels.dtype}."
    wrong = _wrong_shape(name, labels, [shape, (*shape, 1)])
    if wrong or number is None:
        return wrong
    outside = labels[((labels < 0) & (labels != -100)) | (labels >= number)]
    if outside.numel():
        return f"`{name}` holds {outside[0].item()}, and must be from 0 to {number - 1}, or -100 where there is none."


def _wrong_shape(name, labels, shapes):
    if tuple(labels.shape) not in shapes:
        return f"`{name}` must be of shape {shapes[0]}, got {tuple(labels.shape)}."
