"""The tables the published converter makes, for each set of options in data/parity_conversion/options.json."""

import json

import pytest
import torch
from repository import DATA
from safetensors.torch import load_file

from lsg_xlmr import LSGConverter


DATA = DATA / "parity_conversion"
OPTIONS = json.loads((DATA / "options.json").read_text())
TABLES = ("position_embeddings", "global_embeddings")


@pytest.fixture(scope="module")
def convert(tmp_path_factory):
    """A function that makes the folder of a named conversion, and those it starts from."""
    folders = {"source": DATA / "source"}

    def make(name):
        if name not in folders:
            options = dict(OPTIONS[name])
            source = make(options.pop("from"))
            model, tokenizer = LSGConverter(**options).convert_from_pretrained(source)
            folders[name] = tmp_path_factory.mktemp(name)
            model.save_pretrained(folders[name], save_original_format=False)
            tokenizer.save_pretrained(folders[name])
        return folders[name]

    return make


@pytest.mark.parametrize("name", OPTIONS)
def test_tables_are_the_published_ones(convert, name):
    expected, source = load_file(DATA / "expected.safetensors"), load_file(DATA / "source" / "model.safetensors")
    weights = load_file(convert(name) / "model.safetensors")
    positions, global_tokens = (weights.pop(f"roberta.embeddings.{table}.weight") for table in TABLES)
    assert torch.equal(positions, expected[f"{name}.position_embeddings"])
    torch.testing.assert_close(global_tokens, expected[f"{name}.global_embeddings"], rtol=0, atol=1e-6)
    del source["roberta.embeddings.position_embeddings.weight"]
    assert weights.keys() == source.keys()
    assert all(torch.equal(weights[key], source[key]) for key in source)


@pytest.mark.parametrize("name", OPTIONS)
def test_lengths_follow(convert, name):
    folder, length = convert(name), OPTIONS[name]["max_sequence_length"]
    assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == length + 2
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == length
