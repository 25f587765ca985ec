# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""What was measured as tables, as `report.md` with plots, and as JSON."""

from statistics import median

from .documents import counted
from .measure import short_lengths
from .scores import CONVERTED
from .tables import table
from .verdict import best_setting, in_short, verdict


KEPT_WELL = 0.98  # of the short texts; below it the report says so


class Report:
    """
    Args:
        head ([`Head`]).
        items (`list[LongText]`): what was to be read.
        measured (`dict`): as [`measure`] gives it.
        notes (`list[str]`): what else there is to say.
    """

    def __init__(self, head, items, measured, notes=()):
        most = max(map(len, measured.values()))
        self.head, self.items, self.notes = head, items, list(notes)
        # A way that came not half as far as the others would leave little that all have in common.
        kept = {way: records for way, records in measured.items() if records and 2 * len(records) >= most}
        units = [unit for unit in next(iter(kept.values())) if all(unit in records for records in kept.values())]
        self.measured = {
            way: {unit: kept[way][unit] for unit in units}
            for way in sorted(kept, key=lambda way: way.startswith(CONVERTED))
        }
        left = [way for way in measured if way not in kept]
        if left:
            self.notes.append(f"There was too little time for {', '.join(left)}: run the same command again.")
        if len(units) < len(items):
            self.notes.append(
                f"{len(items) - len(units)} of {counted(len(items), head.unit)} were left out for want of time: run "
                "the same command again, and it goes on."
            )
        self.scores = [score for score in head.scores(self.measured) if score.units]
        self.seconds = {way: median(x["seconds"] for x in records.values()) for way, records in self.measured.items()}
        peaks = {way: [x["mib"] for x in records.values() if x["mib"]] for way, records in self.measured.items()}
        self.mib = {way: max(values) for way, values in peaks.items() if values}
        self.settings = [told for score in self.scores if score.decides and (told := best_setting(score))]
        found = {score.title: verdict(score, self.seconds) for score in self.scores if score.decides}
        self.verdicts = {title: found for title, found in found.items() if found}
        self.short = self._short()

    def _short(self):
        """`{way: {length: share}}`: what is left of the source's answers to short texts."""
        reference, found = next(iter(self.measured.values()), {}), {}
        for way, records in self.measured.items():
            if not way.startswith(CONVERTED):
                continue
            found[way] = {}
            for length in map(str, short_lengths(self.head.subject)):
                pairs = [
                    self.head.is_kept(reference[i]["short"][length], x["short"][length]) for i, x in records.items()
                ]
                count = sum(count for _, count in pairs)
                if count:
                    found[way][length] = sum(kept for kept, _ in pairs) / count
        return found

    def score_table(self, score):
        head = [score.title, "", "95 %", f"s a {self.head.unit[:-1]}", "MiB more", "vectors"]
        if all(row.vectors == 1 for row in score.rows.values()):
            head.pop()
        rows = []
        for name, row in score.rows.items():
            cells = [name, score.told(score.value(name)), score.told_interval(name)]
            cells += [f"{self.seconds[row.way]:.3g}", f"{self.mib[row.way]:.0f}" if row.way in self.mib else ""]
            rows.append([*cells, f"{row.vectors:.1f}"][: len(head)])
        return table(head, rows)

    def short_table(self):
        lengths = [str(length) for length in short_lengths(self.head.subject)]
        rows = [[way, *(f"{x[n]:.4f}" if n in x else "" for n in lengths)] for way, x in self.short.items()]
        return table(["short texts kept", *(f"{n} tokens" for n in lengths)], rows)

    def position_table(self):
        found = self.head.positions(self.measured)
        if not found:
            return ""
        starts = range(0, 512 * max(map(len, found.values())), 512)
        return table(
            ["loss by position", *(f"{start}-" for start in starts)],
            [[way, *(f"{x:.3f}" for x in values)] for way, values in found.items()],
        )

    def lines(self):
        """What there is to say (`list[str]`), the most important last."""
        subject, texts = self.head.subject, self.items
        tokens = sorted(len(text.input_ids) for text in texts)
        yield (
            f"{subject.name} as {subject.architecture.removeprefix('LSG')}: reads {subject.short} tokens, "
            f"converted {subject.length}. {counted(len(texts), self.head.unit)} of {tokens[0]} to {tokens[-1]} "
            "tokens; float32, CPU."
        )
        yield from (*self.head.told(), *self.notes)
        if self.short:
            (name, kept) = next(iter(self.short.items()))
            if kept and min(kept.values()) < KEPT_WELL:
                yield f"Short texts change: {min(kept.values()):.3f} is {self.head.kept} ({name}).{self.head.changed}"
        if any(score.is_agreement and score.decides for score in self.scores):
            yield "Without labels nobody knows which answer is right: compared is with the source's sliding windows."
        yield from self.settings
        yield from (verdict.line for verdict in self.verdicts.values())
        yield in_short(self.verdicts)

    def tables(self):
        yield from map(self.score_table, self.scores)
        if any(self.short.values()):
            yield self.short_table()
        if positions := self.position_table():
            yield positions

    def text(self):
        """For the terminal."""
        return "\n\n".join([*self.tables(), "\n".join(self.lines())])

    def page(self, pictures=()):
        """`report.md`; `pictures` are `(file, title)`."""
        subject = self.head.subject
        *lines, last = self.lines()
        parts = ["# Does conversion to LSG attention help on these documents?", f"**{last}**"]
        parts += ["\n".join(f"- {line}" for line in lines), *self.tables()]
        parts += [f"![{title}]({name})" for name, title in pictures]
        parts.append(
            "Each score is over what all its rows were measured on, with 95 % intervals by the bootstrap. Of the "
            "source's ways and of the converted models the first is compared, unless another is better by more than "
            "chance. Seconds are the "
            f"median, MiB at the longest of the {self.head.unit}, above what is in use before. Of their beginnings, "
            f"up to {subject.short} tokens, the table of short texts tells {self.head.kept}."
        )
        return "\n\n".join(parts) + "\n"

    def results(self):
        """For JSON (`dict`)."""
        return {
            "scores": {
                score.title: {
                    name: {
                        "value": score.value(name),
                        "interval": score.interval(name),
                        score.unit: len(score.units),
                        "vectors": row.vectors,
                        "way": row.way,
                    }
                    for name, row in score.rows.items()
                }
                for score in self.scores
            },
            "costs": {way: {"seconds": x, "mib": self.mib.get(way)} for way, x in self.seconds.items()},
            "short": self.short,
            "positions": self.head.positions(self.measured),
            "verdicts": {title: vars(verdict) for title, verdict in self.verdicts.items()},
            "settings": self.settings,
            "notes": self.notes,
            "in_short": in_short(self.verdicts),
        }
