"""Forward passes and training steps in bfloat16, against XLM-RoBERTa on SDPA, batches of equally many tokens."""

from statistics import median

import torch
from clock import num_graphs, peak_mib, seconds
from scale import SEED, texts


DTYPE = torch.bfloat16
# Times stock's speed to reach by length; of memory, the part of stock's.
GOALS = {("forward", 512): 1 / 1.1, ("forward", 2048): 1.4, ("forward", 4096): 2.0}
GOALS |= {("forward", 8192): 3.0, ("forward", 16384): 5.0}
MEMORY_GOALS = {("training", 4096): 0.5}


def measure(scale, device):
    """Yields a row for each work and length."""
    models = _models(scale, device)
    for work in ("forward", "training"):
        for length in scale.lengths:
            yield _row(work, models, scale, device, length)
    del models
    # The default: FlexAttention has no dropout, and windows are gathered.
    models = _models(scale, device, attention_probs_dropout_prob=0.1)
    yield _row("training with dropout of attention", models, scale, device, scale.trained_with_dropout)


def _models(scale, device, attention_probs_dropout_prob=0.0):
    implementations = {"lsg": "flex_attention", "stock": "sdpa"}
    models = {name: scale.model(name, DTYPE, device, chosen) for name, chosen in implementations.items()}
    for model in models.values():
        for layer in model.encoder.layer:
            layer.attention.self.dropout.p = attention_probs_dropout_prob
    return models


def _row(work, models, scale, device, length):
    row = {"work": work, "length": length, "batch_size": max(1, scale.tokens // length)}
    inputs = texts(scale, row["batch_size"], length, device)
    runs = {}
    for name, model in models.items():
        row[name], runs[name] = _first(work, model, inputs, device)
    runs = {name: run for name, run in runs.items() if run is not None}
    for _ in range(scale.repeats):
        for name, run in runs.items():
            row[name]["seconds"].append(seconds(run, device))
    if len(runs) == len(models):
        lsg, stock = row["lsg"], row["stock"]
        row["times_faster"] = median(stock["seconds"]) / median(lsg["seconds"])
        row["goal"] = GOALS.get((work, length))
        if lsg["peak_mib"]:
            row["memory"] = lsg["peak_mib"] / stock["peak_mib"]
            row["memory_goal"] = MEMORY_GOALS.get((work, length))
    return row


def _first(work, model, inputs, device):
    """What the first runs tell, and the run; `None` where it does not fit."""
    run = _training(model, inputs) if work != "forward" else _forward(model, inputs)
    before = num_graphs()
    try:
        result = {"first_seconds": seconds(run, device), "graphs": num_graphs() - before}
        run()
        return result | {"peak_mib": peak_mib(run, device), "seconds": []}, run
    except torch.OutOfMemoryError as error:
        model.zero_grad(set_to_none=True)
        return {"error": str(error).splitlines()[0]}, None


def _forward(model, inputs):
    model.eval()

    @torch.no_grad()
    def run():
        model(**inputs)

    return run


def _training(model, inputs):
    if inputs["input_ids"].device.type == "cpu":
        model.set_attn_implementation("sdpa")  # FlexAttention has no backward pass there
    model.train()
    shape = *inputs["input_ids"].shape, model.config.hidden_size
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(SEED)).to(inputs["input_ids"].device, DTYPE)

    def run():
        model(**inputs).last_hidden_state.backward(gradient)
        model.zero_grad(set_to_none=True)

    return run
