"""What has been measured as tables, and as the figures of `docs/quality.md`."""

from embedder import POOLINGS
from heads import LENGTHS
from masked_lm import BUCKET, LENGTH, over_languages
from names import DISTANCES
from tagger import f1

from lsg_xlmr.evaluation.tables import table


STARTS = range(0, LENGTH, BUCKET)
COLOURS = {
    "chunks": "black",
    "chunks averaged": "black",
    "sliding": "grey",
    "sliding averaged": "grey",
    "truncated": "tab:brown",
    "dense tiled": "tab:red",
    "LSG": "tab:blue",
    "LSG norm /2": "tab:blue",
    "LSG local only": "tab:cyan",
    "LSG pool_with_global=False": "tab:purple",
    "LSG 16 globals": "tab:green",
    "LSG trained further": "tab:orange",
}


def tables(results):
    """Markdown of every part that has been measured."""
    for part, make in TABLES.items():
        if results[part]:
            yield f"## {part}\n\n{make(results[part])}"


def losses(measured):
    """`(loss in each bucket, loss, share right)` over all languages."""
    masks, loss, right = (over_languages(measured, key) for key in ("masks", "loss", "right"))
    buckets = [a / b for a, b in zip(loss, masks, strict=True)]
    return buckets, sum(loss) / sum(masks), sum(right) / sum(masks)


def _masked_lm(part):
    head = ["", *(f"{start}-" for start in STARTS), "all", "right", "s"]
    rows = []
    for name, measured in part.items():
        buckets, loss, right = losses(measured)
        rows.append(
            [name, *(f"{x:.3f}" for x in buckets), f"{loss:.4f}", f"{right:.1%}", f"{measured['seconds']:.0f}"]
        )
    languages = sorted(next(iter(part.values()))["languages"])
    by_language = [
        [name, *(f"{_of_language(measured, language):.3f}" for language in languages)]
        for name, measured in part.items()
    ]
    return table(head, rows) + "\n\n" + table(["", *languages], by_language)


def _of_language(measured, language):
    sums = measured["languages"][language]
    return sum(sums["loss"]) / sum(sums["masks"])


def _classifier(part):
    short = list(next(iter(part.values()))["same_label"])
    head = ["right", *LENGTHS, *(f"same label, {n}" for n in short), *(f"moved, {n}" for n in short), "s"]
    return table(
        head,
        [
            [
                name,
                *(f"{measured['right'][str(n)]:.1%}" for n in LENGTHS),
                *(f"{measured['same_label'][n]:.1%}" for n in short),
                *(f"{measured['distance'][n]:.3f}" for n in short),
                f"{measured['seconds'][str(LENGTHS[-1])]:.0f}",
            ]
            for name, measured in part.items()
        ],
    )


def _tagger(part):
    head = ["F1", *(f"{start}-" for start in STARTS), "all", "s"]
    return table(head, [[name, *(f"{x:.1%}" for x in f1(x)), f"{x['seconds']:.0f}"] for name, x in part.items()])


def _embedder(part):
    short = list(next(iter(part.values()))["cosine"])
    head = ["found", *LENGTHS, *(f"old index, {n}" for n in LENGTHS), *(f"cosine, {n}" for n in short), "s"]
    return table(
        head,
        [
            [
                name,
                *(f"{measured['found'][str(n)]:.1%}" for n in LENGTHS),
                *(f"{measured['found_in_old_index'][str(n)]:.1%}" for n in LENGTHS),
                *(f"{measured['cosine'][n]:.4f}" for n in short),
                f"{measured['seconds'][str(LENGTHS[-1])]:.0f}",
            ]
            for name, measured in part.items()
        ],
    )


def _names(part):
    distances = [f"{low}-{high}" for low, high in DISTANCES]
    counts = next(iter(part.values()))["ranks"]
    head = ["median rank, share at rank 1", *(f"{name} ({len(counts[name])} masks)" for name in distances)]
    rows = []
    for name, measured in part.items():
        ranks = [sorted(measured["ranks"][distance]) for distance in distances]
        rows.append([name, *(f"{x[len(x) // 2]}, {x.count(1) / len(x):.1%}" if x else "" for x in ranks)])
    return table(head, rows)


def _facts(part):
    lengths = list(next(x for x in part.values() if len(x) > 1))
    return table(
        ["", *lengths], [[name, *(f"{x[n]:.1%}" if n in x else "" for n in lengths)] for name, x in part.items()]
    )


TABLES = {
    "masked_lm": _masked_lm,
    "further": _masked_lm,
    "classifier": _classifier,
    "tagger": _tagger,
    "embedder": _embedder,
    "names": _names,
    "facts": _facts,
}


