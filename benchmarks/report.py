"""From measured cases to ratios, and from ratios to a table."""

from statistics import median


def judge(check, measured):
    """
    The ratio of a [`Check`] and whether it is reached.

    Returns:
        `{"case", "against", "quantity", "sense", "target", "ratio", "ratio_range", "limit", "reached"}`; `ratio_range`
        is the smallest and the largest ratio of a single round, `limit` the ratio of `"floor"` in the place of `case`
        (`None` where that is not measured). The last four are `None` where a case is missing.
    """
    verdict = {name: getattr(check, name) for name in ("case", "against", "quantity", "sense", "target")}
    names = [name for name in (check.case, check.against) if name is not None]
    if any("seconds" not in measured.get(name, {}) for name in names):
        return verdict | {"ratio": None, "ratio_range": None, "limit": None, "reached": None}
    of_case = _values(measured[check.case], check.quantity)
    of_against = _values(measured[check.against], check.quantity) if check.against else [1.0] * len(of_case)
    ratio = _ratio(check, median(of_case), median(of_against))
    rounds = [_ratio(check, a, b) for a, b in zip(of_case, of_against)]
    limit = None
    if check.quantity == "seconds" and "seconds" in measured.get("floor", {}):
        limit = _ratio(check, median(measured["floor"]["seconds"]), median(of_against))
    reached = ratio >= check.target if check.sense == "at least" else ratio <= check.target
    return verdict | {"ratio": ratio, "ratio_range": [min(rounds), max(rounds)], "limit": limit, "reached": reached}


def _ratio(check, case, against):
    return against / case if check.sense == "at least" else case / against


def _values(result, quantity):
    if quantity == "peak_mib":
        return [result["peak_mib"]]
    per = result["multiply_adds"] if quantity == "seconds_per_multiply_add" else 1
    return [seconds / per for seconds in result["seconds"]]


def table(section):
    """The ratios and then the medians of a device's section of the results, as two Markdown tables."""
    ratios = [("work", "case", "against", "what", "ratio", "rounds", "limit", "target", "reached")]
    medians = [("work", "case", "rounds", "seconds", "peak MiB above the weights")]
    for row in section["rows"].values():
        if "skipped" in row:
            ratios.append((row["title"], *[""] * 7, f"skipped: {row['skipped']}"))
            continue
        ratios += [_ratio_line(row["title"], check) for check in row["checks"]]
        medians += [_median_line(row, name, result) for name, result in row["cases"].items()]
    return f"{_markdown(ratios)}\n\n{_markdown(medians)}"


def _ratio_line(title, check):
    what = "memory" if check["quantity"] == "peak_mib" else "time"
    target = f"{check['sense']} {check['target']:g}"
    if check["ratio"] is None:
        return title, check["case"], check["against"] or "", what, "", "", "", target, "not measured"
    low, high = check["ratio_range"]
    rounds = f"{low:.2f} to {high:.2f}" if low < high else ""
    limit = "" if check["limit"] is None else f"{check['limit']:.2f}"
    verdict = "reached" if check["reached"] else "not reached"
    return title, check["case"], check["against"] or "", what, f"{check['ratio']:.2f}", rounds, limit, target, verdict


def _median_line(row, name, result):
    if "error" in result:
        return row["title"], name, "", result["error"], ""
    peak = f"{result['peak_mib']:,.0f}"
    return row["title"], name, str(len(result["seconds"])), f"{median(result['seconds']):.3f}", peak


def _markdown(lines):
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines]
    return "\n".join([lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]])
