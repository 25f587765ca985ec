# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Which documents are read, in which order."""

import random

from tqdm import tqdm


def sample(head, documents, most, seed):
    """
    The documents in random order, those that are asked for first.

    Args:
        head ([`Head`]).
        documents (`list[Document]`).
        most (`int`): how many of those that the source cannot read whole are taken.
        seed (`int`).

    Returns:
        `tuple[list[LongText], int, int]`: what is read; how many documents were looked at for it, and how many of
        them the source reads whole.
    """
    documents = random.Random(seed).sample(documents, len(documents))
    if head.pairs is not None:
        documents.sort(key=lambda document: document.id not in head.pairs)
    items, looked_at, taken = [], 0, 0
    for document in tqdm(documents, desc="Documents", unit="", leave=False):
        if taken == most:
            break
        found = head.items(document)
        looked_at, taken = looked_at + 1, taken + bool(found)
        items += found
    return items, looked_at, looked_at - taken
