"""What of a real embedder's vectors is right: questions answered by each way to read, and kinds told apart."""

from collections import Counter
from functools import partial

import numpy as np
import reading
import retrieval


LATE = (512, 256, 128, 64)  # tokens
ON_FEWER = ("dense tiled", "chunks of 512", "LSG")  # also measured on as many documents as the first of them reads
FEWEST = 10  # documents of a kind, to be a label of the probe


def loaded(reader, folder, documents):
    """What has been read of all `documents` that the reader reads; `None` if one is missing."""
    output = reading.folder_of(reader, folder)
    paths = [output / f"{i}.npz" for i in range(len(documents[: reader.documents]))]
    if all(path.exists() for path in paths):
        return [dict(np.load(path)) for path in paths]
    return None


def vectors_of(reader):
    """`{name: function of a document}`: the vectors that are made of what `reader` has read."""
    late = {f"late {size}": partial(retrieval.windows, size=size) for size in LATE}
    if reader.length is None:
        return {"one vector": retrieval.row_vectors} | late
    found = {"averaged": retrieval.averaged, "best": retrieval.row_vectors}
    if reader.name.startswith("chunks of 512"):
        found = {"cut at 512": retrieval.first} | found | {"pooled by 128": late["late 128"]}
    return found


def evaluate(reader, folder, documents, questions):
    """
    Each question is looked for among the documents of other languages than its own, and among all: texts of one
    language are nearer to each other, whatever they say.

    Returns:
        `{way: {"vectors": per document, "documents": number, "ranks": of the questions, "ranks_among_all": those with
        the documents of the question's language}}`; empty if not all is read.
    """
    read = loaded(reader, folder, documents)
    if read is None:
        return {}
    asked = np.load(reading.folder_of(reader, folder) / "questions.npy")
    right = np.array([question["document"] for question in questions])
    languages = np.array([document["language"] for document in documents])
    others = np.array([question["language"] for question in questions])[:, None] != languages
    fewer = next(other.documents for other in reading.readers("") if other.name == ON_FEWER[0])
    limits = {"": len(documents)} if reader.documents is None else {}
    limits |= {f", {fewer} documents": fewer} if reader.name in ON_FEWER else {}
    found = {}
    for label, limit in limits.items():
        chosen = right < limit
        for name, make in vectors_of(reader).items():
            vectors = [make(document) for document in read[:limit]]
            row = _row(asked[chosen], vectors, right[chosen], others[chosen, :limit])
            found[f"{reader.name}, {name}{label}"] = row
    if reader.name.startswith("LSG"):
        before = [retrieval.first(document) for document in loaded(next(reading.readers("")), folder, documents)]
        found[f"{reader.name}, old index of cut at 512"] = _row(asked, before, right, others)
    return found


def _row(asked, vectors, right, others):
    near = retrieval.nearness(asked[:, None], vectors)
    return {
        "vectors": round(sum(map(len, vectors)) / len(vectors), 2),
        "documents": len(vectors),
        "ranks": " ".join(map(str, retrieval.ranks(near, right, others))),
        "ranks_among_all": " ".join(map(str, retrieval.ranks(near, right))),
    }


def probes(readers, folder, documents):
    """`{way: {"right": of each document}}`: the kind of a document told from its one vector by a linear classifier."""
    counts = Counter(document["kind"] for document in documents)
    chosen = [i for i, document in enumerate(documents) if counts[document["kind"]] >= FEWEST]
    kinds, names = ([documents[i][field] for i in chosen] for field in ("kind", "name"))
    found = {}
    for reader in readers:
        read = loaded(reader, folder, documents) if reader.documents is None else None
        for name, make in vectors_of(reader).items():
            if read and name in ("cut at 512", "averaged", "one vector"):
                right = retrieval.probe(np.concatenate([make(read[i]) for i in chosen]), kinds, names)
                found[f"{reader.name}, {name}"] = {"right": "".join(map(str, right.astype(int)))}
    return found
