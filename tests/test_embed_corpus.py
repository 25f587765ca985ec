"""A corpus embedded by Ray Data: every document once, killed or not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from lsg_xlmr.cli import main


pytestmark = pytest.mark.ecosystem

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "embed_corpus.py"
NUM_FILES = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    model = ROOT / "models" / "tiny-xlm-roberta"
    options = ["--architecture", "LSGXLMRobertaModel"]
    assert main(["--initial_model", str(model), "--model_name", str(folder / "model"), *options]) == 0
    (folder / "corpus").mkdir()
    for number in range(NUM_FILES):
        lines = [
            json.dumps({"id": f"{number}-{i}", "text": "The Seine flows through France. " * (20 * i + number + 1)})
            for i in range(6)
        ]
        (folder / "corpus" / f"part-{number}.jsonl").write_text("\n".join(lines))
    return folder


def start(folder, output):
    command = [sys.executable, str(SCRIPT), "--model", "model", "--corpus", "corpus", "--output", output]
    environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    return subprocess.Popen(
        [*command, "--threads", "1"], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    return output


def vectors(folder):
    import pyarrow.parquet as pq

    rows = [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert len({row["id"] for row in rows}) == len(rows) == 6 * NUM_FILES
    return {row["id"]: torch.tensor(row["embedding"]) for row in rows}


def test_killed_in_the_middle_and_run_again(folder):
    process = start(folder, "killed")
    deadline = time.time() + 200
    while not list((folder / "killed").glob("*.parquet")):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    time.sleep(3)  # Ray's own processes see that their driver is gone
    there = {path.name: path.stat().st_mtime_ns for path in (folder / "killed").glob("*.parquet")}
    output = finish(start(folder, "killed"))
    assert f"{len(there)} of {NUM_FILES} files are embedded already." in output
    after = {path.name: path.stat().st_mtime_ns for path in (folder / "killed").glob("*.parquet")}
    assert len(after) == NUM_FILES and all(after[name] == when for name, when in there.items())
    assert f"{NUM_FILES} of {NUM_FILES} files" in finish(start(folder, "killed"))

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModel.from_pretrained(folder / "model", trust_remote_code=True).eval()
    found = vectors(folder / "killed")
    for path in (folder / "corpus").iterdir():
        for line in path.read_text().splitlines():
            document = json.loads(line)
            inputs = tokenizer(document["text"], truncation=True, return_tensors="pt")
            with torch.no_grad():
                vector = torch.nn.functional.normalize(model(**inputs).last_hidden_state[0].mean(0), dim=0)
            torch.testing.assert_close(found[document["id"]], vector, atol=1e-5, rtol=0)


def test_no_corpus(folder):
    (folder / "empty").mkdir()
    command = [sys.executable, str(SCRIPT), "--model", "model", "--corpus", "empty", "--output", "nothing"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2 and "--corpus empty holds no file that ends in .parquet or .jsonl" in done.stderr
    assert not (folder / "nothing").exists()
