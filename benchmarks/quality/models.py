"""
The source and its long versions: with dense attention or LSG, and the `Way`s in which each reads a long document.
"""

from functools import partial

import torch
from torch import nn
from torch.nn.functional import interpolate
from transformers import XLMRobertaConfig

from lsg_xlmr.conversion import LSGConverter, tile_positions
from lsg_xlmr.evaluation.ways import Way, cut_windows


__all__ = ["Way", "cut_windows", "dense", "lsg", "source_length", "stock", "stretch_positions", "ways"]


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
