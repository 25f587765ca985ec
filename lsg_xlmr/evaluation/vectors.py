# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Vectors of long documents: is a question's document found first, by one vector of it or by several?"""

import base64
import random
import re
from itertools import pairwise

import torch
from torch.nn.functional import normalize

from ..late_chunking.embedder import DOCUMENT_PROMPTS, prompt_of
from ..late_chunking.texts import Text
from .embedding import embedding_of
from .head import Head, LongText
from .scores import CONVERTED, Row, Score
from .ways import AT_A_TIME, Way, cut_windows


PARAGRAPHS = 3  # of a document, held out as its questions where the user has none
LEAST, MOST = 100, 1000  # characters of a paragraph
SENTENCES = re.compile(r".{200,}?(?:[.!?]\s|[。！？]|$)", re.DOTALL)


class Vectors(Head):
    """
    Of an embedder. One vector of a document is that of all its tokens, of its beginning, or the mean of its chunks',
    each as `encode_document` gives it; where the folder normalizes, the mean is normalized too. Several are those of
    its chunks, or *late chunks*: the tokens' states after one pass, pooled in windows. A document is as near to a
    question as the nearest of its vectors.

    Without pairs some paragraphs of each document are taken out of it, and are what is asked.
    """

    takes_pairs = True
    kept = "the mean cosine of short texts' vectors with the source's"
    changed = " An index of the source's vectors must be made anew."

    def __init__(self, subject, documents, labels=None, pairs=None, pooling=None, prompts=None):
        super().__init__(subject, documents, labels, pairs)
        self.embedding = embedding_of(subject.source, pooling)
        for name, prompt in (prompts or {}).items():
            if name not in ("query", *DOCUMENT_PROMPTS) or not isinstance(prompt, str):
                raise ValueError(
                    f"--prompts has {name!r}: {prompt!r}, and takes a text for query and one for "
                    f"{' or '.join(DOCUMENT_PROMPTS)}."
                )
        config = subject.source.embedder_config
        default = None
        if prompts is None:  # sentence-transformers itself puts two there, so that no other stands for them
            prompts = {"query": "", "document": "", **(config.get("prompts") or {})}
            default = config.get("default_prompt_name")
        self.question_prompt = prompt_of(["query"], prompts, default)
        self.prompt = prompt_of(DOCUMENT_PROMPTS, prompts, default)
        for prompt in (self.question_prompt, self.prompt):
            head = self._text("a", prompt).head
            if head > subject.short // 2:
                raise ValueError(
                    f"The prompt {prompt[:60]!r} has {head} tokens, which leaves less than half of the "
                    f"{subject.short} that the source reads for the text: shorten it."
                )
        self.window = subject.short // 4
        self.similarity = config.get("similarity_fn_name") or "cosine"
        if self.similarity not in ("cosine", "dot"):
            raise ValueError(
                f"The similarity of {subject.name!r} is {self.similarity!r}, and known here are cosine and dot: "
                "write one of them into config_sentence_transformers.json of a copy, if its vectors are meant so too."
            )

    def told(self):
        asked = "paragraphs taken out of the documents" if self.pairs is None else "of --pairs"
        return [
            f"Questions: {asked}. Pooling {self.embedding}; similarity by {self.similarity}; before a question "
            f"{self.question_prompt!r} and before a document {self.prompt!r}."
        ]

    def _text(self, text, prompt):
        return Text(text, self.subject.tokenizer, prompt)

    def _scaled(self, vectors):
        """Vectors whose products are their similarity."""
        return vectors if self.similarity == "dot" else normalize(vectors, dim=-1)

    def item(self, document):
        if self.pairs is None:
            rest, questions = hold_out(document)
        else:
            rest, questions = document.text, [question.text for question in self.pairs.get(document.id, ())]
        text = self._text(rest, self.prompt)
        if len(text.ids) <= self.subject.short:
            return None
        room = self.subject.length
        while (
            len(text.ids) > self.subject.length
        ):  # a text that is cut may have a token more than the same in the whole
            text = self._text(rest[: text.ends[room - text.head - text.tail - 1]], self.prompt)
            room -= 1
        windows = {size: text.windows(size) for size in (self.subject.short, self.window)}
        extra = {"questions": questions, "windows": windows}
        return LongText(document.id, torch.tensor(text.ids), text.head, extra)

    def questions(self, text):
        return len(text.extra["questions"])

    def source_ways(self):
        chunks, *others = self.subject.source_ways("chunks", "truncated", "sliding")
        self.chunks = chunks.name
        small = Way(f"source, chunks of {self.window}", chunks.load, self.window, self.window - 2)
        return [chunks, others[0], small, others[1]]

    def read(self, model, way, text):
        prompt = text.prefix if self.prompt else 0
        if way.length is not None and way.stride is None:
            states = model.base_model(way.windows(text.input_ids)).last_hidden_state
            return {"one": self._packed(self.embedding.pooled(states, prompt))}
        if way.length is None:
            states = way.hidden_states(model, text.input_ids)
            found = {"one": self.embedding.pooled(states, prompt)[None]}
            sizes = (self.subject.short, self.window)
        else:
            rows, choice = cut_windows(text.input_ids, way.length, way.stride, text.prefix)
            in_rows = torch.cat([model.base_model(part).last_hidden_state for part in rows.split(AT_A_TIME)])
            chunks = self.embedding.pooled(in_rows, prompt)
            found = {"one": chunks.mean(0, keepdim=True), "chunks": chunks}
            states = in_rows[choice[:, 0], choice[:, 1]]
            sizes = (self.window,) if way.name == self.chunks else ()
        if self.embedding.pooling == "mean":  # the first token of a window is none that was trained to stand for it
            first = self.embedding.first(prompt)
            for size in sizes:
                found[f"late {size}"] = window_means(states, text.extra["windows"][size], text.prefix, first)
        return {name: self._packed(vectors) for name, vectors in found.items()}

    def _packed(self, vectors):
        return packed(self.embedding.finished(vectors))

    def beside(self, model, text):
        questions = [self._vector(model, question) for question in text.extra["questions"]]
        return {"questions": self._packed(torch.stack(questions))} if questions else {}

    def _vector(self, model, question):
        """Of a question, `(hidden_size,)`."""
        text = self._text(question, self.question_prompt)
        ids = LongText("", torch.tensor(text.ids)).beginning(min(len(text.ids), self.subject.short))
        states = model.base_model(ids[None]).last_hidden_state[0]
        return self.embedding.pooled(states, text.head if self.question_prompt else 0)

    def short(self, model, text, length):
        if length < text.prefix + 2:  # no token of the text
            return []
        states = model.base_model(text.beginning(length)[None]).last_hidden_state
        return self._packed(self.embedding.pooled(states, text.prefix if self.prompt else 0))

    def is_kept(self, before, after):
        if not before:
            return 0, 0
        before, after = (normalize(unpacked(vectors), dim=-1) for vectors in (before, after))
        return float((before * after).sum(-1).mean()), 1

    def scores(self, measured):
        one = Score("documents found first, one vector each", "questions", percent=True)
        several = Score("documents found first, several vectors each", "questions", percent=True)
        for way, records in measured.items():
            records = list(records.values())
            for kind in ("one", "chunks", f"late {self.subject.short}", f"late {self.window}"):
                if records and all(kind in record for record in records):
                    values, vectors = self._found(records, kind)
                    score = one if kind == "one" else several
                    score.add(_named(way, kind), Row(way, way.startswith(CONVERTED), values, vectors))
        yield one
        yield several

    def _found(self, records, kind):
        """
        `({question: (found first, 1)}, vectors a document)`. A question of several documents is asked once, and any
        of them will do.
        """
        index = [self._scaled(unpacked(record[kind])) for record in records]
        of = torch.tensor([i for i, vectors in enumerate(index) for _ in vectors])
        index, found, asked, answers = torch.cat(index), {}, set(), {}
        for document, questions in (self.pairs or {}).items():
            for question in questions:
                answers.setdefault(question.text, set()).add(document)
        for record in records:
            if "questions" not in record:
                continue
            nearest = (self._scaled(unpacked(record["questions"])) @ index.T).argmax(-1)
            for n, place in enumerate(of[nearest].tolist()):
                unit = f"{record['id']} {n}"
                question = self.pairs[record["id"]][n].text if self.pairs else unit
                if question not in asked:
                    found[unit] = (int(records[place]["id"] in answers.get(question, {record["id"]})), 1)
                asked.add(question)
        return found, len(of) / max(1, len(records))


