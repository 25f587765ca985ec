"""
Whole documents looked for by their translations. Beside each stands one that begins as it does and ends as another of
its language and kind: only what has read the whole tells the two apart.
"""

import random

import numpy as np
import reading
import retrieval
from evaluation import loaded, vectors_of
from questions import SEED, TOKENS, is_translated, made_once, pages_of, parts, sentences


NUM_TWINS = 150
READERS = ("chunks of 512", "LSG", "LSG 64/64", "chunks of 128")


def of_corpus(name, folder, documents, tokenizer):
    """
    The twins of the first `NUM_TWINS` of `documents` that have one, made once in `folder`:
    `[{document, language, text, half}]`, where `document` is a place in `documents`, `text` the translation, and
    `half` the first half of the document with the second half of another.
    """
    path = folder / f"{name}-twins-{NUM_TWINS}.json"
    return made_once(path, lambda: choose(pages_of(name, folder, tokenizer), documents, tokenizer, name == "guides"))


def choose(pages, documents, tokenizer, aligned):
    """As `of_corpus`, of `pages` and `aligned` as `questions.choose` takes them."""
    rng, found = random.Random(SEED), []
    for i, document in enumerate(documents):
        versions = pages[document["name"]]
        languages = sorted(set(versions) - {document["language"]})
        rng.shuffle(languages)
        for language in languages:
            text = _translation(versions, document, language, tokenizer, aligned)
            if text:
                half = half_of(document["text"])[0] + " " + half_of(_other(documents, i, rng)["text"])[1]
                found.append({"document": i, "language": language, "text": text, "half": half})
                break
        if len(found) == NUM_TWINS:
            break
    return found


def _translation(versions, document, language, tokenizer, aligned):
    """The same page, or the same part of it, in `language`; `None` if it is too long or short or not translated."""
    if aligned:
        own, texts = versions[document["language"]], versions[language]
        places = (slice(*place) for place in parts(own, tokenizer, aligned))
        place = next(place for place in places if " ".join(own[place]) == document["text"])
        text = " ".join(texts[place])
    else:
        text = " ".join(versions[language])
    low, high = TOKENS
    fits = low <= len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= high
    return text if fits and is_translated(text, versions, language, document["text"]) else None


def _other(documents, i, rng):
    """Another page of the same language, of the same kind if there is one."""
    own = documents[i]
    near = [x for x in documents if x["language"] == own["language"] and x["name"] != own["name"]]
    return rng.choice([x for x in near if x["kind"] == own["kind"]] or near)


def half_of(text):
    """`text` in two halves, cut between two sentences."""
    found = sentences(text)
    ends = np.cumsum([len(sentence) for sentence in found])
    middle = 1 + int(np.abs(ends - ends[-1] / 2).argmin())
    return " ".join(found[:middle]), " ".join(found[middle:])


def read(reader, folder, twins, prompted):
    """Reads the twins and their halves, as `reading.read` does."""
    reading.read(reader, folder, texts_of(twins), prompted)


def texts_of(twins):
    """What is to be read: the translations, then what begins as the documents do."""
    return [{"text": twin[field]} for field in ("text", "half") for twin in twins]


def evaluate(reader, folder, twins_folder, documents, twins):
    """
    Returns:
        `{way: {"ranks": of the documents for their twins among all documents and halves in other languages,
        "ranks_among_all": in all languages, "told": "1" for each twin that is nearer to the document than to what
        only begins as it does}}`; empty if not all is read.
    """
    read_documents = loaded(reader, folder, documents)
    read_twins = loaded(reader, twins_folder, texts_of(twins))
    if read_documents is None or read_twins is None:
        return {}
    right = np.array([twin["document"] for twin in twins])
    languages = np.array([x["language"] for x in documents] + [documents[i]["language"] for i in right])
    others = np.array([twin["language"] for twin in twins])[:, None] != languages
    found = {}
    for name, make in vectors_of(reader).items():
        texts, halves = ([make(x) for x in part] for part in (read_twins[: len(twins)], read_twins[len(twins) :]))
        near = retrieval.nearness(texts, [*map(make, read_documents), *halves])
        rows = np.arange(len(twins))
        told = near[rows, right] > near[rows, len(documents) + rows]
        found[f"{reader.name}, {name}"] = {
            "ranks": " ".join(map(str, retrieval.ranks(near, right, others))),
            "ranks_among_all": " ".join(map(str, retrieval.ranks(near, right))),
            "told": "".join(map(str, told.astype(int))),
        }
    return found
