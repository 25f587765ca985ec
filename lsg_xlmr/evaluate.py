# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
Does conversion help on your documents, and with which settings? `lsg-evaluate`, `python -m lsg_xlmr.evaluate`.
"""

import argparse
import hashlib
import json
import logging
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from .arguments import Parser, dictionary
from .cli import Stopped, quiet, stoppable
from .evaluation.classes import Classes
from .evaluation.documents import fingerprint, read_documents
from .evaluation.embedding import POOLINGS
from .evaluation.folder import MEASURED, open_folder, write_report
from .evaluation.known import read_labels, read_pairs
from .evaluation.masked_words import MaskedWords
from .evaluation.measure import measure
from .evaluation.report import Report
from .evaluation.sample import draw
from .evaluation.spans import Spans
from .evaluation.subject import SETTINGS, USUAL, Subject
from .evaluation.tags import Tags
from .evaluation.vectors import Vectors
from .version import __version__


HEADS = {
    "MaskedLM": MaskedWords,
    "SequenceClassification": Classes,
    "TokenClassification": Tags,
    "QuestionAnswering": Spans,
    "Model": Vectors,
}
RECORDS = 2  # raised when what is kept of a reading changes, so that none is taken for another


def main(argv=None):
    """
    Args:
        argv (`list[str]`, *optional*): the arguments; by default those of the process.

    Returns:
        `int`: 0; 2 if something was wrong, told on stderr; 130 or 143 if it was stopped by Ctrl-C or SIGTERM.
    """
    options = parse_arguments(sys.argv[1:] if argv is None else argv)
    try:
        with quiet(), stoppable(argv is None), logging_redirect_tqdm([logging.getLogger(__package__)]):
            return _evaluate(options)
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        expected = isinstance(error, (ValueError, OSError, ImportError))
        message = str(error) if expected else f"{type(error).__name__}: {error} (--debug shows where)"
        print(f"lsg-evaluate: {' '.join(message.split())}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(
            f"lsg-evaluate: stopped; what was measured is in {options.output}, and the same command goes on.",
            file=sys.stderr,
        )
        return 128 + stopped.args[0]


def parse_arguments(argv):
    """
    Args:
        argv (`list[str]`): the options.

    Returns:
        `argparse.Namespace`; a wrong one ends the process with exit code 2 and one line.
    """
    parser = Parser(
        prog="lsg-evaluate",
        description="Does conversion to LSG attention help on your documents, and with which settings? Converts the "
        "checkpoint in memory and compares how it reads long documents with how the source does. Stopped at any "
        "time, the same command goes on.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="folder or hub name of the checkpoint")
    add(
        "documents",
        metavar="DOCUMENTS",
        type=Path,
        help="text files (.txt, .md), JSONL or Parquet with a column `text` and maybe `id`; a file or a folder",
    )
    add(
        "--settings",
        nargs="+",
        type=_setting,
        default=[(name, SETTINGS[name]) for name in USUAL],
        metavar="SETTING",
        help=f"what to convert with, the first is what others are held against: {', '.join(SETTINGS)}, or fields of "
        f"LSGConfig as \"{{'block_size': 64}}\" (default: {' '.join(USUAL)})",
    )
    add(
        "--labels",
        help="of a classifier or tagger: a column of the documents, or a file with the columns id and label",
    )
    add(
        "--pairs",
        type=Path,
        help="of an embedder or reader: a file with the columns question, id of the document that answers it and, for "
        "a reader, answer",
    )
    add("--minutes", type=_positive, default=30, help="time for measuring, about; default: %(default)s")
    add("--output", type=Path, default=Path("evaluation"), metavar="FOLDER", help="default: %(default)s")
    add("--max_documents", type=_count, default=300, metavar="N", help="long documents read; default: %(default)s")
    add("--max_sequence_length", type=_count, metavar="N", help="tokens that the converted models take; default: 4096")
    add("--architecture", help="class of the models, such as XLMRobertaModel; the source's if not given")
    add("--pooling", choices=POOLINGS, help="of an embedder; what its folder says, or mean")
    add("--prompts", type=dictionary, help="of an embedder, as \"{'query': 'query: ', 'document': 'passage: '}\"")
    add("--seed", type=int, default=0, help="of the sample of documents; default: %(default)s")
    add("--token", help="access token of the Hugging Face hub")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(argv)


def _evaluate(options):
    subject = Subject(
        options.source, dict(options.settings), options.max_sequence_length, options.architecture, options.token
    )
    corpus = read_documents(options.documents)
    head = _head(options, subject, corpus)
    read = [*subject.source.folders, *[options.documents] * options.documents.is_dir()]
    results = open_folder(options.output, _asked(options, subject, corpus.documents, head), read)
    drawn = draw(head, corpus, options.max_documents, options.seed)
    if not drawn.questions:
        print("\n".join([*corpus.told(), drawn.nothing()]))
        return 0
    options.output.mkdir(parents=True, exist_ok=True)
    results.save()
    items, notes = drawn.items, [*corpus.told(), *drawn.told()]
    measured = {}
    try:
        for measured in measure(head, items, options.output / MEASURED, 60 * options.minutes):
            pass
    finally:
        if any(measured.values()):
            report = Report(head, items, measured, notes)
            told = write_report(report, options.output, results)
            print(f"{report.text()}\n\n{told}")
    if not any(measured.values()):
        print(f"Nothing was measured in {options.minutes:g} minutes: give more by --minutes.")
    return 0


def _head(options, subject, corpus):
    kind = next(
        (kind for kind in HEADS if subject.architecture == f"LSGXLMRoberta{'For' * (kind != 'Model')}{kind}"), None
    )
    if kind is None:
        raise ValueError(
            f"{options.source!r} is an {subject.architecture.removeprefix('LSG')}, of which nothing can be compared "
            "here: --architecture XLMRobertaModel evaluates its encoder as an embedder."
        )
    head_class = HEADS[kind]
    for name, is_taken, what in (
        ("labels", head_class.takes_labels, "classifiers and taggers"),
        ("pairs", head_class.takes_pairs, "embedders and readers"),
        ("pooling", head_class is Vectors, "embedders"),
        ("prompts", head_class is Vectors, "embedders"),
    ):
        if getattr(options, name) is not None and not is_taken:
            raise ValueError(
                f"--{name} is for {what}, and {options.source!r} is evaluated as "
                f"{subject.architecture.removeprefix('LSG')}: leave it out, or name another --architecture."
            )
    fields = {"pooling": options.pooling, "prompts": options.prompts} if head_class is Vectors else {}
    labels = pairs = None
    if options.labels is not None:
        is_multiple = subject.config.problem_type == "multi_label_classification"
        labels = read_labels(options.labels, corpus, subject, head_class is Tags, is_multiple)
    if options.pairs is not None:
        pairs = read_pairs(options.pairs, corpus)
    return head_class(subject, corpus.documents, labels, pairs, **fields)


def _asked(options, subject, documents, head):
    """All that the measurements depend on but for the settings, each of which has its own, and the time."""
    known = repr((head.labels, head.pairs)).encode()
    return {
        "SOURCE": options.source,
        "the content of SOURCE": subject.fingerprint,
        "DOCUMENTS": str(options.documents),
        "the content of DOCUMENTS": fingerprint(documents),
        "--labels": str(options.labels),
        "--pairs": str(options.pairs),
        "the content of --labels or --pairs": hashlib.sha256(known).hexdigest()[:16],
        "--max_documents": options.max_documents,
        "--max_sequence_length": subject.length,
        "--architecture": subject.architecture.removeprefix("LSG"),
        "--pooling": options.pooling,
        "--prompts": json.dumps(options.prompts),
        "--seed": options.seed,
        "lsg-xlmr": f"{__version__}, records {RECORDS}",
    }


def _setting(text):
    """`(name, fields)` of one of `--settings`."""
    if text in SETTINGS:
        return text, SETTINGS[text]
    try:
        fields = dictionary(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(SETTINGS)}, and {error}") from error
    return ", ".join(f"{name}={value}" for name, value in fields.items()) or "defaults", fields


def _positive(text):
    with suppress(ValueError):
        if float(text) > 0:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")


def _count(text):
    with suppress(ValueError):
        if int(text) > 0:
            return int(text)
    raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, got {text!r}")


if __name__ == "__main__":
    sys.exit(main())
