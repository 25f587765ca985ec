# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""The version, here alone: pyproject.toml reads it, and so does a clone in which nothing is installed."""

__version__ = "0.1.0"
