# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""ONNX files of an LSG checkpoint. The packages that they take are asked for only when one is written."""

from .export import export_onnx


__all__ = ["export_onnx"]
