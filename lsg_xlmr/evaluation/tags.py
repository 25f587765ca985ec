# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""A tag for each token of long documents."""

import re
from bisect import bisect_right

import torch

from .head import Head, LongText, long_text
from .scores import Score, beside


SLIDING = "source, sliding windows"


def micro_f1(there, given, right):
    """Of the tags that are `there`, those `given`, and those given `right`, all numbers."""
    return 2 * right / (there + given)


class Tags(Head):
    """Of a token classifier: the tag of every token; with labels, of every word at its first token."""

    takes_labels = True
    kept = "the share of the tokens in short texts that get the source's tag"

    def item(self, document):
        if self.labels is None:
            return long_text(document, self.subject)
        encoded = self.subject.tokenizer(
            document.text, truncation=True, max_length=self.subject.length, return_offsets_mapping=True
        )
        if len(encoded["input_ids"]) <= self.subject.short:
            return None
        ends, found = [end for _, end in encoded["offset_mapping"][1:-1]], {}
        for word, tag in zip(re.finditer(r"\S+", document.text), self.labels[document.id], strict=True):
            place = bisect_right(ends, word.start())  # the first token that goes on beyond where the word begins
            if place < len(ends):
                found[place + 1] = tag
        return LongText(
            document.id, torch.tensor(encoded["input_ids"]), extra={"places": [*found], "tags": [*found.values()]}
        )

    def source_ways(self):
        return self.subject.source_ways("chunks", "sliding")

    def read(self, model, way, text):
        tags = model.classifier(way.hidden_states(model, text.input_ids)).argmax(-1).tolist()
        return {"tags": tags[1:-1], **self._counts(text, tags)}  # nobody asks for those of <s> and </s>

    def short(self, model, text, length):
        states = self.subject.whole.hidden_states(model, text.beginning(length))
        return model.classifier(states).argmax(-1).tolist()[1:-1]

    def _counts(self, text, tags):
        if self.labels is None:
            return {}
        pairs = [(tags[place], tag) for place, tag in zip(text.extra["places"], text.extra["tags"], strict=True)]
        outside = self.subject.outside
        return {
            "there": sum(tag != outside for _, tag in pairs),
            "given": sum(found != outside for found, _ in pairs),
            "right": sum(found == tag != outside for found, tag in pairs),
        }

    def scores(self, measured):
        if self.labels is not None:
            yield Score("F1 of the tags", percent=True).fill(
                measured, lambda record: (2 * record["right"], record["there"] + record["given"])
            )
        windows = measured.get(SLIDING, {})
        outside = self.subject.outside

        def alike(record):
            both = list(zip(record["tags"], windows[record["id"]]["tags"], strict=True))
            asked = [pair for pair in both if pair != (outside, outside)]
            return sum(a == b for a, b in asked), len(asked)

        yield Score(
            "tags as sliding windows give them", percent=True, decides=self.labels is None, is_agreement=True
        ).fill(beside(measured, SLIDING), alike)
