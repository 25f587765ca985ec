# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Where a package is missing that only some examples need, the line that installs it."""

from contextlib import contextmanager


@contextmanager
def ecosystem():
    """Around imports of what the extra `ecosystem` installs; a missing package ends the example with one line."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error.name} is missing, which this example needs: pip install '.[ecosystem]'") from None
