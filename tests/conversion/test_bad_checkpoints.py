"""Folders that cannot be converted: each is one clear line, leaves no trace, and runs nothing."""

import json
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from repository import DATA, TINY
from safetensors.torch import load_file, save_file

from lsg_xlmr.cli import main


SOURCE = DATA / "parity_conversion" / "source"
WORDS = "roberta.embeddings.word_embeddings.weight"


@pytest.fixture
def source(tmp_path):
    return Path(shutil.copytree(SOURCE, tmp_path / "source"))


def config(**fields):
    """A change of the configuration; `None` takes a field away."""

    def change(folder):
        fields_there = json.loads((folder / "config.json").read_text())
        fields_now = {name: value for name, value in {**fields_there, **fields}.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(fields_now))

    return change


def write(name, content):
    def change(folder):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def weights(change_weights):
    """A change of the `dict` of weights."""

    def change(folder):
        tensors = load_file(folder / "model.safetensors")
        save_file(change_weights(tensors) or tensors, folder / "model.safetensors", {"format": "pt"})

    return change


def cut(size):
    """The weights' file ends too early."""
    return lambda folder: write("model.safetensors", (SOURCE / "model.safetensors").read_bytes()[:size])(folder)


def in_shards(change_index, other=None):
    """Weights in two files, of which the second may be of another model, and a wrong index."""

    def change(folder):
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = sorted(tensors)
        parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
        for file, part in parts.items():
            shard = {name: tensors[name] for name in part}
            if other and file == "model-2.safetensors":
                shard = other(shard)
            save_file(shard, folder / file, {"format": "pt"})
        index = {name: file for file, part in parts.items() for name in part}
        text = json.dumps({"metadata": {}, "weight_map": index})
        (folder / "model.safetensors.index.json").write_text(change_index(folder, text) or text)

    return change


def bin_file(content):
    """`pytorch_model.bin` in the place of the safetensors."""

    def change(folder):
        (folder / "model.safetensors").unlink()
        content(folder / "pytorch_model.bin")

    return change


def remove(*patterns):
    def change(folder):
        for path in [path for pattern in patterns for path in folder.glob(pattern)]:
            path.unlink()

    return change


