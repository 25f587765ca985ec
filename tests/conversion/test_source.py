"""A source: what is known of a checkpoint as it is found, and that it is read once."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import folders
import pytest
from folders import SMALL

from lsg_xlmr import LSGConverter
from lsg_xlmr.conversion import Source


# Converts sys.argv[1] to sys.argv[2] and tells how often this project opened each file of the source to read it, and
# how often anyone opened its configuration.
COUNT = """
import json, os, sys
from collections import Counter
source, target = sys.argv[1:3]
ours, configs = Counter(), 0
def hook(event, arguments):
    global configs
    if event != "open" or not str(arguments[0]).startswith(source):
        return
    name = os.path.relpath(arguments[0], source)
    configs += name == "config.json"
    frame = sys._getframe(1)
    while frame and not {"transformers", "lsg_xlmr"} & set(frame.f_globals.get("__name__", "").split(".")):
        frame = frame.f_back
    ours[name] += bool(frame) and frame.f_globals["__name__"].startswith("lsg_xlmr")
sys.addaudithook(hook)
from lsg_xlmr.cli import main
code = main(["--initial_model", source, "--model_name", target, *sys.argv[3:]])
print("\\n" + json.dumps([code, configs, ours]))
"""


@pytest.fixture
def embedder(tmp_path):
    folder = folders.embedder(tmp_path / "embedder")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


def test_a_conversion_reads_each_file_once(embedder, tmp_path):
    command = [
        sys.executable,
        "-c",
        COUNT,
        str(embedder),
        str(tmp_path / "out"),
        "--max_sequence_length=600",
        "--run_test",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    code, configs, ours = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    assert configs == 1
    read = {name: count for name, count in ours.items() if count}
    assert read.keys() >= {"config.json", "modules.json", "README.md", "tokenizer.json", "1_Pooling/config.json"}
    assert set(read.values()) == {1}


def test_what_is_known_of_a_folder(embedder):
    source = Source(embedder)
    assert source.is_local and source.files == embedder and source.folders == [embedder]
    assert source.is_embedder and source.module_folders == ["1_Pooling", "2_Normalize"] and not source.is_lsg
    assert source.architecture == "XLMRobertaForMaskedLM" and source.config["model_type"] == "xlm-roberta"
    assert Source.of(source) is source and Source.of(str(embedder)).name == str(embedder)


def test_a_source_that_was_read_is_converted_as_it_was_read(tmp_path):
    folder = Path(shutil.copytree(SMALL, tmp_path / "source"))
    source = Source(folder)
    assert source.read() == (source.config, folder)
    (folder / "config.json").write_text("{")
    model, tokenizer = LSGConverter(max_sequence_length=600).convert_from_pretrained(source, block_size=16)
    assert model.config.max_sequence_length == tokenizer.model_max_length == 600
    assert source.config["max_position_embeddings"] < 600  # what was handed on is not what it keeps


def test_a_base_model_stands_for_no_architecture(tmp_path):
    folder = Path(shutil.copytree(SMALL, tmp_path / "source"))
    config = json.loads((folder / "config.json").read_text())
    for fields, name in (({}, "XLMRobertaModel"), ({"block_size": 16}, "LSGXLMRobertaModel")):
        content = {**config, **fields, "architectures": None}
        (folder / "config.json").write_text(json.dumps(content))
        assert Source(folder).architecture == name
