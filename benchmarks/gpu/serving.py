"""A server's first minutes: requests of random lengths one after the other, and the same again."""

import random

import torch
from clock import num_graphs, seconds
from scale import SEED, texts


SLOW = 1.0  # seconds that a request waits at most where nothing is compiled


@torch.no_grad()
def answer(scale, device):
    """Yields a row for each model."""
    generator = random.Random(SEED)
    lengths = [generator.randint(1, scale.longest) for _ in range(scale.requests)]
    for name, implementation in (("lsg", "flex_attention"), ("stock", "sdpa")):
        model = scale.model(name, torch.bfloat16, device, implementation)
        before, passes = num_graphs(), []
        for _ in range(2):
            requests = [texts(scale, 1, length, device) for length in lengths]
            passes.append([seconds(lambda: model(**inputs), device) for inputs in requests])
        first, again = passes
        yield {
            "model": name,
            "requests": len(lengths),
            "longest": scale.longest,
            "first_seconds": sum(first),
            "again_seconds": sum(again),
            "slow_at_first": sum(x > SLOW for x in first),
            "slow_again": sum(x > SLOW for x in again),
            "slowest_at_first": max(first),
            "graphs": num_graphs() - before,
        }
