# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Does conversion help, and with which settings? The ways to read long documents, measured beside each other."""
