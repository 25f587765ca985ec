# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Fast on CPUs: threads that take whole pieces of work, dropout, and memory that is used again."""
