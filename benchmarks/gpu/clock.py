"""Seconds, peak memory and compiled graphs of a run."""

from time import perf_counter

import torch
from torch._dynamo.utils import counters


def seconds(run, device):
    """How long `run()` takes, with all that it starts on the device."""
    _wait(device)
    start = perf_counter()
    run()
    _wait(device)
    return perf_counter() - start


def peak_mib(run, device):
    """The most memory that tensors take while `run()` goes on, above what they take before; `None` off CUDA."""
    if device != "cuda":
        run()
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def num_graphs():
    """How many graphs were compiled in this process."""
    return counters["stats"]["unique_graphs"]


def _wait(device):
    if device == "cuda":
        torch.cuda.synchronize()