def draw(results, folder):
    """The figures of what has been measured, as PNG files in `folder`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for name, panels in FIGURES.items():
        panels = [panel for part, panel in panels if results[part]]
        if not panels:
            continue
        figure, axes = pyplot.subplots(
            1, len(panels), figsize=(6.5 * len(panels), 4.2), layout="constrained", squeeze=False
        )
        for panel, axis in zip(panels, axes[0], strict=True):
            panel(axis, results)
            axis.grid(alpha=0.3)
        figure.savefig(folder / f"{name}.png", dpi=130)
        pyplot.close(figure)


def _line(axis, name, x, y, **kwargs):
    axis.plot(x, y, marker="o", markersize=3, label=name, color=COLOURS.get(name.split(",")[0]), **kwargs)


def _draw_buckets(axis, results):
    lines = {name: results["masked_lm"].get(name) for name in ("sliding", "LSG norm /2", "LSG local only")}
    lines |= {f"{name}, trained further": results["further"].get(name) for name in ("chunks", "LSG norm /2")}
    chunks = losses(results["masked_lm"]["chunks"])[0]
    for name, measured in lines.items():
        if measured:
            difference = [100 * (a / b - 1) for a, b in zip(losses(measured)[0], chunks, strict=True)]
            _line(axis, name, STARTS, difference, linestyle="--" if "further" in name else "-")
    axis.axhline(0, color="black", label="chunks of 512 tokens")
    axis.axhspan(0, 2, color="tab:green", alpha=0.1, label="the goal: within 2 %")
    axis.set(xlabel="position of the masked token", ylabel="loss against chunks', %")
    axis.set_title("Masked words in documents of 4,096 tokens")
    axis.legend(fontsize=8)


def _legend_beside(axis):
    """Beside the lines, which fill the panel."""
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def _lengths(axis, ylabel, title):
    axis.set_xscale("log", base=2)
    axis.set_xticks(LENGTHS, [f"{length:,}" for length in LENGTHS])
    axis.set(xlabel="tokens of the document", ylabel=ylabel)
    axis.set_title(title)
    _legend_beside(axis)


def _draw_classifier(axis, results):
    for name, measured in results["classifier"].items():
        _line(axis, name, LENGTHS, [100 * measured["right"][str(n)] for n in LENGTHS])
    _lengths(axis, "documents classified right, %", "A classifier fine-tuned at 512 tokens")


def _draw_settings(axis, results):
    found = {name: losses(measured)[1] for name, measured in results["masked_lm"].items()}
    found = dict(sorted(found.items(), key=lambda item: -item[1]))
    colours = ["tab:blue" if name.startswith("LSG") else "grey" for name in found]
    axis.barh(list(found), list(found.values()), color=colours)
    for place, loss in enumerate(found.values()):
        axis.text(loss, place, f" {loss:.3f}", va="center", fontsize=7)
    axis.tick_params(axis="y", labelsize=7)
    axis.set(xlabel="masked-LM loss, nats", xlim=(min(found.values()) - 0.2, max(found.values()) + 0.3))
    axis.set_title("Every setting, without training")
    axis.figure.set_size_inches(8, 8)


def _draw_tagger(axis, results):
    for name, measured in results["tagger"].items():
        if name != "dense interpolated":
            _line(axis, name, STARTS, [100 * x for x in f1(measured)[:-1]])
    axis.set(xlabel="position of the word", ylabel="F1, %")
    axis.set_title("A tagger fine-tuned at 512 tokens")
    _legend_beside(axis)


def _draw_embedder(axis, results):
    for pooling, style in zip(POOLINGS, ("-", "--"), strict=True):
        for name in ("truncated", "chunks averaged", "dense tiled", "LSG", "LSG pool_with_global=False"):
            measured = results["embedder"].get(f"{name}, {pooling}")
            if measured:
                found = [100 * measured["found"][str(n)] for n in LENGTHS]
                _line(axis, f"{name}, {pooling}", LENGTHS, found, linestyle=style)
    _lengths(axis, "translations found, %", "An embedder fine-tuned at 512 tokens")


def _draw_short(axis, results):
    for pooling, style in zip(POOLINGS, ("-", "--"), strict=True):
        for name in ("LSG", "LSG pool_with_global=False", "LSG 16 globals"):
            measured = results["embedder"].get(f"{name}, {pooling}")
            if measured:
                cosine = measured["cosine"]
                _line(axis, f"{name}, {pooling}", list(map(int, cosine)), list(cosine.values()), linestyle=style)
    axis.set(xlabel="tokens of the text", ylabel="cosine with the source's vector")
    axis.set_title("How far vectors of short texts move")
    axis.legend(fontsize=8)


def _draw_names(axis, results):
    distances = [f"{low}-{high}" for low, high in DISTANCES]
    for name, measured in results["names"].items():
        ranks = [sorted(measured["ranks"][distance]) for distance in distances]
        _line(axis, name, distances, [x[len(x) // 2] if x else None for x in ranks])
    axis.set_yscale("log")
    axis.set(xlabel="tokens since the word's first mention", ylabel="median rank of the right word")
    axis.set_title("A word introduced long before")
    _legend_beside(axis)


FIGURES = {
    "quality": (("masked_lm", _draw_buckets), ("classifier", _draw_classifier)),
    "quality-settings": (("masked_lm", _draw_settings),),
    "quality-heads": (("tagger", _draw_tagger), ("embedder", _draw_embedder), ("embedder", _draw_short)),
    "quality-names": (("names", _draw_names),),
}
