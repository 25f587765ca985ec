"""
What a converted model knows at eight times its length, on real text: `python benchmarks/quality`.

Gathers the text, trains a small XLM-RoBERTa on it, measures the parts named on the command line, or all, and prints
tables and draws the figures of all that has been measured. Stopped at any time, the same command goes on. `--model`
measures another checkpoint on the same text instead.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

import classifier
import embedder
import facts
import further
import masked_lm
import names
import report
import tagger
from corpus import MissingTool, gather
from pretrain import pretrain
from results import Results
from safetensors import SafetensorError


ROOT = Path(__file__).parents[2]
PARTS = {part.__name__: part.run for part in (masked_lm, classifier, tagger, embedder, further, names, facts)}
SPACE = 2e9  # bytes that the text, the weights and the checkpoints of a training take at most


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
        run(args)
    except (MissingTool, OSError, RuntimeError, SafetensorError) as error:
        there = next(path for path in (args.folder, *args.folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free
        if not isinstance(error, MissingTool | OSError) and free > 1e8:
            raise
        # torch and safetensors do not say that the disk is full.
        full = f"The disk of {there} has {free / 1e6:.0f} MB left. " if free < 1e8 else ""
        sys.exit(f"{error}\n{full}What is done so far is in {args.folder}; the same command goes on.")


def run(args):
    args.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(args.folder).free
    if free < SPACE and not (args.folder / "source").exists():
        sys.exit(
            f"The disk of {args.folder} has {free / 1e9:.1f} GB left, and {SPACE / 1e9:.0f} may be needed: name a "
            "folder elsewhere by --folder."
        )
    gather(args.folder)
    source = args.model or str(pretrain(args.folder))
    results = Results(Path(__file__).with_name(f"{Path(source).name if args.model else 'results'}.json"))
    for part in args.parts or PARTS:
        start = time.time()
        PARTS[part](args.folder, source, results)
        results["seconds"][part] = round(results["seconds"].get(part, 0) + time.time() - start)
        results.save()
    print(*report.tables(results), sep="\n\n")
    pictures = args.folder / results.path.stem if args.model else ROOT / "docs"
    pictures.mkdir(exist_ok=True)
    report.draw(results, pictures)


if __name__ == "__main__":
    main()
