# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Which documents are read, in which order."""

import random
from dataclasses import dataclass, field

from tqdm import tqdm

from .documents import Corpus, counted
from .head import Head


@dataclass
class Sample:
    """The documents that were looked at (`list[Document]`), and what is read of them (`list[LongText]`)."""

    head: Head
    corpus: Corpus
    seed: int
    items: list = field(default_factory=list)
    looked_at: list = field(default_factory=list)
    whole: list = field(default_factory=list)  # those of them that the source reads as it is

    @property
    def questions(self):
        """How many questions the items stand for; 0 where nothing can be measured."""
        return sum(map(self.head.questions, self.items))

    def nothing(self):
        """
        What there is to say (`str`) where there are no questions.

        Raises:
            ValueError: it is for want of questions, and the documents are long.
        """
        head = self.head
        if self.items and head.pairs is None:
            raise ValueError(
                f"No paragraph can be taken out of {counted(len(self.items), 'long documents')} to be asked for: give "
                "questions by --pairs."
            )
        count, asked = len(self.looked_at), ""
        if head.pairs is not None:
            count, asked = sum(document.id in head.pairs for document in self.looked_at), " that --pairs asks for"
        return (
            f"Of {counted(count, 'documents')}{asked} none has more than the {head.subject.short} tokens that "
            f"{head.subject.name} reads as it is: conversion gains nothing there. Keep the source."
        )

    def told(self):
        """Yields what there is to say (`str`) of which documents are read."""
        head, pairs, every = self.head, self.head.pairs or {}, len(self.corpus.documents)
        yield f"{len(self.looked_at)} of {counted(every, 'documents')} were looked at, drawn with seed {self.seed}."
        if self.whole:
            yield f"Left out, since the source reads them whole: {counted(len(self.whole), 'documents')}."
        short = sum(len(pairs.get(document.id, ())) for document in self.looked_at) - self.questions
        if pairs and short:
            yield f"Left out with documents that the source reads whole: {counted(short, 'questions')} of --pairs."
        blank = sum(len(pairs.get(document, ())) for document in self.corpus.blank)
        if blank:
            yield f"Left out with documents without text: {counted(blank, 'questions')} of --pairs."
        cut = sum(len(item.input_ids) == head.subject.length for item in self.items)
        if cut:
            yield f"{cut} have {head.subject.length} tokens or more, and are cut there in every way."


def draw(head, corpus, most, seed):
    """
    The documents in random order, those that are asked for first, or alone where each is read for its questions.

    Args:
        head ([`Head`]).
        corpus ([`Corpus`]).
        most (`int`): how many of those that the source cannot read whole are taken.
        seed (`int`).

    Returns:
        [`Sample`].
    """
    documents = random.Random(seed).sample(corpus.documents, len(corpus.documents))
    if head.pairs is not None:
        documents.sort(key=lambda document: document.id not in head.pairs)
    if head.unit == "questions":
        documents = [document for document in documents if document.id in head.pairs]
    drawn = Sample(head, corpus, seed)
    for document in tqdm(documents, desc="Documents", unit="", leave=False):
        if len(drawn.looked_at) - len(drawn.whole) == most:
            break
        drawn.looked_at.append(document)
        found = head.items(document)
        drawn.items += found
        if not found:
            drawn.whole.append(document)
    return drawn
