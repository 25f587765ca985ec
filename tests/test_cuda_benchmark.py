"""`benchmarks/cuda.py` on a CPU at tiny size, from its start to its end. `pytest -m flex`."""

import json
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from repository import ROOT


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "cuda.py"), *map(str, arguments)], capture_output=True, text=True
    )


@pytest.mark.flex
def test_the_command_runs_to_its_end(tmp_path):
    found = run("--output", tmp_path / "new", "--device", "cpu", "--tiny")
    assert found.returncode == 0, found.stdout + found.stderr
    results = json.loads((tmp_path / "new" / "results.json").read_text())
    parts = results["parts"]
    assert {name: part["state"] for name, part in parts.items()} == dict.fromkeys(parts, "done")
    assert "skipped" in parts["tests"]["rows"][0]["summary"]  # here; a GPU has them run
    assert len(parts["correctness"]["rows"]) == 4 and all(row["is_right"] for row in parts["correctness"]["rows"])
    works = [(row["work"], row["length"]) for row in parts["rows"]["rows"]]
    assert works[:4] == [(work, length) for work in ("forward", "training") for length in (512, 1024)]
    assert sum(row["lsg"]["graphs"] for row in parts["rows"]["rows"]) == 1  # batches of equally many tokens
    assert [row["model"] for row in parts["requests"]["rows"]] == ["lsg", "stock"]
    assert found.stdout.strip() == (tmp_path / "new" / "table.md").read_text().strip()
    assert len(ElementTree.parse(tmp_path / "new" / "plot.svg").getroot()) > 10


@pytest.mark.flex
def test_what_was_measured_is_there_when_the_time_is_up(tmp_path):
    found = run("--output", tmp_path, "--device", "cpu", "--tiny", "--minutes", 0.05)
    assert found.returncode != 0 and "its time was up" in found.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert any("time was up" in part["state"] for part in results["parts"].values())
    assert "its time was up" in (tmp_path / "table.md").read_text()
