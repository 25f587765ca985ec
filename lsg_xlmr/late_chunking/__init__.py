# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Late chunking: several vectors of a text that is read in one pass."""

from .chunks import LateChunks, late_chunks


__all__ = ["LateChunks", "late_chunks"]
