# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Memory on CPU that is used again. Fresh memory comes page by page, each a fault."""

from functools import lru_cache

import torch


# Larger blocks glibc's malloc takes from the system each time, and gives back when they are freed.
LARGEST_REUSED_BYTES = 2**25 - 2**16


@lru_cache
def keep_freed_memory():
    """
    Let every layer use the memory of the one before; once a process is enough. glibc's malloc keeps freed memory only
    up to twice the largest block it has seen freed (mallopt(3), `M_MMAP_THRESHOLD`): so it is shown the largest that
    counts, which is never written to and so costs no memory. Elsewhere this does nothing.
    """
    torch.empty(LARGEST_REUSED_BYTES, dtype=torch.uint8, device="cpu")
