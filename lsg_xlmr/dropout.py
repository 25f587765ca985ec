# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
Dropout on CPU that spends 16 random bits an element: several times quicker than `bernoulli_`, at a probability that
is a multiple of 2**-16.
"""

import torch


def dropout_scale(probability):
    """What the elements kept by [`draw_kept`] are multiplied by to leave the mean as it was; 0 if none is kept."""
    keep = 1 - round(probability * 2**16) / 2**16
    return 1 / keep if keep else 0.0


def draw_kept(kept, bits, probability):
    """
    Fill `kept` with 1 where an element is kept and 0 where it is dropped, by torch's default CPU generator.

    Args:
        kept (`torch.Tensor`): contiguous.
        bits (`torch.LongTensor` of shape `(ceil(kept.numel() / 4),)`): scratch.
        probability (`float`): of dropping, above 0.
    """
    bits.random_(-(2**63), None)
    bits = bits.view(torch.int16)[: kept.numel()].view(kept.shape)
    dropped = max(round(probability * 2**16), 1)  # of the 2**16 values of 16 bits
    return torch.gt(bits, dropped - 2**15 - 1, out=kept)
