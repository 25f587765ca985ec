"""
Measure LSG attention against dense attention and its peers: `python benchmarks/run.py`.

Prints the table of ratios and targets, writes every raw number to `benchmarks/results.json` and draws the figures
in `docs/`. See README.md beside this file for how numbers are taken.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from contenders import MODELS
from machine import describe_machine, has_bf16_instructions
from measure import measure
from plot import DECODER_JOBS, JOBS, draw, draw_jobs, draw_onnx
from published import published_environment
from report import judge, table
from rows import CPU_ROWS, cuda_rows
from transformers.utils import is_flash_attn_2_available


HERE = Path(__file__).resolve().parent
QUICK_REPEATS = 2


def main():
    arguments = parse_arguments()
    results = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    if not arguments.plot_only:
        if arguments.device == "cuda" and not torch.cuda.is_available():
            print("skipped: torch sees no CUDA device here")
            return
        run(arguments, results)
    for name, section in results.items():
        print(f"{name}: {section['machine']['cpu']}\n\n{table(section)}", end="\n\n")
    if "cpu" in results:
        draw(results["cpu"], arguments.figures)
    for section in results.values():
        if "fill-mask" in section["rows"]:
            draw_jobs(section, arguments.figures / "jobs.png", JOBS, "times faster at 4,096 tokens")
        if "causal-training" in section["rows"]:
            draw_jobs(section, arguments.figures / "decoder.png", DECODER_JOBS, "times faster")
        if "onnx-4096" in section["rows"]:
            draw_onnx(section, arguments.figures)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="these rows only; the others stay as they were")
    parser.add_argument("--more", action="store_true", help="add the rounds to those measured before")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_REPEATS} repeats, to see that everything runs")
    parser.add_argument("--plot-only", action="store_true", help="print and draw what has been measured before")
    parser.add_argument("--threads", type=int, default=2, help="threads of each process (default 2)")
    parser.add_argument("--published-python", type=Path, help="interpreter of an environment with the published code")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--figures", type=Path, default=HERE.parent / "docs", help="folder of the figures")
    return parser.parse_args()


def run(arguments, results):
    """
    Measure the rows asked for; their section of `results`, `{"machine", "published", "rows"}`, is written after each
    one. With `--rows` the other rows that are there already are kept, with `--more` the earlier rounds too.
    """
    all_rows = CPU_ROWS if arguments.device == "cpu" else cuda_rows(is_flash_attn_2_available())
    names = [row.name for row in all_rows]
    unknown = sorted(set(arguments.rows or ()).difference(names))
    if unknown:
        sys.exit(f"No row {', '.join(unknown)}; the rows are {', '.join(names)}")
    rows = [row for row in all_rows if not arguments.rows or row.name in arguments.rows]

    section = {"machine": describe_machine(arguments.device, arguments.threads), "published": None, "rows": {}}
    name = section_name(results, arguments.device, section["machine"])
    if (arguments.rows or arguments.more) and name in results:
        section = results[name]
    results[name] = section

    pythons = dict.fromkeys(MODELS, sys.executable)
    if any(case.model == "published" for row in rows for case in row.cases.values()):
        try:
            pythons["published"], section["published"] = published_environment(arguments.published_python)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"The published code is left out: {error}", file=sys.stderr)
            del pythons["published"]
    for row in rows:
        earlier = section["rows"].get(row.name, {}).get("cases", {}) if arguments.more else {}
        measured = section["rows"] | {row.name: run_row(row, earlier, pythons, arguments)}
        section["rows"] = {name: measured[name] for name in names if name in measured}
        arguments.results.write_text(json.dumps(results, indent=1) + "\n")


def section_name(results, device, machine):
    """The device's section of this machine and software, or one that is free: rows of two machines do not mix."""
    name, number = device, 1
    while name in results and results[name]["machine"] != machine:
        number += 1
        name = f"{device}-{number}"
    return name


def run_row(row, earlier, pythons, arguments):
    """
    Measure one row: `{"title", "cases", "checks"}`, or `{"title", "skipped"}`. The rounds of `earlier` cases, which
    come from the same row, stand before the new ones.
    """
    print(f"{row.name} ...", file=sys.stderr, flush=True)
    if row.needs_bf16 and not has_bf16_instructions():
        return {"title": row.title, "skipped": "the CPU has no bfloat16 instructions"}
    cases = {name: case for name, case in row.cases.items() if case.model in pythons}
    repeats = QUICK_REPEATS if arguments.quick else row.repeats
    measured = measure(cases, repeats, pythons, arguments.threads, row.beside)
    for name, result in measured.items():
        if "seconds" in result:
            result["seconds"] = earlier.get(name, {}).get("seconds", []) + result["seconds"]
    checks = [judge(check, measured) for check in row.checks]
    return {"title": row.title, "cases": measured, "checks": checks}


if __name__ == "__main__":
    main()
