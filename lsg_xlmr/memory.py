# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Memory on CPU: work piece by piece, in memory that is used again. Fresh memory comes page by page, each a fault."""

from functools import lru_cache

import torch
from transformers.utils.import_utils import is_tracing


# Where a loop over pieces is no slower than one big operation, and spares its memory.
BLOCKWISE_DEVICES = ("cpu",)
# Larger blocks glibc's malloc takes from the system each time, and gives back when they are freed.
LARGEST_REUSED_BYTES = 2**25 - 2**16


def runs_blockwise(x):
    """Whether work on `x` (`torch.Tensor`) is best done piece by piece."""
    return x.device.type in BLOCKWISE_DEVICES and not is_tracing(x)


@lru_cache
def keep_freed_memory():
    """
    Let every layer use the memory of the one before; once a process is enough. glibc's malloc keeps freed memory only
    up to twice the largest block it has seen freed (mallopt(3), `M_MMAP_THRESHOLD`): so it is shown the largest that
    counts, which is never written to and so costs no memory. Elsewhere this does nothing.
    """
    torch.empty(LARGEST_REUSED_BYTES, dtype=torch.uint8, device="cpu")


def in_pieces(function, width, *states):
    """
    `function` of `states` (each `(batch_size, length, hidden_size)`), which treats every position by itself; `width`
    is that of its widest tensor. On CPU and without gradients it runs some positions at a time.
    """
    if torch.is_grad_enabled() or not runs_blockwise(states[0]):
        return function(*states)
    num_bytes = states[0].shape[:2].numel() * width * states[0].element_size()
    num_pieces = -(-num_bytes // LARGEST_REUSED_BYTES)
    if num_pieces <= 1:
        return function(*states)
    pieces = zip(*(x.flatten(0, 1).tensor_split(num_pieces) for x in states))
    return torch.cat([function(*piece) for piece in pieces]).view_as(states[0])
