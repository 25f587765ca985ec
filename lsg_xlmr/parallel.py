# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
Work on CPU in pieces, several at a time, each on one thread.

Torch's own way is the other one: every operation is cut into as many parts as there are threads and waits for the
slowest. Beside another program that part is late at every operation; a whole piece is late once, and meanwhile the
other threads take more pieces.
"""

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier

import torch
from transformers.utils.import_utils import is_tracing


# Where a loop over pieces is no slower than one big operation, and spares its memory.
PIECEWISE_DEVICES = ("cpu",)
# What a piece has at least, and about, for matrix products to be as quick as those of the whole.
MIN_POSITIONS, POSITIONS = 64, 256


def runs_in_pieces(x):
    """Whether work on `x` (`torch.Tensor`) is best done piece by piece."""
    return x.device.type in PIECEWISE_DEVICES and not is_tracing(x)


def run_in_parallel(function, pieces):
    """
    Call `function(piece)` for every one of `pieces` (a list), on as many threads as torch would use here. `function`
    runs without gradients and autocast, and no two of its calls may write to the same memory. Where there are fewer
    pieces than threads, or the caller's thread is in a mode that others would not see, one piece follows the other.
    """
    num_threads = torch.get_num_threads()
    if num_threads == 1 or len(pieces) < num_threads or _has_modes():
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            for piece in pieces:
                function(piece)
        return
    inference_mode, queue = torch.is_inference_mode_enabled(), deque(pieces)

    def work():
        with torch.inference_mode(inference_mode), torch.no_grad():
            while queue:
                try:
                    piece = queue.popleft()
                except IndexError:  # another thread was quicker
                    return
                function(piece)

    threads = _threads(num_threads)
    for future in [threads.submit(work) for _ in range(num_threads)]:
        future.result()


def in_pieces(function, modules, *states):
    """
    `function` of `states` (each `(batch_size, length, hidden_size)`), which treats every position by itself. On CPU
    and without gradients, some positions at a time, unless one of the `modules` that it calls has hooks, which are to
    see the whole, or is being trained, where random numbers are drawn in turn.
    """
    num_positions, num_threads = states[0].shape[:2].numel(), torch.get_num_threads()
    if (
        torch.is_grad_enabled()
        or not runs_in_pieces(states[0])
        or torch.is_autocast_enabled("cpu")
        or num_positions < MIN_POSITIONS * num_threads
        or any(map(_is_watched, modules))
    ):
        return function(*states)
    num_pieces = -(-num_positions // (POSITIONS * num_threads)) * num_threads
    out = torch.empty_like(states[0], memory_format=torch.contiguous_format)

    def run(piece):
        *inputs, result = piece
        result.copy_(function(*inputs))

    run_in_parallel(run, list(zip(*(x.flatten(0, 1).tensor_split(num_pieces) for x in (*states, out)))))
    return out


@lru_cache
def _threads(num_threads):
    """A pool of `num_threads` threads on which torch's operations are not cut into parts."""

    def start():
        torch.get_num_threads()  # the first call in a thread sets the number to the default
        torch.set_num_threads(1)

    pool = ThreadPoolExecutor(num_threads, "lsg", start)
    all_started = Barrier(num_threads)
    list(pool.map(lambda _: all_started.wait(), range(num_threads)))
    torch.set_num_threads(num_threads)  # `start` has set the default of threads to come, too
    return pool


if hasattr(os, "register_at_fork"):  # where processes fork: the child has none of its parent's threads
    os.register_at_fork(after_in_child=_threads.cache_clear)


def _has_modes():
    """Whether there is a transform of `torch.func` or a dispatch mode, which hold for the caller's thread alone."""
    return torch._C._functorch.peek_interpreter_stack() is not None or torch._C._len_torch_dispatch_stack() > 0


def _is_watched(module):
    """Whether `module` (`nn.Module`) is in train mode, or has hooks or a `forward` other than its class's in it."""
    return module.training or any(
        m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in module.modules()
    )
