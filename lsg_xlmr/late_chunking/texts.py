# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""The tokens of a text, its chunks in tokens and in characters, and the passes in which it is read."""

import re
from bisect import bisect_left
from itertools import pairwise
from typing import NamedTuple


NOT_BLANK = re.compile(r"\S")


class Text:
    """The tokens of a text: `ids`, of which the first `head` and the last `tail` are the prompt's and special ones."""

    def __init__(self, text, tokenizer, prompt=""):
        whole = prompt + text
        found = tokenizer(
            whole,
            padding=False,
            truncation=False,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            verbose=False,
        )
        self.length, shift = len(text), len(prompt)
        self.ids, is_special = found["input_ids"], found["special_tokens_mask"]
        count = len(self.ids)
        before = next((i for i in range(count) if not is_special[i]), count)
        self.tail = next((i for i in range(count - before) if not is_special[-1 - i]), count - before)
        offsets = found["offset_mapping"][before : count - self.tail]
        starts, last = [], len(whole.rstrip())
        for start, _ in offsets if text.strip() else ():
            # Some tokenizers make tokens of blanks, or count them as the next word's, whose they are here too.
            character = NOT_BLANK.search(whole, start)
            starts.append(character.start() if character else starts[-1] if starts else start)
        is_prompt = [start < shift and end <= shift for start, (_, end) in zip(starts, offsets)]
        of_prompt = is_prompt.index(False) if False in is_prompt else len(offsets)
        self.head = before + of_prompt
        self.starts = [max(start - shift, 0) for start in starts[of_prompt:]]
        self.ends = [min(end, last) - shift for _, end in offsets[of_prompt:]]

    def windows(self, size):
        """`(first, last)` token of each, last exclusive."""
        count = len(self.starts)
        parts = -(-count // size)
        # A character may be of several tokens, a word's first also of the mark before it: all in one window.
        borders = {bisect_left(self.starts, self.starts[count * i // parts]) for i in range(parts)}
        return list(pairwise([*sorted(borders), count]))

    def tokens_of(self, spans, number):
        """`(first, last)` token of each of `spans`; `number` is the text's, for the errors."""
        found = []
        for span in spans:
            if len(span) != 2 or not 0 <= span[0] < span[1] <= self.length:
                raise ValueError(
                    f"`spans` has {span} for texts[{number}], and must have (start, end) with 0 <= start < end <= "
                    f"{self.length}, its characters: leave empty spans out."
                )
            first, last = (bisect_left(self.starts, place) for place in span)
            if first == last:
                raise ValueError(
                    f"`spans` has {span} for texts[{number}], in which no token begins: leave out spans of blanks, "
                    "and begin others where words do."
                )
            found.append((first, last))
        return found

    def span(self, first, last):
        """The characters of the tokens `first` to `last`, exclusive."""
        return self.starts[first], max(self.ends[first:last])


class Pass(NamedTuple):
    """What the model reads of a text at a time: token ids, of which the states of `own` are kept."""

    text: int
    ids: list[int]
    own: slice
    is_last: bool


def passes_of(number, text, embedder, max_length, overlap):
    """Yields the `Pass`es of a text, so that the states kept of all are those of `text.ids`, in order."""
    if max_length is None:
        max_length = embedder.tokenizer.model_max_length
        if max_length > 10**9:  # what transformers says of tokenizers that say nothing
            raise ValueError("The tokenizer has no `model_max_length`: give `max_length`, the most tokens of a pass.")
    count, around = len(text.starts), text.head + text.tail
    room = max_length - around
    if room < 1:
        raise ValueError(
            f"A pass of {max_length} tokens has no room for a text beside {around} of the prompt and special ones: "
            "give a greater `max_length`, if the model takes it, or a shorter `prompt`."
        )
    overlap = room // 8 if overlap is None else overlap
    if overlap >= room:
        raise ValueError(
            f"A pass of {max_length} tokens has room for {room} of a text beside {around} of the prompt and special "
            f"ones, and `overlap` is {overlap}: it must be less than that room."
        )
    size, parts = min(room, count), max(1, -(-(count - overlap) // (room - overlap)))
    firsts = [(count - size) * i // max(1, parts - 1) for i in range(parts)]
    # Half way between the middles of two passes a token stands as far from the ends of one as of the other.
    cuts = [(one + other + size) // 2 for one, other in pairwise(firsts)]
    head, content, tail = text.ids[: text.head], text.ids[text.head : text.head + count], text.ids[text.head + count :]
    for i, first in enumerate(firsts):
        start = text.head + cuts[i - 1] - first if i > 0 else 0
        end = text.head + cuts[i] - first if i < parts - 1 else around + size
        yield Pass(number, head + content[first : first + size] + tail, slice(start, end), i == parts - 1)
