# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""The answer to a question, found in a long document."""

import re
import string
from collections import Counter

import torch

from .head import Head, LongText
from .scores import Score, beside
from .ways import AT_A_TIME, window_starts


SLIDING = "source, sliding windows"
LONGEST = 30  # tokens of an answer


class Spans(Head):
    """Of a reader (question answering): the best span of each document for its questions, never "no answer"."""

    takes_pairs = True
    unit = "questions"
    kept = "the share of the questions that get the source's answer in a short text"

    def __init__(self, subject, documents, labels=None, pairs=None):
        super().__init__(subject, documents, labels, pairs)
        if pairs is None:
            raise ValueError(
                f"{subject.name!r} is a reader, which needs questions: --pairs FILE with the columns question, id "
                "and, where it is known, answer."
            )
        answered = [bool(question.answers) for questions in pairs.values() for question in questions]
        self.has_answers = all(answered)
        if any(answered) and not self.has_answers:
            raise ValueError(
                f"--pairs has an answer to {sum(answered)} of {len(answered)} questions: give all, or none."
            )

    def items(self, document):
        found = []
        for number, question in enumerate(self.pairs.get(document.id, ())):
            encoded = self.subject.tokenizer(
                *(question.text, document.text),
                truncation="only_second",
                max_length=self.subject.length,
                return_offsets_mapping=True,
            )
            parts = encoded.sequence_ids()
            prefix = parts.index(1) if 1 in parts else len(parts)
            if prefix > self.subject.short // 2:
                raise ValueError(
                    f"The question {question.text[:60]!r} has {prefix} tokens, which leaves less than half of the "
                    f"{self.subject.short} that the source reads for the text: shorten it."
                )
            if len(parts) > self.subject.short:
                text = LongText(f"{document.id} {number}", torch.tensor(encoded["input_ids"]), prefix)
                text.extra = {"text": document.text, "offsets": encoded["offset_mapping"], "answers": question.answers}
                found.append(text)
        return found

    def source_ways(self):
        return self.subject.source_ways("chunks", "truncated", "sliding")

    def read(self, model, way, text):
        rows = way.windows(text.input_ids, text.prefix)
        size = rows.shape[1] - text.prefix - 1
        starts = [0]
        if len(rows) > 1:
            starts = window_starts(len(text.input_ids) - text.prefix - 1, size, way.stride)
        spans = [span for part in rows.split(AT_A_TIME) for span in self._best(model, part, text.prefix)]
        score, window, first, last = max((score, -i, first, last) for i, (score, first, last) in enumerate(spans))
        first, last = (place + starts[-window] for place in (first, last))
        found = text.extra["text"][text.extra["offsets"][first][0] : text.extra["offsets"][last][1]]
        return {"answer": found.strip(), **self._scored(found, text.extra["answers"])}

    def short(self, model, text, length):
        if length <= 2 * text.prefix:
            return []
        _, first, last = self._best(model, text.beginning(length)[None], text.prefix)[0]
        return [[first, last]]

    def _best(self, model, rows, prefix):
        """`[(score, first, last)]`: the best span of each of the rows, `(windows, tokens)`."""
        inputs = {"input_ids": rows}
        if "token_type_ids" in self.subject.tokenizer.model_input_names:
            inputs["token_type_ids"] = (torch.arange(rows.shape[1]) >= prefix).long().expand_as(rows)
        outputs, found = model(**inputs), []
        for starts, ends in zip(outputs.start_logits, outputs.end_logits, strict=True):
            starts, ends = starts[prefix:-1].float(), ends[prefix:-1].float()
            # The best end of each start is among the next tokens.
            reach = torch.nn.functional.pad(ends, (0, LONGEST - 1), value=-torch.inf).unfold(0, LONGEST, 1)
            best, ahead = reach.max(-1)
            first = int((starts + best).argmax())
            found.append((float(starts[first] + best[first]), first + prefix, first + prefix + int(ahead[first])))
        return found

    def _scored(self, found, answers):
        if not answers:
            return {}
        return {
            "f1": max(word_f1(found, answer) for answer in answers),
            "exact": max(float(normalized(found) == normalized(answer)) for answer in answers),
        }

    def scores(self, measured):
        if self.has_answers:
            for key, title in (("f1", "F1 of the answers' words"), ("exact", "answers exactly right")):
                score = Score(title, self.unit, percent=True, decides=key == "f1")
                yield score.fill(measured, lambda record, key=key: (record[key], 1))
        windows = measured.get(SLIDING, {})
        yield Score(
            *("answers as sliding windows give them", self.unit),
            percent=True,
            decides=not self.has_answers,
            is_agreement=True,
        ).fill(beside(measured, SLIDING), lambda record: (record["answer"] == windows[record["id"]]["answer"], 1))


def normalized(text):
    """The words (`list[str]`) of an answer as SQuAD's evaluation (Rajpurkar et al., 2016) compares them."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def word_f1(found, answer):
    """F1 of the words of two answers."""
    found, answer = normalized(found), normalized(answer)
    common = sum((Counter(found) & Counter(answer)).values())
    return 2 * common / (len(found) + len(answer)) if common else float(found == answer)
