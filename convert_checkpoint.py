# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Converts a checkpoint from a clone in which nothing is installed: `python convert_checkpoint.py --help`."""

import sys

from lsg_xlmr.cli import main


if __name__ == "__main__":
    sys.exit(main())
