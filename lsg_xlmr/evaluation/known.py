# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""What the user knows of the documents: their labels, and questions that they answer."""

from dataclasses import dataclass
from pathlib import Path

from ..conversion.messages import shortened
from .documents import id_of, read_rows


@dataclass
class Question:
    text: str
    answers: list  # of a reader, as they stand in the document


def read_labels(argument, corpus, subject, is_tagger, is_multiple):
    """
    Args:
        argument (`str`): a column of the documents, or a JSONL or Parquet file with the columns `id` and `label`.
        corpus ([`Corpus`]): labels of its blank documents are no matter.
        subject ([`Subject`]): whose classes they are.
        is_tagger (`bool`): a label is a list with a tag for each word of the text, cut at blanks.
        is_multiple (`bool`): a label is a list of classes.

    Returns:
        `dict[str, list[int]]`: by the document's id.

    Raises:
        ValueError: they do not fit.
    """
    documents = corpus.documents
    if Path(argument).is_file():
        given = {}
        for number, row in read_rows(Path(argument), ("id", "label")):
            document = id_of(row["id"], f"{argument}, row {number}")
            if document in given:
                raise ValueError(f"{argument}, row {number} is a second label of document {document!r}.")
            given[document] = row["label"]
        unknown = sorted(given.keys() - {document.id for document in documents} - {*corpus.blank})
        if unknown:
            raise ValueError(f"{argument} has labels of {shortened(unknown)}, which are no ids of the documents.")
    else:
        given = {document.id: document.row[argument] for document in documents if argument in document.row}
        if not given:
            columns = sorted({repr(name) for document in documents for name in document.row})
            raise ValueError(
                f"--labels {argument} is no file, and no column of the documents; those there are "
                f"{', '.join(columns) or 'none'}."
            )
    missing = [document.id for document in documents if given.get(document.id) is None]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(documents)} documents have no label: {shortened(missing)}. Add them, or leave "
            "these documents out."
        )
    numbers = {name: i for i, name in subject.config.id2label.items()}
    labels = {}
    for document in documents:
        label = given[document.id]
        if isinstance(label, list) != (is_tagger or is_multiple):
            wanted = "a list of tags" if is_tagger else "a list of classes" if is_multiple else "one class"
            raise ValueError(f"The label of document {document.id!r} must be {wanted}, got {str(label)[:80]!r}.")
        names = label if isinstance(label, list) else [label]
        if is_tagger and len(names) != len(document.text.split()):
            raise ValueError(
                f"Document {document.id!r} has {len(names)} tags for {len(document.text.split())} words: there must "
                "be one for each word of the text, cut at blanks."
            )
        names = [int(name) if isinstance(name, float) and name.is_integer() else name for name in names]
        for name in names:
            if not (name in numbers if isinstance(name, str) else type(name) is int and name in numbers.values()):
                raise ValueError(
                    f"The label {name!r} of document {document.id!r} is none of the model's: "
                    f"{shortened([*map(repr, numbers)])}; or their numbers, from 0 to {len(numbers) - 1}."
                )
        indices = [numbers.get(name, name) for name in names]
        labels[document.id] = sorted(set(indices)) if is_multiple else indices
    return labels


def read_pairs(path, corpus):
    """
    Args:
        path (`Path`): a JSONL or Parquet file with the columns `question`, `id` of the document that answers it, and
            maybe `answer`, a string or a list of them.
        corpus ([`Corpus`]).

    Returns:
        `dict[str, list[Question]]`: by the document's id, that of a blank one too.

    Raises:
        ValueError: it cannot be read, or names a document that is not there.
    """
    if not path.is_file():
        raise ValueError(f"--pairs {path} is no file.")
    known, pairs = {document.id for document in corpus.documents} | {*corpus.blank}, {}
    for number, row in read_rows(path, ("question", "id")):
        question, answers = row["question"], row.get("answer")
        document = id_of(row["id"], f"{path}, row {number}")
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"{path}, row {number}: `question` must be a string, got {question!r}.")
        if document not in known:
            raise ValueError(f"{path}, row {number} asks for the document {document!r}, which is not there.")
        answers = [] if answers is None else answers if isinstance(answers, list) else [answers]
        if not all(isinstance(answer, str) for answer in answers):
            raise ValueError(f"{path}, row {number}: `answer` must be a string or a list of them, got {answers!r}.")
        pairs.setdefault(document, []).append(Question(question, answers))
    if not pairs:
        raise ValueError(f"--pairs {path} holds no questions.")
    return pairs
