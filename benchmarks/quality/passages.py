"""Passages of documents: lists of token ids cut to a length."""

import random
import re

import torch
from corpus import HEADING


SKIPPED = 0.15  # share of a page left out at its beginning, which names it in every language alike
NAMED = re.compile(r"/|\(\d\w*\)")  # a path, or a page of the manual with its section


def body(document):
    """The words of `document` without its headings, paths and names of pages, which tell what it is."""
    words = zip(document.text.split(" "), document.tags, strict=True)
    return " ".join(word for word, tag in words if tag != HEADING and not NAMED.search(word))


def passage(values, start, length, edges):
    """`length` values at most of the list `values` from `start`, the two `edges` included; `torch.LongTensor`."""
    return torch.tensor([edges[0], *values[start : start + length - 2], edges[1]])


def random_starts(contents, length, count, seed):
    """`[(i, start)]` of `count` passages of exactly `length` tokens, of the `contents[i]` in turn, from anywhere."""
    rng = random.Random(seed)
    long = [i for i, ids in enumerate(contents) if len(ids) >= length - 2]
    chosen = []
    while len(chosen) < count:
        rng.shuffle(long)
        chosen += long
    return [(i, rng.randrange(len(contents[i]) - length + 3)) for i in chosen[:count]]
