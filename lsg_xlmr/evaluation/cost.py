# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""What a reading costs on this machine: seconds, and memory above what was there before."""

import ctypes
import time
from pathlib import Path


def timed(read):
    """`(read(), seconds)`."""
    start = time.perf_counter()
    found = read()
    return found, round(time.perf_counter() - start, 4)


def peak(read):
    """
    The MiB (`float`) that `read()` takes at most above what is in use before; None where the system does not tell:
    it takes Linux, and a C library that gives back what it keeps of freed memory.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
    except (OSError, AttributeError):
        before = None
    read()
    return None if before is None else round(_status("VmHWM") - before, 1)


def _status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))
