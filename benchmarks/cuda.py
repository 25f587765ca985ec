"""
Test and measure LSG attention on a GPU, in eight minutes and without a network:
`python benchmarks/cuda.py --output FOLDER`.

One part after the other, each in a process of its own: the CUDA tests; whether the numbers are right at real size; the
time and memory of forward passes and training steps against XLM-RoBERTa on SDPA; 200 requests of random lengths. After
every row `results.json`, `table.md` and `plot.svg` in FOLDER are written again, so that what was measured is there
when the time is up. The end is an error if a test failed, a number was wrong or a part has not come to its end.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from gpu.gpu_report import figure, table
from machine import describe_machine


HERE = Path(__file__).resolve().parent
PARTS = ("tests", "correctness", "rows", "requests")
# Of the time: what the parts before the rows, without which nothing is worth measuring, take at most.
SHARES = {"tests": 0.35, "correctness": 0.4}
LOOK_EVERY = 1.0  # seconds


def main():
    arguments = parse_arguments()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device here; `--device cpu --tiny` tries the command without one")
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in PARTS:
        rows_path(arguments, name).unlink(missing_ok=True)
    results = {"machine": describe_machine(arguments.device, torch.get_num_threads()), "parts": {}}
    results["parts"] = {name: {"state": "not begun", "seconds": None, "rows": []} for name in PARTS}
    end = time.monotonic() + 60 * arguments.minutes
    for name in PARTS:
        share = SHARES.get(name, 1.0) * 60 * arguments.minutes
        run(name, results, min(end, time.monotonic() + share), arguments)
    print((arguments.output / "table.md").read_text())
    if failures(results):
        sys.exit("; ".join(failures(results)))


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of what is written, made if need be")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small models and texts, to see that everything runs")
    parser.add_argument("--minutes", type=float, default=8, help="after which it ends, whatever is left (default 8)")
    return parser.parse_args()


def run(name, results, end, arguments):
    """Run a part until `end` (`time.monotonic`), and take in what it writes."""
    part, start = results["parts"][name], time.monotonic()
    part["state"] = "begun"
    log = arguments.output / f"{name}.log"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    with log.open("w") as output:
        process = subprocess.Popen(
            command(name, arguments), stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=HERE.parent
        )
        try:
            while process.poll() is None and time.monotonic() < end:
                time.sleep(LOOK_EVERY)
                write(name, results, arguments)
            is_late = process.poll() is None
        finally:
            process.kill()
            process.wait()
    part["seconds"] = round(time.monotonic() - start, 1)
    if name == "tests":
        part["rows"] = [{"summary": (log.read_text().strip().splitlines() or ["nothing"])[-1]}]
    part["state"] = "done" if process.returncode == 0 else f"failed with {process.returncode}, see {log.name}"
    if is_late:
        part["state"] = "stopped: its time was up"
    write(name, results, arguments)


def command(name, arguments):
    if name == "tests":
        tests = "tests/model/test_cuda.py"
        return [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", tests]
    scale = "tiny" if arguments.tiny else "real"
    path = rows_path(arguments, name).resolve()
    return [sys.executable, str(HERE / "gpu" / "part.py"), name, arguments.device, scale, str(path)]


def rows_path(arguments, name):
    return arguments.output / f"{name}.jsonl"


def write(name, results, arguments):
    """Take in the rows of the part `name` that are there, and write everything."""
    path = rows_path(arguments, name)
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        results["parts"][name]["rows"] = [json.loads(line) for line in lines if line.endswith("\n")]
    (arguments.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (arguments.output / "table.md").write_text(table(results))
    drawn = figure(results["parts"]["rows"]["rows"], results["machine"].get("gpu", results["machine"]["cpu"]))
    if drawn:
        (arguments.output / "plot.svg").write_text(drawn)


def failures(results):
    """What is wrong, in words."""
    found = [f"{name}: {part['state']}" for name, part in results["parts"].items() if part["state"] != "done"]
    wrong = [row for row in results["parts"]["correctness"]["rows"] if not row["is_right"]]
    if wrong:
        found.append(f"{len(wrong)} wrong numbers")
    return found


if __name__ == "__main__":
    main()
