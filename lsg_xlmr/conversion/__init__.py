# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""From a checkpoint as it is found to the folder of an LSG checkpoint."""

from .converter import ARCHITECTURES, LSGConverter, draw_like, spread_positions, tile_positions


__all__ = ["ARCHITECTURES", "LSGConverter", "draw_like", "spread_positions", "tile_positions"]
