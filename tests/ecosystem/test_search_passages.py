"""The search among long passages, through its command line: every kind is converted, trained a little and saved."""

import os
import re
import subprocess
import sys

import pytest
from repository import ROOT, TINY


pytestmark = pytest.mark.ecosystem

SCRIPT = ROOT / "examples" / "search_passages.py"
LINES = ["source, first 512 tokens", "converted, 4096 tokens", "converted, trained"]
SMALL = ("--tested", "2", "--steps", "2", "--batch_size", "2")


def run(folder, *options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(SCRIPT), "--output", "out", *options]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(
    "kind, architecture, modules",
    [
        ("dense", "LSGXLMRobertaModel", ["Transformer", "Pooling"]),
        ("sparse", "LSGXLMRobertaForMaskedLM", ["Transformer", "SpladePooling"]),
        ("reranker", "LSGXLMRobertaForSequenceClassification", ["Transformer"]),
    ],
)
def test_every_kind(tmp_path, kind, architecture, modules):
    import torch
    from safetensors.torch import load_file
    from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder

    pooling = ["--pooling", "cls"] if kind == "dense" else []
    done = run(tmp_path, "--kind", kind, *SMALL, *pooling)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line for line, _ in re.findall(r"^(.*): ([\d.]+)% found first$", done.stdout, re.MULTILINE)] == LINES
    model_class = {"dense": SentenceTransformer, "sparse": SparseEncoder, "reranker": CrossEncoder}[kind]
    model = model_class(str(tmp_path / "out" / "trained"), trust_remote_code=True, device="cpu")
    assert type(model[0].model).__name__ == architecture
    assert [type(module).__name__ for module in model] == modules
    assert model.get_max_seq_length() == 4096
    if kind == "dense":
        assert model[1].pooling_mode == "cls"
    before, after = (load_file(tmp_path / "out" / name / "model.safetensors") for name in ("converted", "trained"))
    assert before.keys() == after.keys()
    word = next(name for name in before if name.endswith("word_embeddings.weight"))
    assert not torch.equal(before[word], after[word])


def test_late_chunks_of_the_passages(tmp_path):
    done = run(tmp_path, "--window", "128", *SMALL)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = re.findall(r"^(.*): [\d.]+% found first$", done.stdout, re.MULTILINE)
    assert lines == [LINES[0], *(f"{line}, late chunks of 128" for line in LINES[1:])]


def test_the_nearest_chunk_counts(monkeypatch):
    from sentence_transformers import SentenceTransformer

    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from search_passages import found_first

    model = SentenceTransformer(str(TINY), device="cpu")
    # Each query stands in its passage word for word, among others; averaged it is lost, as all passages are alike.
    others = "Rome is the capital of Italy. " * 12
    queries = ["The Seine flows through France.", "In Japan, people speak Japanese.", "Oslo lies in Norway."]
    passages = [others + query + " " + others for query in queries]
    assert found_first(model, queries, passages, window=10) == 1


@pytest.mark.parametrize(
    "options", [("--window", "0"), ("--window", "9", "--kind", "sparse"), ("--window", "9", "--pooling", "cls")]
)
def test_windows_that_cannot_be(tmp_path, options):
    done = run(tmp_path, *SMALL, *options)
    assert done.returncode == 2 and "--window takes 1 or more tokens, and goes with --kind dense" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_model_whose_vectors_are_no_means_has_no_windows(tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    SentenceTransformer(modules=[Transformer(str(TINY)), Pooling(128, "cls")]).save_pretrained(str(tmp_path / "cls"))
    done = run(tmp_path, *SMALL, "--window", "9", "--model", "cls")
    assert done.returncode == 2 and "--window: Late chunks are means of tokens" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_passages_are_long_and_tell_of_the_query_somewhere(monkeypatch):
    from transformers import AutoTokenizer

    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from search_passages import STRETCH, TOKENS, queries_and_passages
    from train_tiny_xlm_roberta import load_facts, write_sentences

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    queries, passages = queries_and_passages(tokenizer, 6, seed=0)
    assert (queries, passages) == queries_and_passages(tokenizer, 6, seed=0)
    starts = set()
    for query, passage in zip(queries, passages, strict=True):
        length = len(tokenizer.tokenize(passage))
        assert TOKENS <= length < TOKENS + 100 and query not in passage
        (country,) = {sentence.country for sentence in write_sentences(load_facts()) if sentence.text == query}
        told = {sentence.text for sentence in write_sentences(load_facts()) if sentence.country == country}
        places = sorted(passage.index(text) for text in told if text in passage)
        assert len(places) > STRETCH // 40
        starts.add(places[0] * 10 // len(passage))
    assert len(starts) > 2


def test_what_is_there_is_kept(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept.txt").write_text("kept")
    done = run(tmp_path, *SMALL)
    assert done.returncode == 2 and "--output out is there already: name a new folder" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["kept.txt"]
