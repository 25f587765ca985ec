"""After a conversion nobody who reads any of its files cuts at the old length, or pads to it."""

import json
import shutil
from pathlib import Path

import pytest
from folders import SMALL, cut_at, embedder, write
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from lsg_xlmr.cli import main
from lsg_xlmr.conversion import LSGConverter


PAD = 1
OLD, NEW = 40, 600
SHORT, LONG = "Paris.", "The Seine flows through France. " * 15
LONGEST = LONG * 20


def convert(*options):
    assert main(["--initial_model=source", "--model_name=out", f"--max_sequence_length={NEW}", *options]) == 0


def real(ids):
    return [token for token in ids if token != PAD]


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(SMALL, tmp_path / "source"))
    cut_at(folder, OLD)
    return folder


def test_tokenizers_and_transformers_see_one_text(source):
    convert()
    before = AutoTokenizer.from_pretrained(SMALL)
    alone, here = Tokenizer.from_file("out/tokenizer.json"), AutoTokenizer.from_pretrained("out")
    for text in (SHORT, LONG, LONGEST):
        expected = before(text, truncation=True, max_length=NEW).input_ids
        assert len(expected) > OLD or text is SHORT
        assert alone.encode(text).ids == here(text, truncation=True).input_ids == expected
        in_batch = alone.encode_batch([text, SHORT])
        assert real(in_batch[0].ids) == expected and len(in_batch[1].ids) == len(in_batch[0].ids) == len(expected)
        padded = here([text, SHORT], truncation=True, padding=True).input_ids
        assert [x.ids for x in in_batch] == padded
    assert len(alone.encode(LONGEST).ids) == NEW


def test_the_settings_of_the_tokenizer(source):
    convert()
    settings = json.loads(Path("out/tokenizer_config.json").read_text())
    assert settings.get("max_length", NEW) == settings["model_max_length"] == NEW
    assert not {"is_local", "local_files_only", "name_or_path"} & settings.keys()
    assert OLD not in settings.values() and "/home/someone" not in Path("out/tokenizer_config.json").read_text()


def test_no_field_of_the_machine_is_added(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(SMALL, "source")
    convert()
    settings = json.loads(Path("out/tokenizer_config.json").read_text())
    AutoTokenizer.from_pretrained("source").save_pretrained("saved")
    saved = json.loads(Path("saved/tokenizer_config.json").read_text())
    assert settings.keys() - {"model_input_names"} == saved.keys() - {"is_local", "local_files_only"}


def test_the_tokenizer_that_the_converter_gives(source):
    _, tokenizer = LSGConverter(max_sequence_length=NEW).convert_from_pretrained(source)
    tokenizer.save_pretrained("saved")
    assert len(tokenizer(LONGEST, truncation=True).input_ids) == NEW
    truncation = Tokenizer.from_file("saved/tokenizer.json").truncation  # transformers 5.0 writes none
    assert truncation is None or truncation["max_length"] == NEW
    settings = json.loads(Path("saved/tokenizer_config.json").read_text())
    assert settings.get("max_length", NEW) == NEW and "is_local" not in settings


def test_windows_may_not_overlap_by_more_than_they_hold(source):
    """A stride that is left from a longer input would be refused by every reader of tokenizer.json."""
    content = json.loads((source / "tokenizer.json").read_text())
    content["truncation"] |= {"max_length": 512, "stride": 128}
    write(source, "tokenizer.json", content)
    assert main(["--initial_model=source", "--model_name=out", "--max_sequence_length=100"]) == 0
    assert len(Tokenizer.from_file("out/tokenizer.json").encode(LONGEST).ids) == 100
    assert len(AutoTokenizer.from_pretrained("out")(LONGEST, truncation=True).input_ids) == 100


@pytest.mark.parametrize("name", ["sentence_bert_config.json", "sentence_xlm-roberta_config.json"])
def test_the_settings_of_sentence_transformers(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    folder = embedder(tmp_path / "source")
    (folder / "sentence_bert_config.json").unlink()
    arguments = {"model_max_length": OLD, "use_fast": True}
    settings = {"max_seq_length": OLD, "do_lower_case": False, "tokenizer_args": arguments, "query_length": 32}
    write(folder, name, {**settings, "document_length": OLD, "processing_kwargs": {"text": {"max_length": OLD}}})
    convert()
    assert sorted(path.name for path in Path("out").glob("sentence_*")) == ["sentence_bert_config.json"]
    found = json.loads(Path("out/sentence_bert_config.json").read_text())
    assert found["max_seq_length"] == found["document_length"] == found["tokenizer_args"]["model_max_length"] == NEW
    assert found["processing_kwargs"] == {"text": {"max_length": NEW}}
    assert found["query_length"] == 32  # of questions, which are short by choice
    assert found["tokenizer_args"]["use_fast"] is True and found["do_lower_case"] is False
