# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
The ways in which a model reads a long document: the source by its beginning or in windows, the converted one at once.

A document is `<s> ... </s>`, `(tokens,)`; what all windows of it begin with, `<s>` and maybe a prompt or a question,
is its *prefix*.
"""

from dataclasses import dataclass
from functools import partial

import torch


AT_A_TIME = 8  # windows


def window_starts(count, size, stride):
    """Where windows of `size` tokens begin among `count`, none left out; the last ends with them."""
    return [*range(0, count - size, min(stride, size)), count - size]


def cut_windows(input_ids, length, stride, prefix=1):
    """
    Args:
        input_ids (`torch.Tensor` of shape `(tokens,)`): a document.
        length (`int`): tokens of a window, those of the prefix and the last among them.
        stride (`int`): tokens from the start of a window to that of the next; no more than it holds of the text.
        prefix (`int`): how many first tokens stand at the beginning of every window.

    Returns:
        the windows, `(windows, length)`, and for each token the window and the place in it where it stands farthest
        from both ends, `(tokens, 2)`. A document of at most `length` tokens is one window, as long as it is.
    """
    start, content, eos = input_ids[:prefix], input_ids[prefix:-1], input_ids[-1:]
    size = min(length - prefix - 1, len(content))
    starts = window_starts(len(content), size, stride)
    rows = torch.stack([torch.cat([start, content[first : first + size], eos]) for first in starts])
    places = torch.arange(len(content)) - torch.tensor(starts)[:, None]
    margin = torch.minimum(places, size - 1 - places)  # how far a token is from the nearer end; negative outside
    window = margin.argmax(0)
    inside = torch.stack([window, places.gather(0, window[None])[0] + prefix], dim=1)
    before = torch.stack([torch.zeros(prefix, dtype=torch.long), torch.arange(prefix)], dim=1)
    return rows, torch.cat([before, inside, torch.tensor([[len(starts) - 1, size + prefix]])])


@dataclass(frozen=True)
class Way:
    """How a long text is read: by the model that `load()` gives, whole or in windows."""

    name: str
    load: partial
    length: int | None = None  # of the windows in tokens; None: all at once
    stride: int | None = None  # of their starts; None: the first window alone

    def windows(self, input_ids, prefix=1):
        """The rows that the model reads of a document, `(tokens,)`: `(windows, length)`."""
        if self.length is None or len(input_ids) <= self.length:
            return input_ids[None]
        if self.stride is None:
            return torch.cat([input_ids[: self.length - 1], input_ids[-1:]])[None]
        return cut_windows(input_ids, self.length, self.stride, prefix)[0]

    def answers(self, model, answer, input_ids, prefix=1):
        """What `answer(model, rows)`, `(windows, tokens)` to `(windows, ...)`, says of the windows of a document."""
        return torch.cat([answer(model, rows) for rows in self.windows(input_ids, prefix).split(AT_A_TIME)])

    def hidden_states(self, model, input_ids, prefix=1):
        """
        The last hidden states of all tokens, `(tokens, hidden_size)`: a token's are those of the window in which it
        stands farthest from both ends.
        """
        if self.length is None:
            return model.base_model(input_ids[None]).last_hidden_state[0]
        rows, choice = cut_windows(input_ids, self.length, self.stride, prefix)
        hidden_states = torch.cat([model.base_model(part).last_hidden_state for part in rows.split(AT_A_TIME)])
        return hidden_states[choice[:, 0], choice[:, 1]]
