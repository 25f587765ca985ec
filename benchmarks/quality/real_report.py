"""The real embedder's numbers as tables with intervals, and as the figure of `docs/quality.md`."""

import numpy as np
from report import table
from retrieval import interval


CORPORA = ("manuals", "guides")
BASELINES = {"one vector": "chunks of 512, averaged", "several vectors": "chunks of 512, best"}
ONE, SEVERAL = BASELINES
TICKS = (1, 2, 4, 8, 16, 32)  # of the figure: vectors of a document
PAIRS = (  # further differences worth an interval
    ("LSG, one vector", "chunks of 512, cut at 512"),
    ("LSG, one vector", "sliding windows, averaged"),
    ("LSG, late 128", "LSG, one vector"),
    ("LSG, late 128", "chunks of 512, pooled by 128"),
    ("LSG, late 128", "chunks of 128, best"),
    ("LSG 64/64, late 128", "LSG, late 128"),
    ("LSG local only, late 128", "LSG, late 128"),
    ("LSG no globals, late 128", "LSG, late 128"),
    ("LSG 64/64, one vector", "LSG, one vector"),
    ("LSG local only, one vector", "LSG, one vector"),
    ("LSG no globals, one vector", "LSG, one vector"),
    ("LSG, trained, one vector", "chunks of 512, trained, averaged"),
    ("LSG, trained, late 128", "chunks of 512, trained, pooled by 128"),
)


def kind(way):
    """Which of `BASELINES` a way belongs to."""
    return ONE if way.endswith(("cut at 512", "averaged", "one vector")) else SEVERAL


def ways(results, fewer=False):
    """The names of all ways measured on any corpus, on all of its documents or on fewer."""
    names = dict.fromkeys(way for corpus in CORPORA for way in results[corpus])
    return [way for way in names if way.endswith(" documents") == fewer and "old index" not in way]


def ranks(results, corpus, way, field="ranks"):
    """`(ranks, documents asked for)`, both `(questions,)`."""
    found = np.array(results[corpus][way][field].split(), int)
    right = np.array(results["corpora"][corpus]["right"].split(), int)
    return found, right[right < results[corpus][way]["documents"]]


def share(values, groups):
    """A share in percent with its 95 % interval."""
    low, high = interval(values, groups)
    return f"{100 * np.mean(values):.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def difference(results, corpus, way, baseline, field="ranks"):
    """Points of recall@1 that `way` is above `baseline`, on the same questions, with the 95 % interval."""
    (ours, groups), (theirs, _) = (ranks(results, corpus, x, field) for x in (way, baseline))
    points = 100 * ((ours == 1) * 1.0 - (theirs == 1))
    low, high = interval(points, groups)
    return f"{points.mean():+.1f} ({low:+.1f} to {high:+.1f})"


def retrieval_table(results, group, fewer=False):
    """The ways of one group, on each corpus."""
    corpora = [corpus for corpus in CORPORA if results[corpus]]
    head, rows = [group, "vectors"], []
    for corpus in corpora:
        head += [f"{corpus}: found first", "in the first 10", f"against {BASELINES[group]}"]
    for way in ways(results, fewer):
        name, _, label = way.rpartition(", ") if fewer else (way, "", "")
        if kind(name) == group:
            baseline = BASELINES[group] + (f", {label}" if fewer else "")
            vectors = next(results[corpus][way]["vectors"] for corpus in corpora if way in results[corpus])
            cells = [cell for corpus in corpora for cell in _cells(results, corpus, way, baseline)]
            rows.append([way, f"{vectors:.0f}", *cells])
    return table(head, rows) if rows else ""


def _cells(results, corpus, way, baseline):
    """What one corpus shows of a way; empty where it has not been measured."""
    if way not in results[corpus]:
        return [""] * 3
    found, groups = ranks(results, corpus, way)
    compared = way != baseline and baseline in results[corpus]
    return [
        share(found == 1, groups),
        f"{100 * np.mean(found <= 10):.1f} %",
        difference(results, corpus, way, baseline) if compared else "",
    ]


def pairs_table(results):
    """`PAIRS`, on the same questions."""
    rows = []
    for way, other in PAIRS:
        there = [corpus for corpus in CORPORA if {way, other} <= results[corpus].keys()]
        if there:
            cells = [difference(results, corpus, way, other) if corpus in there else "" for corpus in CORPORA]
            rows.append([f"{way} against {other}", *cells])
    return table(["points found first", *CORPORA], rows) if rows else ""


