"""Draws length against time and memory, a line per model, from the forward rows of the results; and whole jobs."""

from statistics import median

import matplotlib.pyplot as plt
from matplotlib.ticker import NullLocator


SHORTEST = 512  # tokens
# Label, colour and marker; the colours are apart for colour-blind readers too.
LINES = {
    "lsg": ("LSG, this repository", "#D55E00", "o"),
    "floor": ("the same without attention", "#999999", "."),
    "published": ("LSG, lsg-converter 0.1.9", "#56B4E9", "P"),
    "stock": ("XLM-RoBERTa, SDPA", "#000000", "s"),
    "modernbert": ("ModernBERT (not run at 16,384)", "#009E73", "D"),
    "longformer": ("Longformer", "#E69F00", "^"),
    "bigbird": ("BigBird (not run at 16,384)", "#CC79A7", "v"),
}
ONNX_LINES = {
    "lsg": ("LSG, ONNX Runtime", "#D55E00", "o"),
    "lsg-int8": ("LSG, ONNX Runtime, 8 bits", "#E69F00", "^"),
    "lsg-torch": ("LSG, PyTorch", "#CC79A7", "v"),
    "stock-torch": ("XLM-RoBERTa, PyTorch SDPA", "#000000", "s"),
    "stock": ("XLM-RoBERTa, ONNX Runtime", "#56B4E9", "P"),
    "stock-fused": ("the same, fused attention", "#009E73", "D"),
    "stock-fused-int8": ("the same, 8 bits", "#999999", "."),
}
TICKS = [value * 10**power for power in range(-2, 5) for value in (1, 2, 5)]


def draw(section, folder):
    """Write `speed.png` and `memory.png` to `folder` from a device's section of the results."""
    results = [
        result
        for name, row in section["rows"].items()
        for case, result in row.get("cases", {}).items()
        if name.startswith("forward-")
        and case in LINES
        and result.get("seconds")
        and result["case"]["length"] >= SHORTEST
    ]
    folder.mkdir(parents=True, exist_ok=True)
    seconds = {(r["case"]["model"], r["case"]["length"]): median(r["seconds"]) for r in results}
    mebibytes = {(r["case"]["model"], r["case"]["length"]): r["peak_mib"] for r in results}
    _draw_figure(folder / "speed.png", seconds, "seconds", "Time of one forward pass", section["machine"])
    title = "Peak memory of one forward pass, above the weights"
    _draw_figure(folder / "memory.png", mebibytes, "MiB", title, section["machine"])


# What is faster than what in the figure of whole jobs: row, case, the case it is compared with, and the bar's label.
JOBS = (
    ("fill-mask", "lsg", "stock", "filling a mask"),
    ("masked-lm-training", "lsg", "lsg-dense", "masked-LM training step\n(against the head at every position)"),
    ("classification-training", "lsg", "stock", "classification training step,\nbatch 4, checkpointing (2 layers)"),
    ("forward-4096", "lsg", "stock", "encoder (4 layers)"),
    ("bfloat16", "lsg", "stock", "encoder in bfloat16"),
    ("beside-neighbour", "lsg", "stock", "encoder, one core busy"),
    ("two-workers", "lsg", "stock", "encoder, two processes at a time"),
)
DECODER_JOBS = (
    ("causal-training", "lsg", "stock", "causal-LM training step,\n4,096 tokens (4 layers)"),
    ("decoding-4096", "lsg", "stock", "8 tokens after 4,096\n(12 layers, 250,002 words)"),
    ("decoding-16384", "lsg", "stock", "8 tokens after 16,384"),
)


def draw_jobs(section, path, jobs, label):
    """Write a figure to `path`: how many times faster `jobs` are; its axis is named by `label`."""
    bars = []
    for name, case, against, label_of_bar in jobs:
        cases = section["rows"].get(name, {}).get("cases", {})
        if all("seconds" in cases.get(other, {}) for other in (case, against)):
            seconds = [median(cases[other]["seconds"]) for other in (against, case)]
            bars.append((label_of_bar, seconds[0] / seconds[1], f"{seconds[0]:,.3g} s, {seconds[1]:,.3g} s"))
    figure, axes = plt.subplots(figsize=(8, 0.6 * len(bars) + 1.4), layout="constrained")
    labels, ratios, notes = zip(*reversed(bars))
    drawn = axes.barh(labels, ratios, color=LINES["lsg"][1])
    axes.bar_label(drawn, [f"{ratio:.1f}   ({note})" for ratio, note in zip(ratios, notes)], padding=4)
    axes.axvline(1, color="#000000", linewidth=1)
    axes.set(xlim=(0, 1.5 * max(ratios)), xlabel=f"{label} (before, after)")
    axes.spines[["top", "right"]].set_visible(False)
    title = f"Against XLM-RoBERTa on SDPA; {section['machine']['cpu']}, 2 cores"
    figure.suptitle(title, x=0.01, horizontalalignment="left", fontweight="bold")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_onnx(section, folder):
    """Write `onnx.png` to `folder`, from the rows of ONNX Runtime."""
    seconds = {
        (name, result["case"]["length"]): median(result["seconds"])
        for row_name, row in section["rows"].items()
        for name, result in row.get("cases", {}).items()
        if row_name.startswith("onnx-") and "padded" not in row_name and "seconds" in result
    }
    title = "Time of one forward pass, ONNX Runtime and PyTorch"
    _draw_figure(folder / "onnx.png", seconds, "seconds", title, section["machine"], ONNX_LINES)


def _draw_figure(path, points, unit, title, machine, lines=LINES):
    """`points` maps (line, tokens) to a value."""
    figure, axes = plt.subplots(figsize=(8, 5.2), layout="constrained")
    for model, (label, color, marker) in lines.items():
        lengths = sorted(length for name, length in points if name == model)
        values = [points[model, length] for length in lengths]
        width, order = (3, 3) if model == "lsg" else (1.6, 2)
        axes.plot(lengths, values, label=label, color=color, marker=marker, linewidth=width, zorder=order)
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel=unit)
    for axis, ticks in ((axes.xaxis, sorted({length for _, length in points})), (axes.yaxis, TICKS)):
        low, high = axis.get_view_interval()
        axis.set_ticks([tick for tick in ticks if low <= tick <= high])
        axis.set_major_formatter(lambda value, _: f"{value:,g}")
        axis.set_minor_locator(NullLocator())
    axes.grid(color="#dddddd")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    axes.set_title(title, loc="left", fontweight="bold", pad=22)
    shape = f"base shape, 4 layers, batch 1, float32; {machine['cpu']}, {machine['threads']} threads"
    axes.text(0, 1.02, shape, transform=axes.transAxes, color="#555555")
    figure.savefig(path, dpi=150)
    plt.close(figure)
