"""One part in a process of its own: `python part.py NAME DEVICE SCALE FILE` adds rows to FILE, a line of JSON each."""

import json
import sys
import warnings
from pathlib import Path

from correctness import check
from encoder_rows import measure
from scale import REAL, TINY
from serving import answer

from lsg_xlmr.attention import flex


PARTS = {"correctness": check, "rows": measure, "requests": answer}


def main():
    name, device, scale, path = sys.argv[1:]
    if device == "cpu":
        flex.FLEX_DEVICES = ("cpu",)
    warnings.simplefilter("ignore")
    with Path(path).open("a") as file:
        for row in PARTS[name](REAL if scale == "real" else TINY, device):
            print(json.dumps(row), file=file, flush=True)
            print(row, flush=True)


if __name__ == "__main__":
    main()
