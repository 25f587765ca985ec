# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""The figures of `report.md`."""

from .scores import CONVERTED


def draw(report, folder):
    """
    Returns:
        `list[tuple[str, str]]`: the figures' files in `folder`, and their titles.

    Raises:
        ImportError: matplotlib is missing.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = []
    for number, score in enumerate(report.scores):
        figure, axes = pyplot.subplots(figsize=(8, 1 + 0.35 * len(score.rows)), layout="constrained")
        for name, row in reversed(score.rows.items()):
            color = "tab:blue" if row.is_converted else "grey"
            if interval := score.interval(name):
                axes.plot(interval, [name] * 2, color=color)
            axes.plot(score.value(name), name, "o", color=color)
        axes.set_title(f"{score.title}, with 95 % intervals")
        drawn.append(_saved(figure, folder, f"score-{number + 1}.png", score.title))
    positions = report.head.positions(report.measured)
    if positions:
        figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
        for way, values in positions.items():
            style = "-" if way.startswith(CONVERTED) else "--"
            axes.plot([512 * i + 256 for i in range(len(values))], values, style, marker=".", label=way)
        axes.set(xlabel="position, tokens", ylabel="loss, nats", title="Masked words by position")
        axes.legend()
        drawn.append(_saved(figure, folder, "positions.png", "Masked words by position"))
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.35 * len(report.seconds)), layout="constrained")
    axes.barh(list(report.seconds)[::-1], list(report.seconds.values())[::-1])
    axes.set_title("seconds a document")
    drawn.append(_saved(figure, folder, "seconds.png", "Seconds a document"))
    pyplot.close("all")
    return drawn


def _saved(figure, folder, name, title):
    figure.savefig(folder / name, dpi=120)
    return name, title
