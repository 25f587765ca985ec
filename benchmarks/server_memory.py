# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
The memory of a server over 2,000 requests of random lengths: `python benchmarks/server_memory.py`.

XLM-RoBERTa base's shape with 2 layers, random weights; the same requests to stock XLM-RoBERTa, to LSG as it is, and to
LSG without `keep_freed_memory`, each in a process of its own. Writes `server_memory.json` and
`docs/server_memory.png`. Linux with glibc only.
"""

import ctypes
import json
import random
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from machine import describe_machine
from tqdm import tqdm
from transformers import XLMRobertaConfig, XLMRobertaModel

from lsg_xlmr import LSGConfig, LSGXLMRobertaModel, attention


REQUESTS, WARM = 2000, 100
SHORTEST, LONGEST = 8, 2048  # tokens; as many requests of 8 to 16 as of 1,024 to 2,048
CASES = ("stock", "lsg", "lsg without keep_freed_memory")
RESULTS = Path(__file__).with_suffix(".json")
FIGURE = Path(__file__).parents[1] / "docs" / "server_memory.png"


class MallInfo(ctypes.Structure):
    """`struct mallinfo2` of mallinfo(3)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


@torch.inference_mode()
def serve(case):
    """
    Answers all requests. MiB after each, less those before the first: resident, and in use, which leaves out what is
    freed and the allocator keeps; what is resident when the allocator is told to give that back; the seconds of all.
    """
    fields = {"vocab_size": 1000, "num_hidden_layers": 2, "max_position_embeddings": LONGEST + 2, "type_vocab_size": 1}
    if case == "lsg without keep_freed_memory":
        attention.keep_freed_memory = lambda: None
    stock = case == "stock"
    model = (XLMRobertaModel(XLMRobertaConfig(**fields)) if stock else LSGXLMRobertaModel(LSGConfig(**fields))).eval()
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = MallInfo

    def in_use_mib():
        info = libc.mallinfo2()
        return (info.uordblks + info.hblkhd) / 2**20

    rng, resident, in_use, start = random.Random(0), [], [], time.perf_counter()
    resident_before, in_use_before = resident_mib(), in_use_mib()
    for _ in tqdm(range(REQUESTS), case):
        length = round(SHORTEST * (LONGEST / SHORTEST) ** rng.random())
        model(torch.randint(5, 999, (1, length)))
        resident.append(round(resident_mib() - resident_before, 1))
        in_use.append(round(in_use_mib() - in_use_before, 1))
    seconds = round(time.perf_counter() - start, 1)
    libc.malloc_trim(0)
    trimmed = round(resident_mib() - resident_before, 1)
    return {"resident_mib": resident, "in_use_mib": in_use, "trimmed_mib": trimmed, "seconds": seconds}


def resident_mib():
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def summary(found):
    """What a server's owner asks: how much it keeps, and whether it grows."""
    resident, in_use = found["resident_mib"], found["in_use_mib"]
    return {
        "resident_largest_of_first_100_mib": max(resident[:WARM]),
        "resident_largest_after_mib": max(resident[WARM:]),
        "resident_median_of_last_500_mib": statistics.median(resident[-500:]),
        "resident_trimmed_mib": found["trimmed_mib"],
        "in_use_largest_of_first_100_mib": max(in_use[:WARM]),
        "in_use_largest_after_mib": max(in_use[WARM:]),
        "seconds": found["seconds"],
    }


def draw(results):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 4), layout="constrained")
    for case, found in results.items():
        (line,) = axis.plot(found["resident_mib"], label=f"{case}, resident", linewidth=0.8)
        axis.plot(found["in_use_mib"], label=f"{case}, in use", linewidth=0.8, color=line.get_color(), linestyle=":")
    axis.set(xlabel="requests", ylabel="MiB above the start", ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(FIGURE, dpi=110)


def main():
    if len(sys.argv) > 1:
        print(json.dumps(serve(sys.argv[1])))
        return
    results = {}
    for case in CASES:
        done = subprocess.run([sys.executable, __file__, case], check=True, stdout=subprocess.PIPE, text=True)
        results[case] = json.loads(done.stdout)
    summaries = {case: summary(found) for case, found in results.items()}
    machine = describe_machine("cpu", torch.get_num_threads())
    RESULTS.write_text(json.dumps({"machine": machine, "summary": summaries, "requests": results}) + "\n")
    draw(results)
    for case, found in summaries.items():
        print(f"{case:32}", found)


if __name__ == "__main__":
    main()