def _named(way, kind):
    if kind == "one" and ("chunks" in way or "windows" in way):
        return f"{way}, averaged"
    if kind.startswith("late"):
        return f"{way}, {kind.replace('late', 'late chunks of' if way.startswith(CONVERTED) else 'pooled by')}"
    return way if kind == "one" else f"{way}, best"


def window_means(states, windows, prefix, start=0):
    """
    Late chunks as [`late_chunks`] makes them, of a document that was read before: the means of the states of its
    tokens, `(tokens, hidden_size)`, in `windows`, `(first, last)` of the text's tokens each: `(windows, hidden_size)`.
    The prefix from its token `start` on belongs to the first window, `</s>` to the last.
    """
    borders = [start, *(prefix + first for first, _ in windows[1:]), len(states)]
    return torch.stack([states[first:last].mean(0) for first, last in pairwise(borders)])


def hold_out(document):
    """
    `(text, paragraphs)`: some paragraphs of a document, drawn by its id, and the text without them. Where it has none,
    sentences of some 200 characters together, or as many characters, stand for them.
    """
    for pattern in (r"\n\s*\n", SENTENCES, re.compile(".{1,300}", re.DOTALL)):
        text = document.text
        spans = [match.span() for match in re.finditer(pattern, text)]
        if isinstance(pattern, str):
            borders = [0, *(place for span in spans for place in span), len(text)]
            spans = list(zip(borders[::2], borders[1::2], strict=True))
        spans = [(a, b) for a, b in spans if LEAST <= len(text[a:b].strip()) <= MOST]
        if len(spans) > 2 * PARAGRAPHS:
            break
    spans = sorted(random.Random(document.id).sample(spans, min(PARAGRAPHS, len(spans) // 2)))
    borders = [0, *(place for span in spans for place in span), len(text)]
    rest = "".join(text[a:b] for a, b in zip(borders[::2], borders[1::2], strict=True))
    return rest, [text[a:b].strip() for a, b in spans]


def packed(vectors):
    """Vectors, `(n, size)`, as `[size, str]` for JSON; in float32."""
    return [vectors.shape[-1], base64.b64encode(vectors.float().contiguous().numpy().tobytes()).decode()]


def unpacked(record):
    size, content = record
    return torch.frombuffer(bytearray(base64.b64decode(content)), dtype=torch.float32).view(-1, size)
