"""The results as tables in Markdown and a figure in SVG, which take no package to draw."""

from math import log2
from statistics import median


def table(results):
    """All that is known so far (`dict`, see cuda.py), as Markdown."""
    parts = [f"# {results['machine'].get('gpu', results['machine']['cpu'])}", _tests(results["parts"]["tests"])]
    for name, columns in (("correctness", _correctness), ("rows", _rows), ("requests", _requests)):
        part = results["parts"][name]
        lines = [columns(row) for row in part["rows"]]
        parts.append(f"## {name}: {part['state']}")
        if lines:
            parts.append(_markdown([tuple(lines[0]), *(tuple(line.values()) for line in lines)]))
    return "\n\n".join(parts) + "\n"


def _tests(part):
    return f"## CUDA tests: {part['state']}" + "".join(f"\n\n{row['summary']}" for row in part["rows"])


def _correctness(row):
    return {
        "tokens": f"{row['length']:,}",
        "dtype": row["dtype"],
        "padded": "yes" if row["is_padded"] else "no",
        "largest error": f"{row['max_error']:.1e}",
        "mean error": f"{row['mean_error']:.1e}",
        "eager's": f"{row['eager_mean_error']:.1e}" if "eager_mean_error" in row else "",
        "new graphs": str(row["graphs"]),
        "right": "yes" if row["is_right"] else "NO",
    }


def _rows(row):
    line = {"work": row["work"], "tokens": f"{row['length']:,}", "batch": str(row["batch_size"])}
    for name in ("lsg", "stock"):
        case = row[name]
        line |= {
            f"{name}, ms": f"{1000 * median(case['seconds']):,.1f}" if case.get("seconds") else case.get("error", "")
        }
    line["times faster"] = _against(row, "times_faster", "goal", lambda found, goal: found >= goal)
    for name in ("lsg", "stock"):
        peak = row[name].get("peak_mib")
        line[f"{name}, MiB"] = f"{peak:,.0f}" if peak else ""
    line["part of stock's memory"] = _against(row, "memory", "memory_goal", lambda found, goal: found <= goal)
    return line | {
        "new graphs": str(row["lsg"].get("graphs", "")),
        "first run, s": f"{row['lsg'].get('first_seconds', 0):.1f}",
    }


def _against(row, name, goal, is_reached):
    if row.get(name) is None:
        return ""
    if row.get(goal) is None:
        return f"{row[name]:.2f}"
    return (
        f"{row[name]:.2f} (goal {row[goal]:.2f}: {'reached' if is_reached(row[name], row[goal]) else 'not reached'})"
    )


def _requests(row):
    return {
        "model": row["model"],
        "requests": f"{row['requests']} of up to {row['longest']:,} tokens",
        "all, s": f"{row['first_seconds']:.1f}",
        "all again, s": f"{row['again_seconds']:.1f}",
        "over 1 s": str(row["slow_at_first"]),
        "again": str(row["slow_again"]),
        "slowest, s": f"{row['slowest_at_first']:.1f}",
        "graphs": str(row["graphs"]),
    }


def _markdown(lines):
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines]
    return "\n".join([lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]])


WIDTH, HEIGHT, LEFT, BOTTOM = 720, 420, 70, 50
COLORS = {"lsg": "#D55E00", "stock": "#000000"}


def figure(rows, title):
    """Length against milliseconds of a batch, both doubling from line to line: an SVG, or `None` without points."""
    lines = {}
    for row in rows:
        for name in COLORS:
            if row[name].get("seconds") and row["work"] in ("forward", "training"):
                lines.setdefault((row["work"], name), []).append((row["length"], 1000 * median(row[name]["seconds"])))
    if not lines:
        return None
    points = [point for line in lines.values() for point in line]
    (x_low, x_high), (y_low, y_high) = ((log2(min(axis)), log2(max(axis))) for axis in zip(*points))

    def place(x, y):
        return (
            LEFT + (WIDTH - LEFT - 150) * (log2(x) - x_low) / max(x_high - x_low, 1),
            HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 50) * (log2(y) - y_low) / max(y_high - y_low, 1),
        )

    drawn = [f'<text x="10" y="20" font-weight="bold">{title}</text>', '<text x="10" y="38">ms of a batch</text>']
    for x in sorted({x for x, _ in points}):
        drawn.append(f'<text x="{place(x, 1)[0]:.0f}" y="{HEIGHT - 20}" text-anchor="middle">{x:,}</text>')
    for power in range(int(y_low), int(y_high) + 2):
        y = place(points[0][0], 2**power)[1]
        if 45 < y < HEIGHT - BOTTOM + 5:
            drawn.append(f'<text x="{LEFT - 10}" y="{y + 4:.0f}" text-anchor="end">{2**power:,}</text>')
            drawn.append(f'<line x1="{LEFT}" x2="{WIDTH - 150}" y1="{y:.0f}" y2="{y:.0f}" stroke="#dddddd"/>')
    for (work, name), line in lines.items():
        dashes = ' stroke-dasharray="6 4"' if work == "training" else ""
        at = [place(*point) for point in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{COLORS[name]}" stroke-width="2"{dashes}/>')
        drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{COLORS[name]}"/>' for x, y in at]
        x, y = at[-1]
        drawn.append(f'<text x="{x + 8:.1f}" y="{y + 4:.1f}" fill="{COLORS[name]}">{name}, {work}</text>')
    box = f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12"'
    body = "\n".join(['<rect width="100%" height="100%" fill="#fff"/>', *drawn])
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box}>\n{body}\n</svg>\n'
