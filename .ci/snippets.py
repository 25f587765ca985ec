"""
Prints what a page says to run, as it is written:

    python .ci/snippets.py README.md bash 1           # its first commands
    python .ci/snippets.py docs/recipes.md bash       # all its commands
    python .ci/snippets.py docs/recipes.md python     # its Python snippets, one after the other

A block after a line `<!-- not run: why -->` is left out, and is not counted.
"""

import re
import sys
from pathlib import Path


BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>[^\n]+) -->\n+)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)


def blocks(page):
    """`(language, code, why it is not run or None)` of each block in `page` (`Path`) that has a language."""
    return [(x["language"], x["code"], x["why"]) for x in BLOCK.finditer(page.read_text(encoding="utf-8"))]


if __name__ == "__main__":
    page, language, *number = sys.argv[1:]
    run = [code for found, code, why in blocks(Path(page)) if found == language and why is None]
    print(run[int(number[0]) - 1] if number else "\n".join(run))
