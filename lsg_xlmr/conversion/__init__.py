# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""From a checkpoint as it is found to the folder of an LSG checkpoint."""

from .architectures import ARCHITECTURES
from .converter import LSGConverter
from .source import Source
from .tables import draw_like, spread_positions, tile_positions


__all__ = ["ARCHITECTURES", "LSGConverter", "Source", "draw_like", "spread_positions", "tile_positions"]
