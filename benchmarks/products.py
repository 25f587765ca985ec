"""
The products of a layer by torch's own library and by the one that `cpu/products.py` takes on this CPU, one thread:
`python benchmarks/products.py`. Writes `products.json` beside this file, draws `docs/products.png` and prints a table.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from machine import describe_machine
from matplotlib import pyplot as plt

from lsg_xlmr.cpu.libraries import amd_family, prefers_onednn
from lsg_xlmr.cpu.products import fastest


HERE = Path(__file__).parent
SHAPES = {"projection": (768, 768), "feed-forward, first": (768, 3072), "feed-forward, second": (3072, 768)}
ROWS = 32, 128, 256, 1024, 4096
REPEATS = 9
LEAST_SECONDS = 0.02  # of one measurement; shorter products are repeated


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n")[1])
    parser.add_argument("--plot-only", action="store_true", help="draw and print what has been measured before")
    path = HERE / "products.json"
    if not parser.parse_args().plot_only:
        path.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
    results = json.loads(path.read_text(encoding="utf-8"))
    print(table(results))
    draw(results, HERE.parent / "docs" / "products.png")


def measure():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    machine = describe_machine("cpu", 1) | {"amd_family": amd_family(), "prefers_onednn": prefers_onednn()}
    products = []
    for name, (in_features, out_features) in SHAPES.items():
        linear = torch.nn.Linear(in_features, out_features)
        for num_rows in ROWS:
            for is_training in (False, True):
                if not is_training or num_rows == max(ROWS):
                    products.append({"product": name, "rows": num_rows} | compare(linear, num_rows, is_training))
                    print(products[-1], flush=True)
    return {"machine": machine, "products": products}


def compare(linear, num_rows, is_training):
    """Thousand million operations a second of both, medians in turn, and their root mean square errors."""
    states = torch.randn(num_rows, linear.in_features, requires_grad=is_training)
    grad = torch.randn(num_rows, linear.out_features)
    linear.requires_grad_(is_training)

    def run(product):
        result = product(states)
        return torch.autograd.grad(result, [states, linear.weight], grad) if is_training else (result,)

    def ours(states):  # the copy of a weight included
        return fastest(linear, states)(states)

    with torch.set_grad_enabled(is_training):
        rates = side_by_side(partial(run, linear), partial(run, ours))
        found = [run(product) for product in (linear, ours)]
    exact = run_exactly(linear, states, grad, is_training)
    operations = 2 * num_rows * linear.in_features * linear.out_features * (3 if is_training else 1)
    return {
        "training": is_training,
        "gflops": [round(operations * rate / 1e9, 1) for rate in rates],
        "error": [float(f"{max(map(relative_error, results, exact)):.2e}") for results in found],
    }


def run_exactly(linear, states, grad, is_training):
    states, weight, grad = (x.detach().double() for x in (states, linear.weight, grad))
    if is_training:
        return grad @ weight, grad.t() @ states
    return (states @ weight.t() + linear.bias.detach().double(),)


def relative_error(found, exact):
    return ((found.detach() - exact).square().mean() / exact.square().mean()).sqrt().item()


def side_by_side(*functions):
    """How often each can be called a second, the median of measurements in turn."""
    seconds = []
    for function in functions:
        function()
        start = perf_counter()
        function()
        seconds.append(perf_counter() - start)
    counts = [max(1, round(LEAST_SECONDS / one)) for one in seconds]
    rates = [[] for _ in functions]
    turns = list(zip(functions, counts, rates))
    for repeat in range(REPEATS):
        for function, count, found in turns[:: -1 if repeat % 2 else 1]:
            start = perf_counter()
            for _ in range(count):
                function()
            found.append(count / (perf_counter() - start))
    return [median(found) for found in rates]


def table(results):
    lines = ["| product | rows | torch, GFLOP/s | here | times | error of torch's | here |", "|" + " --- |" * 7]
    for product in results["products"]:
        (torch_rate, rate), (torch_error, error) = product["gflops"], product["error"]
        name = product["product"] + (", training" if product["training"] else "")
        cells = name, product["rows"], torch_rate, rate, f"{rate / torch_rate:.2f}", torch_error, error
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def draw(results, path):
    figure, all_axes = plt.subplots(1, len(SHAPES), figsize=(10, 3.2), sharey=True, layout="constrained")
    for axes, name in zip(all_axes, SHAPES):
        products = [x for x in results["products"] if x["product"] == name and not x["training"]]
        for place, label in enumerate(("torch's own (MKL)", "here")):
            axes.plot([x["rows"] for x in products], [x["gflops"][place] for x in products], "o-", label=label)
        axes.set(title=name, xlabel="rows", xscale="log", ylim=(0, None))
        axes.set_xticks(ROWS, labels=ROWS, minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("thousand million operations\na second, one thread")
    all_axes[0].legend(loc="lower right")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
