"""Published checkpoints as they are found: every file format, with and without the tensors that come and go."""

import json
import shutil

import pytest
import torch
from repository import DATA, ROOT
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForTokenClassification, XLMRobertaForMaskedLM

from lsg_xlmr import LSGXLMRobertaForMaskedLM
from lsg_xlmr.model import encoder


CASE = DATA / "parity" / "masked_lm"
SETTINGS = {"output_past": True, "position_embedding_type": "absolute", "_name_or_path": "x", "torch_dtype": "float32"}


def write_checkpoint(folder, weights, file_format="safetensors", **config):
    """A published-style folder with the two files of this repository in the place of its modeling file."""
    folder.mkdir()
    settings = {**json.loads((CASE / "config.json").read_text()), **SETTINGS, **config}
    (folder / "config.json").write_text(json.dumps(settings))
    for name in ("configuration_lsg.py", "modeling_lsg_xlm_roberta.py"):
        shutil.copy(ROOT / name, folder)
    if file_format == "safetensors":
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    elif file_format == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        stem, suffix, save = (
            ("model", "safetensors", lambda part, path: save_file(part, path, metadata={"format": "pt"}))
            if file_format == "sharded safetensors"
            else ("pytorch_model", "bin", torch.save)
        )
        names, index = sorted(weights), {}
        for i, part in enumerate((names[::2], names[1::2]), 1):
            shard = f"{stem}-{i:05d}-of-00002.{suffix}"
            save({name: weights[name] for name in part}, folder / shard)
            index.update(dict.fromkeys(part, shard))
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def answers(model):
    tensors = load_file(CASE / "case.safetensors")
    with torch.no_grad():
        logits = model.eval()(**{name[6:]: x for name, x in tensors.items() if name.startswith("input.")}).logits
    return logits, tensors["expected.logits"]


@pytest.mark.parametrize("file_format", ["safetensors", "bin", "sharded safetensors", "sharded bin"])
@pytest.mark.parametrize("extras", ["as saved", "position_ids", "decoder", "no decoder", "pooler"])
def test_loads_and_answers(tmp_path, file_format, extras, caplog):
    weights = load_file(CASE / "model.safetensors")
    words, bias = weights["roberta.embeddings.word_embeddings.weight"], weights["lm_head.bias"]
    if extras == "position_ids":
        weights["roberta.embeddings.position_ids"] = torch.arange(290)[None]
    if extras == "decoder":
        weights |= {"lm_head.decoder.weight": words.clone(), "lm_head.decoder.bias": bias.clone()}
    if extras == "no decoder":
        weights = {name: x for name, x in weights.items() if not name.startswith("lm_head.decoder")}
    if extras == "pooler":
        weights |= {"roberta.pooler.dense.weight": torch.zeros(16, 16), "roberta.pooler.dense.bias": torch.zeros(16)}
    folder = write_checkpoint(tmp_path / "checkpoint", weights, file_format)
    model, info = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    torch.testing.assert_close(*answers(model), rtol=0, atol=1e-5)
    assert "newly initialized" not in caplog.text


def test_only_what_is_new_is_initialized(tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint", load_file(CASE / "model.safetensors"))
    _, info = AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert info["missing_keys"] == {"pooler.dense.weight", "pooler.dense.bias"}
    _, info = AutoModelForTokenClassification.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"}


def test_the_published_base_checkpoints_settings(tmp_path):
    config = {"block_size": 256, "sparse_block_size": 0, "sparsity_type": "none", "mask_first_token": True}
    weights = load_file(CASE / "model.safetensors")
    weights["roberta.embeddings.position_embeddings.weight"] = torch.randn(4098, 16)
    folder = write_checkpoint(tmp_path / "checkpoint", weights, max_position_embeddings=4098, **config)
    model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)
    assert not model.config.has_sparse_tokens
    assert model(torch.randint(5, 97, (1, 4000))).logits.shape == (1, 4000, 97)
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert again.config.block_size == 256 and again.config.mask_first_token


@pytest.mark.parametrize("length", [1, 9, 16])
def test_within_two_blocks_only_the_global_token_differs_from_the_stock_model(tiny_config, length, monkeypatch):
    """With the global token hidden as a key, an LSG model is the stock one to the last position."""
    model = LSGXLMRobertaForMaskedLM(tiny_config(pool_with_global=False)).eval()
    stock = XLMRobertaForMaskedLM(model.config).eval()
    stock.load_state_dict(model.state_dict(), strict=False)
    input_ids = torch.randint(5, 99, (2, length))
    with torch.no_grad():
        expected = stock(input_ids).logits
        assert not torch.allclose(model(input_ids).logits, expected, atol=1e-3)

        def without_globals(*args, **kwargs):
            return torch.arange(length + 1).ge(1).expand(2, -1)

        monkeypatch.setattr(encoder, "key_mask", without_globals)
        torch.testing.assert_close(model(input_ids).logits, expected, rtol=0, atol=1e-5)
