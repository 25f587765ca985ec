# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""XLM-RoBERTa with LSG attention: transformers' own models with other embeddings and another encoder."""
