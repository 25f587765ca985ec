# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Tables that read well in a terminal and in Markdown."""


def table(head, rows):
    """A markdown table (`str`); the first column holds names."""
    lines = [[str(cell) for cell in line] for line in (head, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    aligned = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in (aligned[0], rule, *aligned[1:]))
