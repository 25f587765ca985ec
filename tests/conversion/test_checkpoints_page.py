"""The table of checkpoints in docs/checkpoints.md: a model of each shape is converted, and answers as its source."""

import json
import re

import pytest
import torch
from family_folders import hide_global_tokens, write_model, write_wordpiece, write_xlm_roberta_tokenizer
from repository import ROOT
from transformers import AutoTokenizer

from lsg_xlmr.cli import main
from lsg_xlmr.conversion import ARCHITECTURES


COLUMNS = ("checkpoint", "class", "layers", "words", "positions", "types", "epsilon", "padding", "labels", "modules")
LINES = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8").splitlines()
CELLS = [[cell.strip() for cell in line.split("|")[1:-1]] for line in LINES]
ROWS = [dict(zip(COLUMNS, cells)) for cells in CELLS if len(cells) == len(COLUMNS)][2:]
MODULES = {
    "Pooling": {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True},
    "Dense": {"in_features": 8, "out_features": 8, "bias": True, "activation_function": "torch.nn.modules.Tanh"},
    "Normalize": None,
}


def write_modules(folder, names):
    """What sentence-transformers has beside the encoder; returns the folders."""
    paths = [f"{number}_{name}" for number, name in enumerate(names, 1)]
    for path, name in zip(paths, names):
        (folder / path).mkdir()
        if MODULES[name]:
            (folder / path / "config.json").write_text(json.dumps(MODULES[name]))
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
        for number, (path, name) in enumerate(zip(["", *paths], ["Transformer", *names]))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    return paths


def test_the_table_has_twenty_checkpoints():
    assert len({row["checkpoint"] for row in ROWS}) >= 20


@pytest.mark.parametrize("row", ROWS, ids=[row["checkpoint"] for row in ROWS])
def test_a_model_of_the_same_shape(tmp_path, row):
    source, target, architecture = tmp_path / "source", tmp_path / "target", row["class"]
    fields = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    if row["labels"]:
        fields["num_labels"] = int(row["labels"])
    stock = write_model(
        source,
        architecture,
        vocab_size=int(row["words"]),
        max_position_embeddings=int(row["positions"]),
        type_vocab_size=int(row["types"]),
        layer_norm_eps=float(row["epsilon"]),
        pad_token_id=int(row["padding"]),
        **fields,
    )
    is_bert = architecture.startswith("Bert")
    has_wordpiece = is_bert and not row["words"].startswith("250")
    (write_wordpiece if has_wordpiece else write_xlm_roberta_tokenizer)(source)
    modules = write_modules(source, row["modules"].split()) if row["modules"] else []
    options = ["--model_kwargs", "{'pool_with_global': False}"]
    assert main(["--initial_model", str(source), "--model_name", str(target), *options]) == 0

    name = re.sub("^(XLMRoberta|Roberta|Camembert|Bert)", "LSGXLMRoberta", architecture)
    model = ARCHITECTURES[name][1].from_pretrained(target).eval()
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert model.config.max_sequence_length == max(4096, int(row["positions"]) - (0 if is_bert else 2))
    assert model.config.pad_token_id == tokenizer.pad_token_id == (0 if has_wordpiece else 1)
    inputs = tokenizer(["Paris is in France.", "Rome"], padding=True, return_tensors="pt")
    assert ("token_type_ids" in inputs) == has_wordpiece
    with torch.no_grad():
        expected, answer = stock(**inputs)[0], hide_global_tokens(model)(**inputs)[0]
    if expected.shape[:2] == inputs.input_ids.shape:
        expected, answer = (x[inputs.attention_mask == 1] for x in (expected, answer))
    torch.testing.assert_close(answer, expected, rtol=0, atol=1e-5)
    for path in modules:
        assert sorted(x.name for x in (target / path).iterdir()) == sorted(x.name for x in (source / path).iterdir())
