# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""What is asked of a model, whatever its head; and a long text as all of them take it."""

import zlib
from dataclasses import dataclass, field

import torch


@dataclass
class LongText:
    """A document that is longer than the source reads, as tokens: `<s> ... </s>`, cut to what the converted takes."""

    id: str
    input_ids: torch.Tensor  # (tokens,)
    prefix: int = 1  # tokens at its beginning that stand at that of every window
    extra: dict = field(default_factory=dict)  # what one head knows of it: labels, questions

    @property
    def seed(self):
        return zlib.crc32(self.id.encode())

    def beginning(self, length, values=None):
        """Its first `length` tokens with `</s>` at the end, or as many of the `values` of all tokens."""
        values = self.input_ids if values is None else values
        return torch.cat([values[: length - 1], values[-1:]])


def long_text(document, subject):
    """The `LongText` of a document; None if the source can read it whole."""
    ids = subject.encode(document.text)
    return LongText(document.id, torch.tensor(ids)) if len(ids) > subject.short else None


class Head:
    """
    What can be asked of one kind of model. A subclass says which long texts it takes (`item`), in which `Way`s the
    source reads them (`source_ways`), what is kept of a reading (`read`, a `dict` for JSON), and what all of it
    amounts to (`scores`).

    Args:
        subject ([`Subject`]): the source and its converted versions.
        documents (`list[Document]`).
        labels, pairs: see [`labels`] and [`pairs`]; None where the user gave none.
    """

    takes_labels = takes_pairs = False
    unit = "documents"
    kept = "the share of the answers to short texts that are the source's"
    changed = ""  # what follows where they are not

    def __init__(self, subject, documents, labels=None, pairs=None):
        self.subject, self.labels, self.pairs = subject, labels, pairs

    def ways(self):
        """Every `Way`, the most telling first: the source's first, the first converted, all others."""
        sources, converted = list(self.source_ways()), list(self.subject.converted_ways())
        return [sources[0], *converted[:1], *sources[1:], *converted[1:]]

    def items(self, document):
        """The long texts of a document: none, one, or one for each question."""
        item = self.item(document)
        return [] if item is None else [item]

    def questions(self, item):
        """How many questions an item stands for: what is counted in the end."""
        return 1

    def beside(self, model, item):
        """What else is asked of the model, and is no part of what the reading costs (`dict`)."""
        return {}

    def is_kept(self, before, after):
        """How many of the answers to a short text are as before, and of how many."""
        return sum(a == b for a, b in zip(before, after, strict=True)), len(before)

    def told(self):
        """What there is to say (`list[str]`) of how the model is asked."""
        return []

    def positions(self, measured):
        """By way, a value for each 512 tokens of the documents, if there is such a thing."""
        return {}