def among_all_table(results):
    """The share found first among the documents of all languages, the question's own too, and the difference."""
    rows, field = [], "ranks_among_all"
    for way in ways(results):
        baseline, cells = BASELINES[kind(way)], []
        for corpus in CORPORA:
            there = way in results[corpus]
            found = ranks(results, corpus, way, field) if there else None
            cells.append(share(found[0] == 1, found[1]) if there else "")
            compared = there and way != baseline and baseline in results[corpus]
            cells.append(difference(results, corpus, way, baseline, field) if compared else "")
        rows.append([way, *cells])
    head = [x for corpus in CORPORA for x in (corpus, "against its baseline")]
    return table(["first among all languages", *head], rows) if rows else ""


def short_table(results):
    """Short texts' vectors, and questions asked of an index of the source's vectors."""
    rows = []
    for name, cosines in results["short"].items():
        if cosines:
            old = f"{name}, old index of cut at 512"
            found = [
                f"{100 * np.mean(ranks(results, corpus, old)[0] == 1):.1f} %" if old in results[corpus] else ""
                for corpus in CORPORA
            ]
            rows.append([name, *(f"{cosine:.4f}" for cosine in cosines.values()), *found])
    head = ["", *(f"cosine, {n} tokens" for n in next((x for x in results["short"].values() if x), {}))]
    return table([*head, *(f"old index, {corpus}" for corpus in CORPORA)], rows) if rows else ""


def probe_table(results):
    """The kind of a document told from its vector."""
    names = dict.fromkeys(way for corpus in CORPORA for way in results["probe"].get(corpus, ()))
    rows = []
    for way in names:
        cells = []
        for corpus in CORPORA:
            right = results["probe"].get(corpus, {}).get(way, {}).get("right", "")
            hits = np.array([*right], int)
            cells.append(share(hits, np.arange(len(hits))) if len(hits) else "")
        rows.append([way, *cells])
    return table(["kind told right", *CORPORA], rows) if rows else ""


def twins_table(results):
    """Documents found by their translations, and told from those that only begin as they do."""
    names = dict.fromkeys(way for corpus in CORPORA for way in results["twins"].get(corpus, ()))
    rows = []
    for way in names:
        cells = []
        for corpus in CORPORA:
            row = results["twins"].get(corpus, {}).get(way)
            for field in ("ranks", "ranks_among_all") if row else ():
                hits = np.array(row[field].split(), int) == 1
                cells.append(share(hits, np.arange(len(hits))))
            told = np.array([*row["told"]], int) if row else ()
            cells += [share(told, np.arange(len(told)))] if row else [""] * 3
        rows.append([way, *cells])
    head = (f"{corpus}: {what}" for corpus in CORPORA for what in ("twin first", "among all languages", "told"))
    return table(["twins", *head], rows) if rows else ""


def seconds_table(results):
    """How long a document of middle length takes, beside the source's chunks."""
    first = next(iter(results["seconds"].values()), None)
    rows = [[name, f"{x:.2f}", f"{x / first:.2f}"] for name, x in results["seconds"].items()]
    return table(["seconds a document", "", "against chunks of 512"], rows) if rows else ""


def tables(results):
    """Markdown of all that has been measured."""
    found = [retrieval_table(results, group, fewer) for fewer in (False, True) for group in BASELINES]
    others = (pairs_table, short_table, probe_table, twins_table, seconds_table, among_all_table)
    return filter(None, [*found, *(make(results) for make in others)])


def draw(results, folder):
    """`quality-real.png` in `folder`: found first against vectors of a document, with intervals, for each corpus."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    corpora = [corpus for corpus in CORPORA if results[corpus]]
    if not corpora:
        return
    size = {"figsize": (6.5 * len(corpora), 5), "layout": "constrained", "squeeze": False}
    figure, axes = pyplot.subplots(1, len(corpora), **size)
    for corpus, axis in zip(corpora, axes[0], strict=True):
        lines = {}
        for way in ways(results):
            if way in results[corpus]:
                lines.setdefault(way.rpartition(", ")[0], []).append(way)
        for name, found in lines.items():
            _line(axis, results, corpus, name, found)
        axis.set_xscale("log", base=2)
        axis.set_xticks(TICKS, TICKS)
        axis.set(xlabel="vectors of a document", ylabel="found first, %", title=f"A real embedder: {corpus}")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.savefig(folder / "quality-real.png", dpi=130)
    pyplot.close(figure)


def _line(axis, results, corpus, name, ways):
    """One reader's ways, by how many vectors they make; the source's dotted."""
    points = []
    for way in ways:
        values, groups = ranks(results, corpus, way)
        low, high = interval(values == 1, groups)
        points.append((results[corpus][way]["vectors"], np.mean(values == 1), low, high))
    x, y, low, high = np.array(sorted(points)).T
    is_source = not name.startswith("LSG")
    axis.errorbar(
        x,
        100 * y,
        100 * np.stack([y - low, high - y]),
        label=f"source, {name}" if is_source else name,
        linestyle=":" if is_source else "-",
        **{"marker": "o", "markersize": 4, "capsize": 2, "elinewidth": 0.7},
    )
