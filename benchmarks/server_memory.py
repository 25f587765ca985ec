# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
The memory of a server over 2,000 requests of random lengths: `python benchmarks/server_memory.py`.

XLM-RoBERTa base's shape with 2 layers, random weights; the same requests to stock XLM-RoBERTa, to LSG as it is, and to
LSG without `keep_freed_memory`, each in a process of its own. Writes `server_memory.json` and
`docs/server_memory.png`. Linux only.
"""

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

from lsg_xlmr import LSGConfig, LSGXLMRobertaModel
from lsg_xlmr.attention import encoder_attention


REQUESTS, WARM = 2000, 100
SHORTEST, LONGEST = 8, 4096  # tokens; as many requests of 8 to 16 as of 2,048 to 4,096
CASES = ("stock", "lsg", "lsg without keep_freed_memory")
RESULTS = Path(__file__).with_suffix(".json")
FIGURE = Path(__file__).parents[1] / "docs" / "server_memory.png"


@torch.inference_mode()
def serve(case):
    """Answers all requests; MiB that are resident after each, less those before the first, and the seconds of all."""
    fields = {"vocab_size": 1000, "num_hidden_layers": 2, "max_position_embeddings": LONGEST + 2, "type_vocab_size": 1}
    if case == "lsg without keep_freed_memory":
        encoder_attention.keep_freed_memory = lambda: None
    stock = case == "stock"
    model = (XLMRobertaModel(XLMRobertaConfig(**fields)) if stock else LSGXLMRobertaModel(LSGConfig(**fields))).eval()
    rng, resident, before, start = random.Random(0), [], resident_mib(), time.perf_counter()
    for _ in tqdm(range(REQUESTS), case):
        length = round(SHORTEST * (LONGEST / SHORTEST) ** rng.random())
        model(torch.randint(5, 999, (1, length)))
        resident.append(round(resident_mib() - before, 1))
    return {"resident_mib": resident, "seconds": round(time.perf_counter() - start, 1)}


def resident_mib():
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def summary(found):
    """What a server's owner asks: how much it keeps, and whether it grows."""
    warm, rest = found["resident_mib"][:WARM], found["resident_mib"][WARM:]
    return {
        "median_mib": statistics.median(rest),
        "largest_of_first_100_mib": max(warm),
        "largest_after_mib": max(rest),
        "median_of_last_500_mib": statistics.median(rest[-500:]),
        "seconds": found["seconds"],
    }


def draw(results):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 4), layout="constrained")
    for case, found in results.items():
        axis.plot(found["resident_mib"], label=case, linewidth=0.8)
    axis.set(xlabel="requests", ylabel="MiB resident above the start", ylim=(0, None))
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
