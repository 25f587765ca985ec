# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
What depends on an input's length. A graph that `torch.export` or `torch.jit.trace` makes is run with other lengths
than that it was made with, and nothing asks again: so in it nothing may depend on this one. All windows at once give
short inputs the numbers of full attention, and so there every length takes them.
"""

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true


def is_exporting():
    """Whether `torch.export` makes a graph, which is to run where no code of ours is."""
    return getattr(torch.compiler, "is_exporting", lambda: False)()  # since torch 2.7


def is_old_onnx_export():
    """Whether `torch.onnx.export(..., dynamo=False)` makes a graph, from a trace."""
    return torch.jit.is_tracing() and torch.onnx.is_in_onnx_export()


def is_open(num_tokens):
    """Whether a graph is being made that is to hold for other numbers of tokens than `num_tokens` too."""
    return type(num_tokens) is not int or is_exporting()


def is_short(num_tokens, config):
    """
    Whether there are no more than two blocks of tokens, of which every query sees every key. Of an open length it is
    said only where no longer one can come.
    """
    short = num_tokens <= 2 * config.block_size
    if not is_open(num_tokens):
        return short
    return not torch.jit.is_tracing() and statically_known_true(short)


def count_padding(num_tokens, config):
    """
    How many positions `num_tokens` are filled up by, to whole blocks: none where they are short, nor in a decoder. Of
    an open length decoders are filled up too, and all to two blocks at least: symbolic shapes would tie a graph to
    there being one, or more.
    """
    open_length, b = is_open(num_tokens), config.block_size
    if is_short(num_tokens, config) or (config.is_decoder and not open_length):
        return 0
    num_blocks = (num_tokens + b - 1) // b  # ONNX files divide towards 0
    if open_length and not torch.jit.is_tracing():
        num_blocks = torch.sym_max(num_blocks, 2)
    return num_blocks * b - num_tokens
