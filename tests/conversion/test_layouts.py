"""Folders as people have them: older sentence-transformers, routers, parts, adapters."""

import json
import shutil
from pathlib import Path

import pytest
from folders import SMALL, embedder, modules, old_embedder, write
from safetensors.torch import save_file

import lsg_xlmr.conversion.adapters
from lsg_xlmr.cli import main
from lsg_xlmr.conversion import Source


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """A function that converts, and gives the exit code and every line that was said."""
    monkeypatch.chdir(tmp_path)

    def run(*options, source="source"):
        capsys.readouterr()
        code = main([f"--initial_model={source}", "--model_name=out", "--max_sequence_length=600", *options])
        out, err = capsys.readouterr()
        return code, f"{err}\n{out}".replace("\r", "\n").strip()

    return run


def refused(convert, *words, **kwargs):
    """The conversion ends with one line that holds all `words`, and nothing is written."""
    before = {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")}
    code, said = convert(**kwargs)
    line = said.splitlines()[-1]
    assert code == 2 and line.startswith("lsg-convert: ") and "--debug" not in line
    assert all(word in line for word in words), line
    assert {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")} == before


@pytest.mark.parametrize("encoder, kind", [("0_Transformer", "Transformer"), ("0_XLMRoBERTa", "XLMRoBERTa")])
def test_an_older_embedder_becomes_one_of_today(tmp_path, convert, encoder, kind):
    embedder(tmp_path / "modern")
    assert convert(source="modern")[0] == 0
    Path("out").rename("expected")
    old_embedder(tmp_path / "source", encoder=encoder, kind=kind)
    code, said = convert()
    assert code == 0 and "Left behind" not in said
    files = {path.relative_to("out").as_posix() for path in Path("out").rglob("*") if path.is_file()}
    assert files == {path.relative_to("expected").as_posix() for path in Path("expected").rglob("*") if path.is_file()}
    for name in files - {"README.md"}:
        assert Path("out", name).read_bytes() == Path("expected", name).read_bytes(), name
    assert json.loads(Path("out/modules.json").read_text()) == modules("", "1_Pooling", "2_Normalize")
    assert Path("out/2_Normalize").is_dir()


def test_what_is_known_of_an_older_embedder(tmp_path):
    folder = old_embedder(tmp_path / "source")
    source = Source(folder)
    assert source.encoder == str(folder / "0_Transformer") and source.files == folder
    assert source.is_embedder and source.module_folders == ["1_Pooling", "2_Normalize"]


def test_the_encoder_of_an_embedder_alone_says_so(tmp_path, convert):
    old_embedder(tmp_path / "source")
    code, said = convert(source="source/0_Transformer")
    assert code == 0 and f"is the encoder of the sentence-transformers model in {tmp_path / 'source'}" in said
    assert "is converted alone: what is beside it is left there (1_Pooling, 2_Normalize)" in said


def test_a_router_says_which_parts_to_convert(tmp_path, convert):
    folder = tmp_path / "source"
    for part in ("query_0_Transformer", "document_0_Transformer"):
        shutil.copytree(SMALL, folder / part)
    write(folder, "query_1_Pooling/config.json", {"pooling_mode": "mean"})
    kinds = {
        "query_0_Transformer": "Transformer",
        "query_1_Pooling": "Pooling",
        "document_0_Transformer": "Transformer",
    }
    types = {part: f"sentence_transformers.models.{kind}" for part, kind in kinds.items()}
    write(folder, "modules.json", modules("", kinds=("Router",)))
    write(folder, "router_config.json", {"types": types, "structure": {}, "parameters": {}})
    parts = ("'source/query_0_Transformer'", "'source/document_0_Transformer'", "by itself", "beside modules.json")
    refused(convert, "is a Router of sentence-transformers", *parts)
    code, said = convert(source="source/document_0_Transformer")
    assert code == 0 and "what is beside it is left there (query_0_Transformer, query_1_Pooling)" in said


def test_an_older_router(tmp_path, convert):
    shutil.copytree(SMALL, tmp_path / "source" / "query-0_Transformer")
    write("source", "modules.json", modules("", kinds=("Asym",)))
    write("source", "config.json", {"types": {"query-0_Transformer": "sentence_transformers.models.Transformer"}})
    refused(convert, "is a Router", "'source/query-0_Transformer'")


@pytest.mark.parametrize("config", [None, {"__version__": "0.3.8"}])
def test_a_folder_of_checkpoints_says_which_to_convert(tmp_path, convert, config):
    for name in ("checkpoint-500", "checkpoint-1000"):
        shutil.copytree(SMALL, tmp_path / "source" / name)
    if config:
        write("source", "config.json", config)
    refused(convert, "has no config.json of a model, but 'source/checkpoint-1000', 'source/checkpoint-500': convert")


def test_a_target_that_holds_the_encoder_of_an_older_embedder(tmp_path, convert):
    old_embedder(tmp_path / "source")
    code, said = convert("--overwrite", "--model_name=source/0_Transformer")
    assert code == 2 and "or holds it" in said.splitlines()[-1]


@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query"])
def test_other_positions_than_absolute_ones(tmp_path, convert, kind):
    folder = Path(shutil.copytree(SMALL, tmp_path / "source"))
    config = json.loads((folder / "config.json").read_text())
    write(folder, "config.json", {**config, "position_embedding_type": kind})
    refused(convert, f"position_embedding_type is {kind!r}", "only 'absolute' can be converted")


def adapter(folder, base="someone/base", **fields):
    write(folder, "adapter_config.json", {"base_model_name_or_path": base, "peft_type": "LORA", **fields})


def weights_of_an_adapter(folder):
    import torch

    save_file({"base_model.model.a": torch.zeros(1)}, Path(folder, "adapter_model.safetensors"))


def test_an_adapter_of_what_is_not_here(tmp_path, convert):
    adapter(tmp_path / "source")
    weights_of_an_adapter(tmp_path / "source")
    refused(convert, "'source' holds an adapter of 'someone/base'", "merge_and_unload")


@pytest.mark.parametrize("base", [None, 3, ["a"]])
def test_an_adapter_that_names_no_model(tmp_path, convert, base):
    adapter(tmp_path / "source", base)
    weights_of_an_adapter(tmp_path / "source")
    refused(convert, f"holds an adapter of {base!r}, which is no folder here")


@pytest.mark.parametrize("content", ["{", "[]"])
def test_an_adapter_whose_settings_cannot_be_read(tmp_path, convert, content):
    write(tmp_path / "source", "adapter_config.json", content)
    weights_of_an_adapter(tmp_path / "source")
    refused(convert, "adapter_config.json'")


def test_the_settings_of_an_adapter_alone(tmp_path, convert):
    adapter(tmp_path / "source")
    refused(convert, "holds the settings of an adapter, but neither weights nor a model")


def test_an_adapter_where_peft_is_not_installed(tmp_path, convert, monkeypatch):
    monkeypatch.setattr(lsg_xlmr.conversion.adapters, "is_peft_available", lambda: False)
    shutil.copytree(SMALL, "base")
    adapter(tmp_path / "alone", str(tmp_path / "base"))
    weights_of_an_adapter(tmp_path / "alone")
    refused(convert, "'alone' holds an adapter of", "pip install peft", source="alone")
    shutil.copytree("base", "source")
    adapter("source", "someone/base")
    weights_of_an_adapter("source")
    refused(
        convert, "'source' holds an adapter of 'someone/base'", "pip install peft", "move adapter_config.json away"
    )


def test_left_over_settings_of_an_adapter_without_weights(tmp_path, convert):
    """transformers would look for the adapter's weights, where peft is installed."""
    shutil.copytree(SMALL, "source")
    assert convert()[0] == 0
    Path("out").rename("expected")
    adapter("source")
    code, said = convert()
    assert code == 0 and "adapter_config.json (an adapter, which is not applied)" in said
    assert Path("out/model.safetensors").read_bytes() == Path("expected/model.safetensors").read_bytes()
