"""`lsg-convert --verify`: whether a checkpoint's code is that of this release."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from repository import ROOT

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


@pytest.mark.parametrize(
    "name", ["helper.py", "sub/helper.py", "__pycache__/helper.py", "helper.pyc", "sub/helper.so", "helper.pyd"]
)
def test_code_besides(verify, checkpoint, name):
    (checkpoint / name).parent.mkdir(exist_ok=True)
    (checkpoint / name).write_text("raise SystemExit('this must not run')")
    code, out, _ = verify()
    assert code == 1 and f"FAILED {name}: code that is not of this project" in out and out.count("FAILED") == 1


def test_what_python_has_compiled_runs_only_for_its_source(verify, checkpoint):
    (checkpoint / "__pycache__").mkdir()
    (checkpoint / "__pycache__" / "configuration_lsg.cpython-310.pyc").touch()
    assert verify()[0] == 0


@pytest.mark.parametrize(
    "file, fields, entry",
    [
        *(
            ("config.json", {"auto_map": {"AutoModel": entry}}, entry)
            for entry in ("somebody/else--modeling_lsg_xlm_roberta.LSGXLMRobertaModel", "other.Model", 3)
        ),
        ("config.json", {"auto_map": 3}, 3),
        ("config.json", {"auto_map": {"AutoModel": {"deep": [["other.Model"]]}}}, "other.Model"),
        ("config.json", {"encoder": {"auto_map": {"AutoModel": "other.Model"}}}, "other.Model"),
        ("config.json", {"custom_pipelines": {"job": {"impl": "evil--pipe.Pipe", "type": "text"}}}, "evil--pipe.Pipe"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": [None, "evil--tok.Tok"]}}, "evil--tok.Tok"),
        ("preprocessor_config.json", {"auto_map": {"AutoProcessor": "pre.Pro"}}, "pre.Pro"),
        ("modules.json", {"type": "evil/repo--x.Y"}, "evil/repo--x.Y"),
        ("modules.json", {"type": 3}, 3),
        ("config.json", {"auto_map": {"AutoModel": "a\nok     b"}}, "a\nok     b"),
        ("config.json", {"custom_pipelines": "other.Pipe"}, "other.Pipe"),
        ("adapter_config.json", {"base_model_name_or_path": "evil/base"}, "evil/base"),
        ("1_Dense/config.json", {"activation_function": "os.abort"}, "os.abort"),
        ("1_Router/router_config.json", {"types": {"query": "evil.Module"}}, "evil.Module"),
    ],
)
def test_classes_from_elsewhere(verify, checkpoint, file, fields, entry):
    path = checkpoint / file
    path.parent.mkdir(exist_ok=True)
    content = {**(json.loads(path.read_text()) if path.is_file() else {}), **fields}
    path.write_text(json.dumps([content] if file == "modules.json" else content))
    code, out, _ = verify()
    assert code == 1 and f" names {entry!r}, which is not in these files" in out
    assert all(line.startswith(("ok     ", f"FAILED {file}: ")) for line in out.splitlines())


def test_what_sentence_transformers_has_of_its_own(verify, checkpoint):
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    (checkpoint / "2_Dense").mkdir()
    activation = {"activation_function": "torch.nn.modules.activation.Tanh"}
    (checkpoint / "2_Dense" / "config.json").write_text(json.dumps(activation))
    (checkpoint / "tokenizer.json").write_text('{"type": "a.b", "auto_map": null}')
    assert verify()[0] == 0


@pytest.mark.parametrize("content", ["{", "[" * 10**5])
def test_json_that_cannot_be_read(verify, checkpoint, content):
    (checkpoint / "tokenizer_config.json").write_text(content)
    code, out, _ = verify()
    assert code == 1 and "FAILED tokenizer_config.json: cannot be read" in out


@pytest.mark.parametrize("name", ["modeling_lsg_xlm_roberta.py", "model.safetensors", "sub"])
def test_links_out_of_the_folder(verify, checkpoint, name):
    path = checkpoint / name
    if path.exists():
        path.rename(checkpoint.parent / name)
    else:
        (checkpoint.parent / name).mkdir()
    path.symlink_to(checkpoint.parent / name)
    code, out, _ = verify()
    assert code == 1 and f"FAILED {name}: a link out of the folder" in out


def test_the_links_of_the_hubs_cache(verify, checkpoint):
    blobs, snapshot = checkpoint / "blobs", checkpoint / "snapshots" / "0123"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for path in [path for path in checkpoint.iterdir() if path.is_file()]:
        path.rename(blobs / path.name)
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", path.name))
    assert verify(snapshot)[0] == 0


def test_pickles_are_named(verify, checkpoint):
    (checkpoint / "pytorch_model.bin").touch()
    code, out, _ = verify()
    assert code == 0 and "ok     pytorch_model.bin: a pickle" in out


@pytest.mark.parametrize("content", ["{", "[]", None])
def test_no_config(verify, checkpoint, content):
    if content is None:
        (checkpoint / "config.json").unlink()
    else:
        (checkpoint / "config.json").write_text(content)
    code, out, err = verify()
    assert code == 2 and not out and ("cannot be read" in err or "one JSON object" in err) and err.count("\n") == 1


def test_no_folder(verify, tmp_path):
    code, _, err = verify(tmp_path / "nowhere")
    assert code == 2 and "There is no folder" in err and err.count("\n") == 1


def test_it_converts_nothing(capsys):
    with pytest.raises(SystemExit):
        main(["--verify", "folder", "--initial_model", "model"])
    assert "--initial_model does not go with --verify" in capsys.readouterr().err


def test_the_repository_is_of_this_release(verify, tmp_path):
    """The files at its top, with which a published checkpoint is brought up to date."""
    (tmp_path / "top").mkdir()
    for name in ("config.json", *CODE):
        shutil.copy(ROOT / name, tmp_path / "top")
    code, out, _ = verify(tmp_path / "top")
    assert code == 0 and out.count("ok    ") == 2
