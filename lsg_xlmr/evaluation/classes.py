# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""One answer, a class or several, to long documents."""

import torch

from .head import Head, long_text
from .scores import Score, beside


SLIDING = "source, sliding windows averaged"


class Classes(Head):
    """Of a classifier: the probabilities of its classes; in windows their mean."""

    takes_labels = True
    kept = "the share of the short texts that get the source's answer"

    def __init__(self, subject, documents, labels=None, pairs=None):
        super().__init__(subject, documents, labels, pairs)
        self.is_multiple = subject.config.problem_type == "multi_label_classification"
        if subject.config.num_labels == 1:
            raise ValueError(
                f"{subject.name!r} gives one number for a text (a reranker or a regression), and what can be compared "
                "here are classes. sentence-transformers' CrossEncoder evaluators measure rerankers."
            )

    def item(self, document):
        return long_text(document, self.subject)

    def source_ways(self):
        return self.subject.source_ways("truncated", "chunks averaged", "sliding averaged")

    def _answer(self, model, rows):
        logits = model(rows).logits.float()
        return logits.sigmoid() if self.is_multiple else logits.softmax(-1)

    def read(self, model, way, text):
        return {"probabilities": way.answers(model, self._answer, text.input_ids).mean(0).tolist()}

    def short(self, model, text, length):
        return [self._decided(self._answer(model, text.beginning(length)[None])[0].tolist())]

    def _decided(self, probabilities):
        if self.is_multiple:
            return [i for i, probability in enumerate(probabilities) if probability > 0.5]
        return [int(torch.tensor(probabilities).argmax())]

    def scores(self, measured):
        if self.labels is not None:
            yield Score("documents classified right", percent=True).fill(
                measured,
                lambda record: (self._decided(record["probabilities"]) == self.labels[record["id"]], 1),
            )
            if self.is_multiple:
                yield Score("F1 of the classes", percent=True, decides=False).fill(measured, self._hits)
        windows = measured.get(SLIDING, {})
        yield Score(
            "answers as sliding windows give them", percent=True, decides=self.labels is None, is_agreement=True
        ).fill(
            beside(measured, SLIDING),
            lambda record: (
                self._decided(record["probabilities"]) == self._decided(windows[record["id"]]["probabilities"]),
                1,
            ),
        )

    def _hits(self, record):
        found, there = set(self._decided(record["probabilities"])), set(self.labels[record["id"]])
        return 2 * len(found & there), len(found) + len(there)
