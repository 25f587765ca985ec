# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""`python -m lsg_xlmr` converts a checkpoint."""

import sys

from .cli import main


sys.exit(main())
