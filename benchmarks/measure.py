"""Runs the cases of a row side by side: a process each, one timed run of each in turn."""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from time import sleep


HERE = Path(__file__).parent


class WorkerError(Exception):
    """A case could not be run; the message is the end of what its process wrote."""


class Worker:
    """The process of one case, see worker.py. `python` is the interpreter whose environment has the model."""

    def __init__(self, case, python, threads):
        self.errors = tempfile.TemporaryFile("w+")
        environment = os.environ | {
            "PYTHONPATH": str(HERE.parent),
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
        }
        self.process = subprocess.Popen(
            [python, "-W", "ignore", HERE / "worker.py", json.dumps(asdict(case) | {"threads": threads})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment,
        )

    def answer(self):
        """The next answer, waited for."""
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        code = self.process.wait()
        self.errors.seek(0)
        raise WorkerError((self.errors.read().strip().splitlines() or [f"exit code {code}"])[-1])

    def start(self):
        """Begin one timed run, whose answer has its seconds."""
        print("run", file=self.process.stdin, flush=True)

    def close(self):
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()


# A process that keeps one core busy: products of matrices on one thread.
NEIGHBOUR = "import torch; torch.set_num_threads(1); x = torch.randn(1024, 1024)\nwhile True: x @ x"


@contextmanager
def neighbour(wanted):
    """One beside whatever is done meanwhile, if it is wanted."""
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", NEIGHBOUR], env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        sleep(3)  # until it is at work
        yield
    finally:
        process.kill()
        process.wait()


def measure(cases, repeats, pythons, threads, beside=None):
    """
    Run `cases` in turn `repeats` times, after one run of each for the memory.

    Args:
        cases (`dict[str, Case]`).
        repeats (`int`).
        pythons (`dict[str, str]`): an interpreter for each model.
        threads (`int`): threads of each process.
        beside (`str`, *optional*): as [`Row`] has it.

    Returns:
        for each case `{"case", "peak_mib", "multiply_adds", "seconds": [s]}`, or `{"case", "error"}`.
    """
    results, workers = {}, {}
    try:
        for name, case in cases.items():
            results[name] = {"case": asdict(case)}
            try:
                workers[name] = [Worker(case, pythons[case.model], threads) for _ in range(1 + (beside == "worker"))]
                for worker in workers[name]:
                    results[name] |= worker.answer() | {"seconds": []}
            except WorkerError as error:
                _drop(name, error, workers, results)
        with neighbour(beside == "neighbour"):
            for _ in range(repeats):
                for name in list(workers):
                    try:
                        for worker in workers[name]:
                            worker.start()
                        results[name]["seconds"].append(max(worker.answer()["seconds"] for worker in workers[name]))
                    except (WorkerError, BrokenPipeError) as error:
                        _drop(name, error, workers, results)
    finally:
        for worker in chain.from_iterable(workers.values()):
            worker.close()
    return results


def _drop(name, error, workers, results):
    print(f"  {name}: {error!r}", file=sys.stderr)
    results[name] = {"case": results[name]["case"], "error": str(error)}
    if name in workers:
        for worker in workers.pop(name):
            worker.close()
