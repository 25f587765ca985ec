"""`lsg-convert --verify`: whether a checkpoint's code is that of this release."""

import hashlib
import json
from pathlib import Path

import pytest

from lsg_xlmr import LSGXLMRobertaForMaskedLM
from lsg_xlmr.cli import main


CODE = ("configuration_lsg.py", "modeling_lsg_xlm_roberta.py")


@pytest.fixture
def checkpoint(tiny_config, tmp_path):
    LSGXLMRobertaForMaskedLM(tiny_config()).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def verify(checkpoint, capsys):
    """A function that verifies the checkpoint; the exit code and what is printed."""

    def run(folder=checkpoint, *options):
        code = main(["--verify", str(folder), *options])
        return code, *capsys.readouterr()

    return run


def test_what_was_saved_is_of_this_release(verify, checkpoint):
    code, out, err = verify()
    assert code == 0 and not err and out.count("ok    ") == 2
    for name in CODE:
        assert hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() in out


@pytest.mark.parametrize("name", CODE)
def test_one_byte_more(verify, checkpoint, name):
    (checkpoint / name).write_bytes((checkpoint / name).read_bytes() + b"\n")
    code, out, _ = verify()
    assert code == 1 and f"FAILED {name}: sha256 " in out and out.count("FAILED") == 1


@pytest.mark.parametrize("name", CODE)
def test_a_file_that_is_missing(verify, checkpoint, name):
    (checkpoint / name).unlink()
    code, out, _ = verify()
    assert code == 1 and f"FAILED {name}: missing" in out


def test_code_besides(verify, checkpoint):
    (checkpoint / "sub").mkdir()
    (checkpoint / "sub" / "helper.py").write_text("raise SystemExit('this must not run')")
    code, out, _ = verify()
    assert code == 1 and "FAILED sub/helper.py: code that is not of this project" in out


@pytest.mark.parametrize("entry", ["somebody/else--modeling_lsg_xlm_roberta.LSGXLMRobertaModel", "other.Model"])
def test_classes_from_elsewhere(verify, checkpoint, entry):
    config = json.loads((checkpoint / "config.json").read_text())
    config["auto_map"]["AutoModel"] = entry
    (checkpoint / "config.json").write_text(json.dumps(config))
    code, out, _ = verify()
    assert code == 1 and f"FAILED config.json: AutoModel is {entry}, which is not in these files" in out


@pytest.mark.parametrize("content", ["{", "[]", '{"auto_map": 3}', None])
def test_no_config(verify, checkpoint, content):
    if content is None:
        (checkpoint / "config.json").unlink()
    else:
        (checkpoint / "config.json").write_text(content)
    code, out, err = verify()
    assert code == 2 and not out and "cannot be read" in err and err.count("\n") == 1


def test_no_folder(verify, tmp_path):
    code, _, err = verify(tmp_path / "nowhere")
    assert code == 2 and "There is no folder" in err and err.count("\n") == 1


def test_it_converts_nothing(capsys):
    with pytest.raises(SystemExit):
        main(["--verify", "folder", "--initial_model", "model"])
    assert "--initial_model does not go with --verify" in capsys.readouterr().err


def test_the_repository_is_of_this_release(verify):
    code, out, _ = verify(Path(__file__).parents[1])
    assert code == 1 and out.count("ok    ") == 2  # the package's own sources lie there too
