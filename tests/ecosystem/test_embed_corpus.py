"""A corpus embedded by Ray Data: every document once, killed or not."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from repository import ROOT, TINY
from transformers import AutoModel, AutoTokenizer

from lsg_xlmr import late_chunks
from lsg_xlmr.cli import main


pytestmark = pytest.mark.ecosystem

SCRIPT = ROOT / "examples" / "embed_corpus.py"
NUM_FILES = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    model = TINY
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


def processes(mark):
    """The numbers of the processes started with EMBED_CORPUS_TEST set to `mark`, Ray's own among them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"EMBED_CORPUS_TEST={mark}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:  # ended meanwhile, or another user's
            pass
    return found


@pytest.fixture
def start(folder, tmp_path):
    """A function that starts the script; whatever it started must end by itself."""

    def call(output, *options):
        command = [sys.executable, str(SCRIPT), "--model", "model", "--corpus", "corpus", "--output", output, *options]
        environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        environment["EMBED_CORPUS_TEST"] = str(tmp_path)
        log = open(tmp_path / "log", "w")  # not a pipe, which would stay open as long as any process that holds it
        with log:
            return subprocess.Popen(
                [*command, "--threads", "1"], cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    yield call
    deadline = time.time() + 60
    while (left := processes(tmp_path)) and time.time() < deadline:
        time.sleep(0.2)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


@pytest.fixture
def finish(tmp_path):
    def call(process):
        try:
            process.wait(timeout=300)
        finally:
            process.kill()
        output = (tmp_path / "log").read_text()
        assert process.returncode == 0, output[-3000:]
        return output

    return call


def files_in(folder):
    """Name to inode and time of writing."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.parquet")}


def vectors(folder):
    import pyarrow.parquet as pq

    rows = [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert len({row["id"] for row in rows}) == len(rows) == 6 * NUM_FILES
    return {row["id"]: torch.tensor(row["embedding"]) for row in rows}


def test_killed_in_the_middle_and_run_again(folder, start, finish, tmp_path):
    process = start("killed")
    deadline = time.time() + 200
    while not files_in(folder / "killed"):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.02)
    assert len(processes(tmp_path)) > 1
    process.kill()  # Ray's own processes are not told
    process.wait()
    there = files_in(folder / "killed")
    missing = next(path for path in (folder / "corpus").iterdir() if f"{path.name}.parquet" not in there)
    (folder / "killed" / f".{missing.name}.parquet.0.partial").write_bytes(b"PAR1 half of a file")
    output = finish(start("killed"))
    found = int(re.search(r"(\d+) of \d+ files", output)[1])
    assert len(there) <= found < NUM_FILES  # one more may have come between the kill and the look
    assert f"{found} of {NUM_FILES} files are embedded already." in output
    after = files_in(folder / "killed")
    assert len(after) == len(os.listdir(folder / "killed")) == NUM_FILES
    assert {name: after[name] for name in there} == there
    assert f"{NUM_FILES} of {NUM_FILES} files" in finish(start("killed"))
    assert files_in(folder / "killed") == after

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


def test_late_chunks_are_several_rows_of_a_document(folder, start, finish):
    import pyarrow.parquet as pq

    # One document is beyond the model's 4,096 tokens, another has none.
    texts = {"long": "The Seine flows through France. " * 700, "short": "Rome is old.", "none": ""}
    (folder / "few").mkdir()
    lines = [json.dumps({"id": name, "text": text}) for name, text in texts.items()]
    (folder / "few" / "part.jsonl").write_text("\n".join(lines))
    output = finish(start("chunks", "--corpus", "few", "--window", "64"))
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModel.from_pretrained(folder / "model", trust_remote_code=True).eval()
    tokens = sum(map(len, tokenizer([*texts.values()], verbose=False)["input_ids"]))
    assert tokens > 4096 and f"3 documents, {tokens} tokens" in output
    rows = pq.read_table(folder / "chunks" / "part.jsonl.parquet").to_pylist()
    found = {name: [row for row in rows if row["id"] == name] for name in texts}
    assert not found["none"] and len(found["long"]) + len(found["short"]) == len(rows)
    for name in ("long", "short"):
        ((vectors, spans),) = late_chunks(model, [texts[name]], tokenizer, window=64)
        assert [(row["start"], row["end"]) for row in found[name]] == spans
        vectors = torch.nn.functional.normalize(vectors, dim=1)
        torch.testing.assert_close(torch.tensor([x["embedding"] for x in found[name]]), vectors, atol=1e-5, rtol=0)
    assert found["long"][-1]["end"] == len(texts["long"]) - 1


def test_lines_are_read_as_they_stand(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from embed_corpus import read_jsonl

    rows = [{"id": "2024-01-02", "text": "2024-01-02T03:04:05"}, {"id": "b", "text": "The Seine. " * 500_000}]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_jsonl(tmp_path / "long.jsonl").to_pylist() == rows
    (tmp_path / "numbers.jsonl").write_text('{"text": "a", "id": 7, "kind": "x"}\n\n')
    assert read_jsonl(tmp_path / "numbers.jsonl").to_pylist() == [{"id": 7, "text": "a"}]
    (tmp_path / "none.jsonl").touch()
    assert read_jsonl(tmp_path / "none.jsonl").to_pylist() == []


def test_an_empty_file_and_an_ending_in_capitals(folder, start, finish):
    import pyarrow.parquet as pq

    (folder / "odd").mkdir()
    (folder / "odd" / "none.jsonl").touch()
    (folder / "odd" / "part.json").touch()
    (folder / "odd" / "part.JSONL").write_text(json.dumps({"id": "2024-01-02", "text": "Rome is old."}))
    told = finish(start("odd-vectors", "--corpus", "odd"))
    assert "Not read, since they end in neither .parquet nor .jsonl: part.json." in told and "1 documents" in told
    (row,) = pq.read_table(folder / "odd-vectors" / "part.JSONL.parquet").to_pylist()
    assert row["id"] == "2024-01-02" and len(row["embedding"]) == 128
    assert pq.read_table(folder / "odd-vectors" / "none.jsonl.parquet").to_pylist() == []


@pytest.mark.parametrize("options", [("--window", "0"), ("--window", "64", "--pooling", "cls")])
def test_windows_that_cannot_be(folder, options):
    command = [sys.executable, str(SCRIPT), "--model", "model", "--corpus", "corpus", "--output", "nothing", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2 and "--window takes 1 or more tokens and --pooling mean" in done.stderr
    assert not (folder / "nothing").exists()


def test_no_corpus(folder):
    (folder / "empty").mkdir()
    command = [sys.executable, str(SCRIPT), "--model", "model", "--corpus", "empty", "--output", "nothing"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2 and "--corpus empty holds no file that ends in .parquet or .jsonl" in done.stderr
    assert not (folder / "nothing").exists()
