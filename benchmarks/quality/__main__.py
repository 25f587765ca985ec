"""
What a converted model knows at eight times its length, on real text: `python benchmarks/quality`.

Gathers the text, trains a small XLM-RoBERTa on it, and measures the parts named on the command line, or all. Stopped
at any time, the same command goes on. `--model` measures another checkpoint on the same text instead.
"""

import argparse
import sys
from pathlib import Path

import classifier
import embedder
import further
import masked_lm
import names
import tagger
from corpus import MissingTool, gather
from pretrain import pretrain
from results import Results


ROOT = Path(__file__).parents[2]
PARTS = {part.__name__: part.run for part in (masked_lm, classifier, tagger, embedder, further, names)}


def main():
    parser = argparse.ArgumentParser(prog="python benchmarks/quality", description=__doc__.strip().split("\n\n")[0])
    parser.add_argument(
        "parts", nargs="*", choices=[[], *PARTS], metavar="PART", help=f"of {', '.join(PARTS)}; or all"
    )
    parser.add_argument(
        "--folder", type=Path, default=ROOT / ".quality", help="of the text and the weights (default: %(default)s)"
    )
    parser.add_argument("--model", help="folder or hub name of an XLM-RoBERTa masked LM to measure instead")
    args = parser.parse_args()
    try:
        gather(args.folder)
    except (MissingTool, OSError) as error:
        sys.exit(f"{error}\nWhat is done so far is in {args.folder}; the same command goes on.")
    try:
        source = args.model or str(pretrain(args.folder))
        name = Path(source).name if args.model else "results"
        results = Results(Path(__file__).with_name(f"{name}.json"))
        for part in args.parts or PARTS:
            PARTS[part](args.folder, source, results)
    except OSError as error:
        sys.exit(f"{error}\nWhat is done so far is in {args.folder}; the same command goes on.")


if __name__ == "__main__":
    main()
