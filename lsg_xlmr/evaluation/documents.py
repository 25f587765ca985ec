# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""The user's documents, from text files, JSONL or Parquet."""

import hashlib
import json
from dataclasses import dataclass, field

from ..conversion.messages import first_line, shortened


TEXTS, TABLES = (".txt", ".md"), (".jsonl", ".parquet")


@dataclass
class Document:
    id: str
    text: str
    row: dict = field(default_factory=dict)  # what else is known of it


@dataclass
class Corpus:
    """What was found: documents, and what is none."""

    documents: list[Document] = field(default_factory=list)
    blank: list[str] = field(default_factory=list)  # ids of those without text
    passed_over: list[str] = field(default_factory=list)  # names of files of other kinds

    def told(self):
        """Yields what is left out (`str`), to be said."""
        if self.blank:
            yield f"Without text, and left out: {counted(len(self.blank), 'documents')} ({shortened(self.blank)})."
        if self.passed_over:
            files = f"{counted(len(self.passed_over), 'files')} ({shortened(self.passed_over)})"
            yield f"Not read, since their names end in none of {', '.join(TEXTS + TABLES)}: {files}."


def read_documents(path):
    """
    Args:
        path (`Path`): a text file, a JSONL or Parquet file with the column `text` and maybe `id` and others, or a
            folder of such, however deep.

    Returns:
        [`Corpus`]: a text file's id is its path in the folder, that of a row without one the file's name and its
        number.

    Raises:
        ValueError: there are no documents, or one cannot be read.
    """
    if not path.exists():
        raise ValueError(f"There are no documents in {str(path)!r}: it does not exist.")
    corpus, files = Corpus(), [path]
    if path.is_dir():
        files = sorted(x for x in path.rglob("*") if x.is_file() and not _is_hidden(x.relative_to(path)))
    ids = set()
    for file in files:
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        if path.is_dir() and file.suffix.lower() not in TEXTS + TABLES:
            corpus.passed_over.append(name)
            continue
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise ValueError(f"The name of the file {name!r} is not UTF-8: rename it.")
        for document in _documents_of(file, name):
            if document.id in ids:
                raise ValueError(f"Two documents have the id {document.id!r}: each must have its own.")
            ids.add(document.id)
            if document.text.strip():
                corpus.documents.append(document)
            else:
                corpus.blank.append(document.id)
    if not corpus.documents:
        raise ValueError(
            f"There are no documents in {str(path)!r}: it takes files that end in {', '.join(TEXTS + TABLES)} and are "
            "not empty."
        )
    return corpus


def id_of(value, where):
    """
    The id (`str`) that stands in a row: a number is the same as its digits, and pandas makes 1.0 of 1.

    Raises:
        ValueError: it is neither text nor a whole number; the message names `where`.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"{where}: `id` must be a string or a whole number, got {value!r}.")
    return str(value)


def counted(count, names):
    """Such as "1 document" of 1 and "documents" (`str`)."""
    return f"{count} {names if count != 1 else names[:-1]}"


def read_rows(path, columns):
    """
    Yields `(number, row)`, from 1 on, of a JSONL or Parquet file.

    Raises:
        ValueError: it cannot be read, or a row lacks one of `columns`.
    """
    if path.suffix.lower() not in TABLES:
        raise ValueError(f"{str(path)!r} must be a file that ends in {' or '.join(TABLES)}.")
    rows = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_jsonl(path)
    for number, row in rows:
        for column in columns:
            if column not in row:
                there = ", ".join(map(repr, row)) or "none"
                raise ValueError(f"{path}, row {number}: there is no column {column!r}; those there are {there}.")
        yield number, row


def fingerprint(documents):
    """What changes (`str`) when any document, or what is known of it, does."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(json.dumps([document.id, document.text, document.row], default=str).encode())
    return digest.hexdigest()[:16]


def _documents_of(file, name):
    """Yields the documents of a file."""
    if file.suffix.lower() in TEXTS:
        yield Document(name, _read_text(file))
        return
    for number, row in read_rows(file, ("text",)):
        where, text = f"{file}, row {number}", row.pop("text")
        if not isinstance(text, str):
            raise ValueError(f"{where}: `text` must be a string, got {text!r}.")
        given = row.pop("id", None)
        yield Document(f"{name}:{number}" if given is None else id_of(given, where), text, row)


def _is_hidden(path):
    return any(part.startswith(".") for part in path.parts)


def _read_text(path):
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte {error.start} is {error.object[error.start]:#04x}): convert it, as iconv does."
        ) from error


def _read_jsonl(path):
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is no JSON: {first_line(error)}.") from error
        if not isinstance(row, dict):
            raise ValueError(f'{path}, line {number} is no JSON object such as {{"id": "a", "text": "..."}}.')
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{path}, line {number} has {error.object[error.start]!r}, half of a character: write both halves, or "
                "leave it out."
            ) from error
        yield number, row


def _read_parquet(path):
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"{path} needs pyarrow to be read: pip install pyarrow") from error
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {first_line(error)}.") from error
    yield from enumerate(rows, 1)
