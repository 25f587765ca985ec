# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Dropout on CPU that spends one random byte an element: ten times quicker than `bernoulli_`."""

import torch
from torch import nn

from .plain import plain
from .threads import runs_in_pieces


# Below, torch's own dropout is quicker.
MIN_ELEMENTS = 2**13


def dropout_scale(probability):
    """What the elements that are kept are multiplied by to leave the mean as it was; 0 if none is kept."""
    return 1 / (1 - probability) if probability < 1 else 0.0


def draw_dropout(shape, probability):
    """
    What to drop, by torch's default CPU generator.

    A byte alone allows multiples of 1/256: so each row (of the last dimension) draws its threshold from the two next
    to `256 * probability`, with that as their mean, and every element is dropped with exactly `probability`.

    Args:
        shape (`torch.Size`): of what is dropped from.
        probability (`float`): of dropping.

    Returns:
        random bytes of `shape` (`torch.uint8`) and thresholds of shape `(*shape[:-1], 1)` (`torch.float32`), for
        [`kept_elements`].
    """
    size = shape.numel()
    random = torch.empty(-(-size // 8), dtype=torch.int64, device="cpu").random_(-(2**63), None)
    thresholds = torch.rand(*shape[:-1], 1, dtype=torch.float32, device="cpu").add_(256 * probability).floor_()
    return random.view(torch.uint8)[:size].view(shape), thresholds


def kept_elements(random, thresholds, out):
    """`out` (of the shape of `random`, any floating dtype) filled with 1 where an element is kept, else 0."""
    return out.copy_(random).ge_(thresholds)


@plain
class LSGDropout(nn.Dropout):
    """torch's dropout, drawn several times quicker on CPU; see [`draw_dropout`]."""

    def forward(self, input):
        """
        Args:
            input (`torch.Tensor`): of any shape and floating dtype.
        """
        # The size is asked last: traced, it would tie the graph to it.
        if not self.training or self.p == 0 or not runs_in_pieces(input) or input.numel() < MIN_ELEMENTS:
            return super().forward(input)
        kept = torch.empty_like(input, memory_format=torch.contiguous_format)
        kept_elements(*draw_dropout(input.shape, self.p), kept)
        return input * kept.mul_(dropout_scale(self.p))
