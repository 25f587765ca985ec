# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""The user's documents, from text files, JSONL or Parquet."""

import hashlib
import json
from dataclasses import dataclass, field

from ..conversion.messages import first_line


TEXTS, TABLES = (".txt", ".md"), (".jsonl", ".parquet")


@dataclass
class Document:
    id: str
    text: str
    row: dict = field(default_factory=dict)  # what else is known of it


def read_documents(path):
    """
    Args:
        path (`Path`): a text file, a JSONL or Parquet file with the column `text` and maybe `id` and others, or a
            folder of such, however deep.

    Returns:
        `list[Document]`; a text file's id is its path in the folder, that of a row without one the file's name and
        its number.

    Raises:
        ValueError: there are none, or one cannot be read.
    """
    if not path.exists():
        raise ValueError(f"There are no documents in {str(path)!r}: it does not exist.")
    files = [path]
    if path.is_dir():
        files = sorted(x for x in path.rglob("*") if x.is_file() and not _is_hidden(x.relative_to(path)))
        files = [x for x in files if x.suffix in TEXTS + TABLES]
    documents = []
    for file in files:
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        if file.suffix in TEXTS:
            documents.append(Document(name, _read_text(file)))
            continue
        for number, row in read_rows(file, ("text",)):
            if not isinstance(row["text"], str):
                raise ValueError(f"{file}, row {number}: `text` must be a string, got {row['text']!r}.")
            documents.append(
                Document(str(row["id"]) if row.get("id") is not None else f"{name}:{number}", **_rest(row))
            )
    documents = [document for document in documents if document.text.strip()]
    if not documents:
        raise ValueError(
            f"There are no documents in {str(path)!r}: it takes files that end in {', '.join(TEXTS + TABLES)} and are "
            "not empty."
        )
    ids = set()
    for document in documents:
        if document.id in ids:
            raise ValueError(f"Two documents have the id {document.id!r}: each must have its own.")
        ids.add(document.id)
    return documents


def read_rows(path, columns):
    """
    Yields `(number, row)`, from 1 on, of a JSONL or Parquet file.

    Raises:
        ValueError: it cannot be read, or a row lacks one of `columns`.
    """
    if path.suffix not in TABLES:
        raise ValueError(f"{str(path)!r} must be a file that ends in {' or '.join(TABLES)}.")
    rows = _read_parquet(path) if path.suffix == ".parquet" else _read_jsonl(path)
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


def _rest(row):
    return {"text": row["text"], "row": {name: value for name, value in row.items() if name not in ("id", "text")}}


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
