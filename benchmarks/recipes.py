# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
What a batch of mixed lengths costs, as texts come and sorted by length: `python benchmarks/recipes.py`.

XLM-RoBERTa base's shape with 4 layers, random weights. Writes `recipes.json`; seconds are medians over rounds in turn.
"""

import json
import random
import statistics
import time
from pathlib import Path

import torch
from tqdm import trange

from lsg_xlmr import LSGConfig, LSGXLMRobertaModel


SHORT, LONG = 100, 4096  # tokens
NUM_SHORT, NUM_LONG, BATCH, ROUNDS = 48, 4, 13, 3


def read(model, lengths):
    """Seconds for texts of `lengths` tokens in batches in the given order."""
    start = time.perf_counter()
    for first in range(0, len(lengths), BATCH):
        batch = lengths[first : first + BATCH]
        mask = torch.arange(max(batch)) < torch.tensor(batch)[:, None]
        model(torch.full(mask.shape, 7).where(mask, torch.tensor(1)), mask.long())
    return time.perf_counter() - start


@torch.inference_mode()
def main():
    torch.manual_seed(0)
    config = LSGConfig(vocab_size=1000, num_hidden_layers=4, max_position_embeddings=LONG + 2, type_vocab_size=1)
    model = LSGXLMRobertaModel(config, add_pooling_layer=False).eval()
    as_they_come = [SHORT] * NUM_SHORT + [LONG] * NUM_LONG
    random.Random(0).shuffle(as_they_come)
    orders = {"as they come": as_they_come, "sorted by length": sorted(as_they_come)}
    read(model, [LONG])
    seconds = {name: [] for name in orders}
    for _ in trange(ROUNDS):
        for name, lengths in orders.items():
            seconds[name].append(read(model, lengths))
    medians = {name: round(statistics.median(values), 2) for name, values in seconds.items()}
    Path(__file__).with_suffix(".json").write_text(
        json.dumps({"seconds": medians, "rounds": seconds}, indent=1) + "\n"
    )
    print(medians)


if __name__ == "__main__":
    main()
