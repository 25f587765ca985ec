# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
Work on CPU in pieces, several at a time, each on one thread.

Torch's own way is the other one: every operation is cut into as many parts as there are threads, and waits for the
slowest. Beside another program one part is late at every operation; a whole piece is late once, and meanwhile the
other threads take more pieces. The two do not mix: after an operation in parts torch's threads go on spinning for
some milliseconds, and take the cores from ours. So a whole encoder runs on threads of ours.
"""

import os
import threading
from collections import deque
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from contextvars import copy_context
from functools import lru_cache
from itertools import accumulate

import torch
from transformers.utils.import_utils import is_tracing

from .libraries import prefers_onednn
from .plain import TENSORS, is_plain


# Where a loop over pieces is no slower than one big operation, and spares its memory.
PIECEWISE_DEVICES = ("cpu",)
# In a piece on one thread, and in one whose operations all threads share.
POSITIONS, POSITIONS_SHARED = 256, 1024
# Where oneDNN serves, which keeps half a megabyte or more for every number of rows it meets, pieces have multiples of
# so many, from some on powers of two; the last, of fewer than it is worth, has what is left.
ALIGNMENT, MAX_ROWS_ALIGNED, MIN_ROWS = 32, 512, 128


def runs_in_pieces(x):
    """Whether work on `x` (`torch.Tensor`, of no subclass) is best done piece by piece."""
    return x.device.type in PIECEWISE_DEVICES and not is_tracing(x) and type(x) in TENSORS


def is_eager(x):
    """
    Whether operations on `x` (`torch.Tensor`) on CPU are done as they come: no autocast, no derivative in forward
    mode, no transform of `torch.func` and no mode that sees operations, all of which hold for the thread.
    """
    return (
        runs_in_pieces(x)
        and not torch.is_autocast_enabled("cpu")
        and torch.autograd.forward_ad._current_level < 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
    )


def has_own_threads(x):
    """
    Whether work on `x` (`torch.Tensor`) may leave the caller's thread: not where gradients or anything else holds for
    that thread ([`is_eager`]), nor where it has only one to work on.
    """
    return is_eager(x) and torch.get_num_threads() > 1 and not torch.is_grad_enabled()


def run_on_own_threads(function, *args, **kwargs):
    """
    `function(*args, **kwargs)` without gradients, on a thread of ours whose torch operations are not cut into parts.
    [`run_in_parallel`] within it has as many threads as torch would use here. Where the caller is interrupted the work
    ends with the pieces that have begun. Where there are no such threads it is done on the caller's, by torch's.
    """
    pool, inference_mode = _thread_pool(torch.get_num_threads()), torch.is_inference_mode_enabled()
    interrupted, work = threading.Event(), []

    def run():
        _own.interrupted = interrupted
        return _without_gradients(inference_mode, function, args, kwargs)

    try:
        if pool is not None:
            try:
                work.append(pool.submit(copy_context().run, run))
            except RuntimeError:  # the interpreter is at its end, and takes no more
                pass
        return work[0].result() if work else function(*args, **kwargs)
    except BaseException:
        interrupted.set()
        wait(work)
        raise


def run_in_parallel(function, pieces):
    """
    Call `function(piece)` for every one of `pieces` (a list). No two calls may write to the same memory: within
    [`run_on_own_threads`] several run at a time, elsewhere one after the other.
    """
    pool = getattr(_own, "pool", None)
    if pool is None:
        for piece in pieces:
            function(piece)
        return
    queue, interrupted = deque(pieces), _own.interrupted

    def work():
        _own.interrupted = interrupted
        while queue:
            try:
                piece = queue.popleft()
            except IndexError:  # another thread was quicker
                return
            if interrupted.is_set():
                raise CancelledError
            function(piece)

    mode = torch.is_inference_mode_enabled()
    num_helpers = min(num_parallel(), len(pieces)) - 1
    helpers = [pool.submit(_without_gradients, mode, work, (), {}) for _ in range(num_helpers)]
    try:
        work()
    finally:
        queue.clear()
        # One that has not begun is not waited for: all threads may be at other callers' work.
        begun = [helper for helper in helpers if not helper.cancel()]
        wait(begun)
    for helper in begun:
        helper.result()


def num_parallel():
    """How many pieces [`run_in_parallel`] works on at a time here."""
    return getattr(_own, "num_threads", 1)


def in_pieces(function, modules, *states, num_results=1):
    """
    `function` of `states` (each `(batch_size, length, hidden_size)`), which treats every position by itself and gives
    a tuple of `num_results` more such tensors. On CPU, without gradients and where autocast does not choose the
    results' dtype, some positions at a time, if all `modules` that it calls are plain ([`is_plain`]).
    """
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not runs_in_pieces(states[0]):
        return function(*states)
    num_positions, num_threads = states[0].shape[:2].numel(), num_parallel()
    size = POSITIONS_SHARED if num_threads == 1 else POSITIONS
    if num_threads == 1 and prefers_onednn():
        bounds = list(accumulate(aligned_sizes(num_positions, size)[:-1]))
    else:
        num_pieces = max(1, round(num_positions / (size * num_threads))) * num_threads
        unit = min(ALIGNMENT, size) if prefers_onednn() else 1
        bounds = {round(num_positions * i / num_pieces / unit) * unit for i in range(1, num_pieces)}
        bounds = sorted({*bounds, num_positions // unit * unit} - {0, num_positions})
    if not bounds or not all(map(is_plain, modules)):
        return function(*states)
    results = [torch.empty_like(states[0], memory_format=torch.contiguous_format) for _ in range(num_results)]

    def run(piece):
        for result, value in zip(piece[len(states) :], function(*piece[: len(states)])):
            result.copy_(value)

    pieces = zip(*(x.flatten(0, 1).tensor_split(bounds) for x in (*states, *results)))
    run_in_parallel(run, list(pieces))
    return results


def aligned_sizes(num_rows, largest=None):
    """`num_rows` as the sum of few numbers that are often met: see `ALIGNMENT`."""
    sizes = []
    while num_rows >= MIN_ROWS:
        is_small = num_rows < MAX_ROWS_ALIGNED
        size = num_rows // ALIGNMENT * ALIGNMENT if is_small else 1 << (num_rows.bit_length() - 1)
        sizes.append(min(size, largest or size))
        num_rows -= sizes[-1]
    return [*sizes, num_rows] if num_rows or not sizes else sizes


_own = threading.local()  # set in threads of ours: their pool, its size, and what tells that they are to end


def _thread_pool(num_threads):
    """
    `num_threads` threads on which torch's operations are not cut into parts; `None` where a thread would be a part of
    the caller's, as gevent and eventlet have it, or can begin no more.
    """
    with _starting:  # of two callers at a time each would make its own
        return _new_thread_pool(num_threads)


@lru_cache
def _new_thread_pool(num_threads):
    all_started = threading.Barrier(num_threads)

    def start():
        torch.get_num_threads()  # the first call in a thread sets the number to the default
        torch.set_num_threads(1)
        _own.pool, _own.num_threads = pool, num_threads

    pool = ThreadPoolExecutor(num_threads, "lsg", start)

    def own_id(_):
        all_started.wait()
        return threading.get_native_id()

    try:
        ids = set(pool.map(own_id, range(num_threads)))
    except RuntimeError:  # which leaves those that began waiting for the others
        all_started.abort()
        pool.shutdown(wait=False)
        return None
    finally:
        torch.set_num_threads(num_threads)  # `start` has changed the default of threads to come, too
    if threading.get_native_id() in ids:
        pool.shutdown(wait=False)
        return None
    return pool


def _forget_threads():
    """In a child process, which has none of its parent's: neither those of a pool nor one that would end a start."""
    global _starting
    _starting = threading.Lock()
    _new_thread_pool.cache_clear()


_starting = threading.Lock()
if hasattr(os, "register_at_fork"):  # where processes fork
    os.register_at_fork(after_in_child=_forget_threads)


def _without_gradients(inference_mode, function, args, kwargs):
    """Both modes are a thread's own, and ours begin with gradients."""
    with torch.inference_mode(inference_mode), torch.no_grad():
        return function(*args, **kwargs)