def link(name, target):
    """`name` is a link to `target`."""

    def change(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def modules(path):
    """A sentence-transformers model one of whose modules is in `path`."""

    def change(folder):
        transformer = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
        module = {"idx": 1, "name": "1", "path": path, "type": "sentence_transformers.models.Pooling"}
        (folder / "modules.json").write_text(json.dumps([transformer, module]))
        (folder.parent / "outside").mkdir(exist_ok=True)
        (folder.parent / "outside" / "config.json").write_text('{"model_type": "xlm-roberta"}')

    return change


def linked(name, target="outside/config.json"):
    """A sentence-transformers model one of whose files or folders is a link out of the folder."""

    def change(folder):
        modules("1_Pooling")(folder)
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(folder.parent / target)

    return change


class Touch:
    """Runs code when it is read from a pickle."""

    def __reduce__(self):
        return Path.touch, (Path("touched"),)


def both(*changes):
    def change(folder):
        for one in changes:
            one(folder)

    return change


def of_half_the_size(shard):
    return {name: tensor[: len(tensor) // 2].clone() for name, tensor in shard.items()}


WRONG = {
    # config.json
    "no config": (remove("config.json"), "it has no config.json"),
    "config no JSON": (write("config.json", "{"), "config.json' cannot be read"),
    "config empty": (write("config.json", ""), "config.json' cannot be read"),
    "config a list": (write("config.json", "[]"), r"config.json' must hold one JSON object, not \[\]"),
    "config a number": (write("config.json", "7"), "config.json' must hold one JSON object, not 7"),
    "config not text": (write("config.json", b"\xff\xfe\x00"), "config.json' cannot be read"),
    "config of BERT": (
        config(model_type="bert"),
        "not those of an XLM-RoBERTa .of the model_type 'bert'",
    ),
    "config of MPNet": (config(model_type="mpnet"), "its model_type is 'mpnet'"),
    "config of no model": (config(model_type=None), "its model_type is None"),
    "config a folder": (both(remove("config.json"), lambda x: (x / "config.json").mkdir()), "config.json"),
    "unknown architecture": (config(architectures=["XLMRobertaForTelepathy"]), "XLMRobertaForTelepathy"),
    "architectures no list": (config(architectures=3), "`architectures` .* must be a list .* got 3"),
    "architecture no name": (config(architectures=[3]), r"`architectures` .* must be a list .* got \[3\]"),
    "wrong LSG field": (config(block_size=-1), "`block_size` must be an int of at least 1, got -1"),
    "hidden size a word": (config(hidden_size="wide"), "hidden_size"),
    "heads do not divide": (config(num_attention_heads=5), r"No model can be made .* attention heads \(5\)"),
    "no layers of so many": (config(num_hidden_layers=-1), "num_hidden_layers"),
    "more layers than weights": (config(num_hidden_layers=9), "not there"),
    "no padding": (config(pad_token_id=-3), "pad_token_id"),
    "unknown activation": (config(hidden_act="telepathy"), "`hidden_act` must be one of .* got 'telepathy'"),
    # weights
    "no weights": (remove("model.safetensors"), "cannot be read"),
    "weights empty": (cut(0), "The weights of .* cannot be read"),
    "weights cut in the header": (cut(100), "The weights of .* cannot be read"),
    "weights cut at the end": (cut(-100), "The weights of .* cannot be read"),
    "weights text": (write("model.safetensors", "version https://git-lfs.github.com/spec/v1\n"), "cannot be read"),
    "weights a folder": (
        both(remove("model.safetensors"), lambda x: (x / "model.safetensors").mkdir()),
        "cannot be read",
    ),
    "weights behind a dead link": (link("model.safetensors", "../nowhere"), "cannot be read"),
    "a weight of another shape": (weights(lambda x: x.update({WORDS: x[WORDS][:50].clone()})), "has shape .*asks for"),
    "a weight of more dimensions": (weights(lambda x: x.update({WORDS: x[WORDS][None].clone()})), "has shape"),
    "a layer missing": (
        weights(lambda x: {name: tensor for name, tensor in x.items() if ".layer.1." not in name}),
        "not there",
    ),
    "weights of whole numbers": (weights(lambda x: {name: tensor.int() for name, tensor in x.items()}), "float"),
    "weights of another model": (
        weights(lambda x: {f"transformer.{name}": tensor for name, tensor in x.items()}),
        "not those of an XLM-RoBERTa",
    ),
    "no weight at all": (weights(lambda x: {"other": torch.zeros(1)}), "not those of an XLM-RoBERTa"),
    "index without its shards": (
        in_shards(lambda folder, text: (folder / "model-2.safetensors").unlink()),
        "cannot be read.*model-2.safetensors",
    ),
    "index no JSON": (in_shards(lambda folder, text: text[:-9]), "cannot be read"),
    "index without a map": (in_shards(lambda folder, text: "{}"), "cannot be read"),
    **{
        f"index that names {file!r}": (
            in_shards(lambda folder, text, file=file: text.replace('"model-2.safetensors"', json.dumps(file))),
            f"names {re.escape(repr(file))}, which is not a file beside it: refused",
        )
        for file in ("../elsewhere/model-2.safetensors", "/elsewhere/model-2.safetensors", "a/b.safetensors", 3, None)
    },
    "shards of two models": (in_shards(lambda *_: None, of_half_the_size), "has shape"),
    "shard of other names": (
        in_shards(lambda *_: None, lambda shard: {f"x.{name}": tensor for name, tensor in shard.items()}),
        "not there",
    ),
    "pickle that runs code": (
        bin_file(lambda path: torch.save({WORDS: Touch()}, path)),
        "a pickle that holds more than tensors.*refused",
    ),
    "plain pickle that runs code": (bin_file(lambda path: path.write_bytes(pickle.dumps(Touch()))), "refused"),
    "pickle cut": (bin_file(lambda path: path.write_bytes(b"\x80\x04")), "cannot be read"),
    "zip of nothing": (bin_file(lambda path: zipfile.ZipFile(path, "w").close()), "refused"),
    "pickle of a list": (bin_file(lambda path: torch.save([torch.zeros(1)], path)), "cannot be read"),
    # tokenizer
    "no tokenizer": (remove("*token*", "sentencepiece*"), "has no tokenizer"),
    "tokenizer no JSON": (write("tokenizer.json", "{"), "The tokenizer of .* cannot be read"),
    "tokenizer empty": (write("tokenizer.json", "{}"), "The tokenizer of .* cannot be read"),
    "tokenizer settings no JSON": (write("tokenizer_config.json", "{"), "The tokenizer of .* cannot be read"),
    "tokenizer of another vocabulary": (
        lambda folder: shutil.copy(TINY / "tokenizer.json", folder / "tokenizer.json"),
        r"the tokenizer has \d+ words and the model 101",
    ),
    "SentencePiece model cut": (
        both(remove("tokenizer.json"), write("sentencepiece.bpe.model", b"\x0a\x0e\x0a")),
        "The tokenizer of .* cannot be read",
    ),
    # sentence-transformers modules
    **{
        f"module in {path!r}": (modules(path), f"modules.json names {re.escape(repr(path))}, which is not a module's")
        for path in ("../outside", "/etc", ".", "./", "..", "1_Pooling/..", "1_Pooling/", "Pooling", "config.json")
        + ("README.md", "1_Pooling\0", "1_Pooling\n", 3, 0, True, None, ["1_Pooling"], {}, {"a": 1})
    },
    "module a file": (both(modules("1_Pooling"), write("1_Pooling", "")), "'1_Pooling', which is not a module's"),
    "module linked outside": (linked("1_Pooling", "outside"), "'1_Pooling', which is not .*, or is a link"),
    "module linked to nothing": (linked("1_Pooling", "nowhere"), "'1_Pooling', which is not a module's"),
    "module linked to the model": (
        linked("1_Pooling", "source"),
        "'1_Pooling', which is not .*, or is a link",
    ),
    # what would be copied, as it is or as transformers has read it
    **{
        f"{name} linked outside": (linked(name), f"source/{name}' is a link out of the folder.* refused")
        for name in ("tokenizer.json", "tokenizer_config.json", "sentencepiece.bpe.model", "config.json", "vocab.txt")
        + ("config_sentence_transformers.json", "chat_template.jinja", "additional_chat_templates/a.jinja")
        + ("1_Pooling/config.json",)
    },
    "folder of a module linked outside": (linked("1_Pooling/deep", "outside"), "1_Pooling/deep' is a link .* refused"),
    "folder of a module linked in a circle": (
        linked("1_Pooling/deep", "source"),
        "1_Pooling/deep' is a link .* refused",
    ),
    "blobs linked outside": (
        both(linked("blobs", "outside"), link("tokenizer.json", "blobs/config.json")),
        "tokenizer.json' is a link .* refused",
    ),
    **{
        f"settings {content!r}": (
            both(modules("1_Pooling"), write("sentence_bert_config.json", content)),
            "sentence_bert_config.json' (cannot be read|must hold one JSON object)",
        )
        for content in ("{", "", "[]", "3", "null", b"\xff")
    },
    "modules nested too deep": (write("modules.json", "[" * 10**5), "modules.json' cannot be read"),
    "modules no JSON": (write("modules.json", "["), "modules.json"),
    "modules no list": (write("modules.json", '{"path": ""}'), "modules.json"),
    "module without a path": (write("modules.json", '[{"idx": 0}]'), "modules.json"),
}


@pytest.mark.parametrize("change, words", WRONG.values(), ids=WRONG)
def test_one_line_and_no_trace(source, tmp_path, monkeypatch, capsys, change, words):
    monkeypatch.chdir(tmp_path)
    change(source)
    before = sorted(tmp_path.rglob("*"))
    code = main(["--initial_model=source", "--model_name=out", "--max_sequence_length=600"])
    out, err = capsys.readouterr()
    *_, line = err.replace("\r", "\n").strip().splitlines()
    print(line)
    assert code == 2 and not out
    assert line.startswith("lsg-convert: ") and "Traceback" not in err and "--debug" not in line
    assert re.search(words, line)
    assert sorted(tmp_path.rglob("*")) == before


def test_links_of_the_hubs_cache(tmp_path, monkeypatch):
    """Files of a snapshot are links to blobs, and these may be links to blobs that models share."""
    monkeypatch.chdir(tmp_path)
    model, source = tmp_path / "models--a--b", tmp_path / "models--a--b" / "snapshots" / "0123"
    for folder in (source / "1_Pooling", model / "blobs", tmp_path / "blobs" / "00"):
        folder.mkdir(parents=True)
    for path in SOURCE.iterdir():
        shutil.copy(path, tmp_path / "blobs" / "00")
        (model / "blobs" / path.name).symlink_to(f"../../blobs/00/{path.name}")
        (source / path.name).symlink_to(f"../../blobs/{path.name}")
    (model / "blobs" / "pooling").write_text("{}")
    (source / "1_Pooling" / "config.json").symlink_to("../../../blobs/pooling")
    (source / "modules.json").write_text('[{"path": ""}, {"path": "1_Pooling"}]')
    assert main([f"--initial_model={source}", "--model_name=out", "--max_sequence_length=600"]) == 0
    assert not [path for path in Path("out").rglob("*") if path.is_symlink()]
    assert Path("out/1_Pooling/config.json").read_text() == "{}"


def test_weights_may_be_on_another_disk(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk").mkdir()
    in_shards(lambda *_: None)(source)
    for path in source.glob("model*"):
        path.rename(tmp_path / "disk" / path.name)
        path.symlink_to(tmp_path / "disk" / path.name)
    assert main(["--initial_model=source", "--model_name=out", "--max_sequence_length=600"]) == 0
    assert not Path("out/model.safetensors").is_symlink()
