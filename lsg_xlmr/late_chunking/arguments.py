# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""What `late_chunks` is given, as it is used: lists of what can be told, whole numbers, or an error in one line."""

from operator import index


def texts_of(texts):
    """`texts` as a `list[str]`."""
    if isinstance(texts, (str, bytes)) or not hasattr(texts, "__iter__"):
        raise TypeError(f"`texts` must be a list of str, got one {type(texts).__name__}: put it in a list.")
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"`texts` must be a list of str, got {type(text).__name__} in texts[{i}].")
    return texts


def spans_of(spans, texts):
    """`spans` as a `list[list[tuple[int, int]]]`, a list for each of the `texts`; of anything iterable."""
    if not hasattr(spans, "__iter__"):
        raise TypeError(f"`spans` must be a list with the spans of each text, got {spans!r}.")
    found = []
    for i, of_text in enumerate(spans):
        try:
            found.append([tuple(map(index, span)) for span in of_text])
        except TypeError as error:
            raise TypeError(
                f"`spans` has {of_text!r} for texts[{i}], and must have a list of pairs (start, end), whole numbers."
            ) from error
    if len(found) != len(texts):
        raise ValueError(f"`spans` must have a list for each text, got {len(found)} for {len(texts)} texts.")
    return found


def count_of(name, value, least=1):
    """`value` as an `int`, or None where there is none."""
    if value is None:
        return None
    try:
        number = least - 1 if isinstance(value, bool) else index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise ValueError(f"`{name}` must be a whole number of {least} or more, got {value!r}.")
    return number
