# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
Losses of a batch that comes in parts: by gradient accumulation or on several processes.

`Trainer` then gives every part `num_items_in_batch`, the number of labels of the whole batch, and expects the part's
share of the loss: the sum over its labels, divided by that number. The stock heads take the argument and return the
mean over the part all the same, and the sum of the parts is as many times too high as there are parts.
"""

from functools import wraps

from transformers.loss.loss_utils import fixed_cross_entropy
from transformers.utils import can_return_tuple

from .labels import LABELS, explains_labels


def of_whole_batch(forward, share, wrong_labels):
    """
    A head's `forward` that heeds `num_items_in_batch`, and says what is wrong with labels. Otherwise nothing changes.

    Args:
        forward (`Callable`): of a stock head.
        share (`Callable`): from the model, its outputs without a loss, the number and the labels to the loss.
        wrong_labels (`Callable`): see [`explains_labels`].
    """

    @explains_labels(wrong_labels)
    @wraps(forward)
    @can_return_tuple
    def wrapper(self, *args, num_items_in_batch=None, **kwargs):
        # The stock heads cannot take a part of a larger tensor.
        labels = {name: kwargs.pop(name).contiguous() for name in LABELS if kwargs.get(name) is not None}
        if num_items_in_batch is None or not labels:
            return forward(self, *args, return_dict=True, **labels, **kwargs)
        outputs = forward(self, *args, return_dict=True, **kwargs)
        return type(outputs)(loss=share(self, outputs, num_items_in_batch, **labels), **outputs)

    return wrapper


def cross_entropy(model, outputs, num_items_in_batch, labels):
    """Of `logits` (`... classes`) and `labels` (`...`, int64, -100 where there is none)."""
    logits = outputs.logits
    labels = labels.to(logits.device).view(-1)
    return fixed_cross_entropy(logits.view(-1, logits.shape[-1]), labels, num_items_in_batch)


def sequence_classification_loss(model, outputs, num_items_in_batch, labels):
    """Of one label a text (int64: cross-entropy, float: squared error) or several (float: binary cross-entropy)."""
    config = model.config
    loss = model.loss_function(labels, outputs.logits, config, num_items_in_batch=num_items_in_batch)
    if config.problem_type != "single_label_classification":  # transformers' is the mean here, whatever the number
        loss = loss * labels.numel() / num_items_in_batch
    return loss


def question_answering_loss(model, outputs, num_items_in_batch, start_positions, end_positions):
    """The mean of the cross-entropies of both ends of the answer."""
    logits = outputs.start_logits, outputs.end_logits
    return model.loss_function(*logits, start_positions, end_positions, num_items_in_batch=num_items_in_batch)
