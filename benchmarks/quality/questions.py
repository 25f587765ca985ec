"""
Documents to be found and what is asked for: a paragraph of a document in another language, "which document holds it?".

A corpus is `manuals` (of `corpus.py`, whole pages) or `guides` (of `guides.py`, long pages cut between paragraphs).
"""

import json
import random
import re
from collections import Counter, defaultdict

import guides
from corpus import gather, load
from passages import SKIPPED, body


SEED = 0
CORPORA = ("manuals", "guides")
TOKENS = (1500, 4075)  # of a document
QUESTION_TOKENS = (40, 128)
NUM_DOCUMENTS = 300
QUESTIONS = 2  # of a document, in two languages where there are
TRANSLATED = 0.8  # share of a document's sentences that must not be those of the English page


def sentences(text):
    """`text` at the ends of its sentences."""
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+|(?<=[。！？])", text) if part.strip()]


def corpus(name, folder, tokenizer):
    """
    `(documents, questions)` of the corpus `name`, made once in `folder`: `[{name, language, kind, text}]` and
    `[{document, language, text}]`, where `document` is a place in the first list.
    """
    return made_once(
        folder / f"{name}-{NUM_DOCUMENTS}.json",
        lambda: choose(pages_of(name, folder, tokenizer), tokenizer, name == "guides", NUM_DOCUMENTS),
    )


def made_once(path, make):
    """The content of the JSON file at `path`, which holds what `make()` gives."""
    if not path.exists():
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(make(), ensure_ascii=False, indent=0), encoding="utf-8")
        partial.replace(path)
    return json.loads(path.read_text(encoding="utf-8"))


def pages_of(name, folder, tokenizer):
    """`{page: {language: [paragraphs]}}`."""
    pages = defaultdict(dict)
    if name == "guides":
        for page, language, paragraphs in guides.read(folder / "packages"):
            pages[page][language] = paragraphs
    else:
        gather(folder)
        for document in load(folder):
            pages[document.name][document.language] = grouped(sentences(body(document)), tokenizer)
    return pages


def grouped(parts, tokenizer):
    """Sentences joined until they are long enough for a question."""
    lengths = _lengths(parts, tokenizer)
    groups, total = [[]], 0
    for part, length in zip(parts, lengths, strict=True):
        if total >= QUESTION_TOKENS[0]:
            groups, total = [*groups, []], 0
        groups[-1].append(part)
        total += length
    return [" ".join(group) for group in groups]


def choose(pages, tokenizer, aligned, count):
    """
    Documents, each in one language, as many of every language as there are, and questions in others.

    Args:
        pages: `{page: {language: [paragraphs]}}`.
        aligned: whether the paragraphs of a page are the same in all languages one by one; then a page that is too
            long makes several documents. Otherwise it is left out.
    """
    # What several pages say does not tell which is meant.
    times = Counter(text for versions in pages.values() for texts in versions.values() for text in set(texts))
    rng, names = random.Random(SEED), sorted(pages)
    rng.shuffle(names)
    documents, questions, languages = [], [], Counter()
    for name in names:
        versions = pages[name]
        for language in sorted(versions, key=lambda language: (languages[language], rng.random())):
            found = []
            for first, last in parts(versions[language], tokenizer, aligned):
                text = " ".join(versions[language][first:last])
                if not is_translated(text, versions, language):
                    continue
                place = slice(first, last) if aligned else None
                asked = _ask(versions, language, place, text, name, tokenizer, rng, times)
                if asked:
                    found.append((text, asked))
            if found:
                break
        for text, asked in found:
            languages[language] += 1
            questions += [{"document": len(documents), "language": other, "text": text} for other, text in asked]
            documents.append({"name": name, "language": language, "kind": kind(name), "text": text})
            if len(documents) == count:
                return documents, questions
    return documents, questions


def kind(name):
    """The section of the manual, or the book and the part of the help."""
    if "/" not in name:
        return "0" if name.startswith("debian-reference") else name.rpartition(".")[2]
    return "/".join(name.split("/")[: 2 if name.startswith("help/") else 1])


def parts(paragraphs, tokenizer, aligned):
    """`[(first, last)]` of paragraphs that make a document of `TOKENS`, in parts of about the same length."""
    low, high = TOKENS
    lengths = _lengths(paragraphs, tokenizer)
    number = -(-sum(lengths) // high)
    if number > 1 and not aligned:
        return []
    found, start, total = [], 0, 0
    for i, length in enumerate(lengths):
        total += length
        if total >= sum(lengths) / number or i + 1 == len(lengths):
            if low <= total <= high:
                found.append((start, i + 1))
            start, total = i + 1, 0
    return found


def _lengths(texts, tokenizer):
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []


def is_translated(text, versions, language, *others):
    """Whether most sentences of `text`, in `language`, are neither those of the English page nor of `others`."""
    known = _english(versions, language).union(*map(sentences, others))
    return _share(text, known) <= 1 - TRANSLATED


def _english(versions, language):
    """The sentences of a page in English, where `language` is another: what has them is not translated."""
    texts = versions.get("en", []) if language != "en" else []
    return {sentence for text in texts for sentence in sentences(text)}


def _share(text, known):
    """Of the sentences of `text`, the share that is among the `known`."""
    own = sentences(text)
    return sum(sentence in known for sentence in own) / len(own)


def _ask(versions, language, place, document, name, tokenizer, rng, times):
    """`[(language, text)]`: paragraphs of the same place, or past the beginning of the page, that are translated."""
    asked, others = [], sorted(set(versions) - {language})
    rng.shuffle(others)
    low, high = QUESTION_TOKENS
    stem = name.rpartition(".")[0].lower()
    for other in others:
        texts = versions[other][place] if place else versions[other][round(SKIPPED * len(versions[other])) :]
        known = _english(versions, other) | set(sentences(document))
        texts = [
            text
            for text in texts
            if times[text] == 1 and not _share(text, known) and not (stem and stem in text.lower())
        ]
        lengths = _lengths(texts, tokenizer)
        texts = [text for text, length in zip(texts, lengths, strict=True) if low <= length <= high]
        if texts:
            asked.append((other, rng.choice(texts)))
        if len(asked) == QUESTIONS:
            break
    return asked
