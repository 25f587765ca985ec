"""
The source and its long versions: with dense attention or LSG, and the ways in which each reads a long document.

A *way* is a model and a function `(model, input_ids) -> hidden_states`, `(1, length)` to `(1, length, hidden_size)`.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn.functional import interpolate
from transformers import XLMRobertaConfig

from lsg_xlmr.conversion import LSGConverter, tile_positions


def stretch_positions(table, num_rows, offset):
    """Like `tile_positions`, but the positions are interpolated linearly instead of repeated."""
    stretched = interpolate(table[offset:].T[None], size=num_rows - offset, mode="linear", align_corners=True)
    return torch.cat([table[:offset], stretched[0].T])


POSITIONS = {"tiled": tile_positions, "interpolated": stretch_positions}


def stock(model_class, source):
    """The source as it is, in eval mode."""
    return model_class.from_pretrained(source).eval()


@torch.no_grad()
def set_positions(model, table):
    """Gives `model` the position embeddings `table`, `(rows, hidden_size)`."""
    embeddings, config = model.base_model.embeddings, model.config
    config.max_position_embeddings = len(table)
    embeddings.position_embeddings = nn.Embedding.from_pretrained(table, freeze=False, padding_idx=config.pad_token_id)
    embeddings.register_buffer("position_ids", torch.arange(len(table))[None], persistent=False)
    embeddings.register_buffer("token_type_ids", torch.zeros(1, len(table), dtype=torch.long), persistent=False)


def dense(model_class, source, length, positions="tiled"):
    """The source with full attention and positions for `length` tokens, in eval mode."""
    model = stock(model_class, source)
    offset = model.config.pad_token_id + 1
    table = model.base_model.embeddings.position_embeddings.weight.detach()
    set_positions(model, POSITIONS[positions](table, length + offset, offset))
    return model


def lsg(model_class, source, length, positions="tiled", **fields):
    """The source converted to LSG, in eval mode; `fields` are those of `LSGConfig`."""
    model, _ = LSGConverter(length).convert_from_pretrained(source, model_class.__name__, **fields)
    if positions != "tiled":
        set_positions(
            model, dense(model_class, source, length, positions).base_model.embeddings.position_embeddings.weight
        )
    return model


def source_length(source):
    """Longest input of the checkpoint in tokens."""
    config = XLMRobertaConfig.from_pretrained(source)
    return config.max_position_embeddings - config.pad_token_id - 1


def cut_windows(input_ids, length, stride):
    """
    Windows over `<s> ... </s>`, `(tokens,)`: `(windows, length)`, and for each token the window and the place in it.
    A text of at most `length` tokens is one window, as long as it is.
    """
    bos, content, eos = input_ids[:1], input_ids[1:-1], input_ids[-1:]
    size = min(length - 2, len(content))
    starts = [*range(0, len(content) - size, stride), len(content) - size]
    rows = torch.stack([torch.cat([bos, content[start : start + size], eos]) for start in starts])
    places = torch.arange(len(content)) - torch.tensor(starts)[:, None]
    margin = torch.minimum(places, size - 1 - places)  # how far a token is from the nearer end; negative outside
    window = margin.argmax(0)
    inside = torch.stack([window, places.gather(0, window[None])[0] + 1], dim=1)
    first, last = torch.tensor([[0, 0]]), torch.tensor([[len(starts) - 1, size + 1]])
    return rows, torch.cat([first, inside, last])


@dataclass(frozen=True)
class Way:
    """How a long text is read: by the model that `load()` gives, whole or in windows."""

    name: str
    load: partial
    length: int | None = None  # of the windows in tokens; None: all at once
    stride: int | None = None  # of their starts; None: the first window alone

    def windows(self, input_ids):
        """The rows that the model reads of `<s> ... </s>`, `(tokens,)`: `(windows, length)`."""
        if self.length is None or len(input_ids) <= self.length:
            return input_ids[None]
        if self.stride is None:
            return torch.cat([input_ids[: self.length - 1], input_ids[-1:]])[None]
        return cut_windows(input_ids, self.length, self.stride)[0]

    def hidden_states(self, model, input_ids):
        """
        The last hidden states of all tokens, `(tokens, hidden_size)`: a token's are those of the window in which it
        stands farthest from both ends.
        """
        if self.length is None:
            return model.base_model(input_ids[None]).last_hidden_state[0]
        rows, choice = cut_windows(input_ids, self.length, self.stride)
        hidden_states = torch.cat([model.base_model(part).last_hidden_state for part in rows.split(8)])
        return hidden_states[choice[:, 0], choice[:, 1]]


def ways(model_class, source, length, lsg_fields):
    """The `Way`s of everything that is compared: the source by windows, dense attention, and LSG by `lsg_fields`."""
    short = source_length(source)
    original = partial(stock, model_class, source)
    yield Way("chunks", original, short, short - 2)
    yield Way("sliding", original, short, (short - 2) // 2)
    for positions in POSITIONS:
        yield Way(f"dense {positions}", partial(dense, model_class, source, length, positions))
    for name, fields in lsg_fields.items():
        yield Way(name, partial(lsg, model_class, source, length, **fields))
