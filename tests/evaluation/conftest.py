"""Small models of every head and short documents, as the tests of `lsg-evaluate` take them."""

import json
import random

import pytest
from family_folders import SENTENCES, write_model, write_xlm_roberta_tokenizer


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A function that writes a model for 64 tokens, of the class named, to `source`; the test runs beside it."""
    monkeypatch.chdir(tmp_path)

    def make(architecture, **fields):
        model = write_model("source", architecture, **fields)
        write_xlm_roberta_tokenizer("source", ("tokenizer.json",))
        return model

    return make


@pytest.fixture
def documents(tmp_path):
    """A function that writes `count` documents of so many sentences to `documents.jsonl`, with further columns."""

    def make(count=4, sentences=12, **columns):
        rng, rows = random.Random(0), []
        for i in range(count):
            text = " ".join(rng.sample(SENTENCES, sentences))
            rows.append({"id": f"d{i}", "text": text, **{key: values[i] for key, values in columns.items()}})
        write_lines(tmp_path / "documents.jsonl", rows)
        return rows

    return make


@pytest.fixture
def write_pairs(tmp_path):
    """A function that writes rows (`dict`) to `pairs.jsonl`."""
    return lambda rows: write_lines(tmp_path / "pairs.jsonl", rows)


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
