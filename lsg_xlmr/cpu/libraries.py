# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
Which library's products are the quickest on this CPU.

Torch takes MKL's, which keeps its best kernels for Intel's CPUs. oneDNN, which is in every torch, is quicker on
AMD's with AVX-512: 1.05 to 1.15 times on Zen 4, about twice on Zen 5. Which one serves is said by the CPU and not by
a trial: a trial beside a busy neighbour may end otherwise than the one before, and the same program would give other
bits.
"""

import re
from functools import lru_cache
from pathlib import Path

import torch


ZEN_5 = 26  # AMD's number of the family


@lru_cache
def prefers_onednn():
    """Whether oneDNN's products are the quicker ones on this CPU."""
    return (
        amd_family() is not None
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


@lru_cache
def amd_family():
    """AMD's number of the CPU's family (25 for Zen 4, 26 for Zen 5); `None` of others' CPUs, and off Linux."""
    path = Path("/proc/cpuinfo")
    match = re.search(r"AuthenticAMD\ncpu family\s*:\s*(\d+)", path.read_text() if path.exists() else "")
    return int(match[1]) if match else None
