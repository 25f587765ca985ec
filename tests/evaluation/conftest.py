"""Small models of every head and short documents, as the tests of `lsg-evaluate` take them."""

import json
import random

import pytest
from family_folders import SENTENCES, write_model, write_xlm_roberta_tokenizer


SETTING = "{'block_size': 8, 'sparse_block_size': 8}"  # within the 64 positions of the source


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A function that writes a source for 64 tokens, of the class named, to `source`; the test runs beside it."""
    monkeypatch.chdir(tmp_path)

    def make(architecture, **fields):
        write_model("source", architecture, **fields)
        write_xlm_roberta_tokenizer("source", ("tokenizer.json",))

    return make


@pytest.fixture
def documents(tmp_path):
    """A function that writes `count` documents of some `sentences` to `documents.jsonl`, with further columns."""

    def make(count=4, sentences=12, name="documents.jsonl", **columns):
        rng, rows = random.Random(0), []
        for i in range(count):
            text = " ".join(rng.sample(SENTENCES, sentences))
            rows.append({"id": f"d{i}", "text": text, **{key: values[i] for key, values in columns.items()}})
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return rows

    return make


def options(*further):
    """Of `lsg-evaluate`, on what the fixtures write."""
    length = ("--max_sequence_length", "256", "--settings", SETTING)
    return ["source", "documents.jsonl", "--output", "out", *length, *further]
