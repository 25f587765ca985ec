# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""LSG attention from queries, keys, values and a mask to the context: the pattern, and its implementations."""
