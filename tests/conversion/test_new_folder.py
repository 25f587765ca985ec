"""A conversion that cannot be finished, or that would take something away, leaves everything as it was."""

import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from repository import DATA, ROOT
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from lsg_xlmr import cli
from lsg_xlmr.conversion.new_folder import new_folder


SOURCE = DATA / "parity_conversion" / "source"


def convert(*options, source="source", target="out"):
    blocks = "{'block_size': 16, 'sparse_block_size': 16}"
    return cli.main([f"--initial_model={source}", f"--model_name={target}", f"--model_kwargs={blocks}", *options])


def content(folder="."):
    """Every file below `folder` as bytes, hidden ones too, and every folder."""
    return {path: path.is_file() and path.read_bytes() for path in Path(folder).rglob("*")}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder, with a source and an older checkpoint in `out`."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(SOURCE, "source")
    shutil.copytree(SOURCE, "out")
    return tmp_path


def refused(capsys, *options, words, **arguments):
    """Runs a conversion that must fail by one line with `words` in it, and change nothing."""
    before = content()
    capsys.readouterr()
    assert convert(*options, **arguments) == 2
    err = capsys.readouterr().err
    assert words in err.strip().splitlines()[-1] and "Traceback" not in err
    assert content() == before


@pytest.mark.parametrize(
    "name, told",
    [
        ("notes.txt", "notes.txt"),
        (".git/HEAD", ".git/HEAD"),
        ("optimizer.pt", "optimizer.pt"),
        ("checkpoint-500/model.safetensors", "checkpoint-500/model.safetensors"),
        ("onnx/labels.csv", "onnx/labels.csv"),
        ("1_Pooling/notes.txt", "1_Pooling/notes.txt"),
        ("model-weights.safetensors/x", "model-weights.safetensors/x"),
        ("model_backup.safetensors", "model_backup.safetensors"),
        ("pytorch_model_old.bin", "pytorch_model_old.bin"),
        ("modeling_lsg_mine.py", "modeling_lsg_mine.py"),
        ("model-1-of-2.safetensors", "model-1-of-2.safetensors"),
        ("1_diary/config.json", "1_diary/config.json"),
        ("1_Diary/config.json", "1_Diary/config.json"),
        ("onnx/notes.json", "onnx/notes.json"),
        (".onnx-abcdefgh/thesis.tex", ".onnx-abcdefgh/thesis.tex"),
        (".onnx-01234567/notes.txt", ".onnx-01234567/notes.txt"),
        ("__pycache__/data.npy", "__pycache__/data.npy"),
        ("__pycache__/thesis.cpython-310.pyc", "__pycache__/thesis.cpython-310.pyc"),
    ],
)
def test_what_is_not_of_a_checkpoint_is_not_replaced(place, capsys, name, told):
    path = Path("out", name)
    path.parent.mkdir(exist_ok=True)
    path.write_text("weeks of work")
    refused(capsys, "--overwrite", words=f"'out' holds {told}, which would be lost")


def test_many_unknown_files_are_not_all_named(place, capsys):
    for number in range(50):
        Path(f"out/note{number}.txt").touch()
    refused(capsys, "--overwrite", words="and more, which would be lost with it")


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_half_a_checkpoint_is_not_replaced(place, capsys, missing):
    Path("out", missing).unlink()
    refused(capsys, "--overwrite", words="'out' holds no checkpoint")


@pytest.mark.parametrize("text", ['{"app": "my settings"}', '["model_type"]', '"model_type"', "3", "{", "[" * 10**5])
def test_settings_of_another_program_are_not_replaced(place, capsys, text):
    Path("out/config.json").write_text(text)
    refused(capsys, "--overwrite", words="'out' holds no checkpoint")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_target_that_the_source_leads_to(place, capsys, name):
    Path("source", name).unlink()
    Path("source", name).symlink_to(Path("..", "out", name))
    refused(capsys, "--overwrite", words=f"'out' holds what 'source/{name}' of the source is a link to")


def test_a_place_where_nothing_can_be_made(place, capsys):
    assert convert(target="/proc/out") == 2
    assert "'/proc/out' cannot be written in '/proc'" in capsys.readouterr().err.splitlines()[-1]


def test_a_checkpoint_of_any_kind_is_replaced(place):
    for name in (
        *("pytorch_model.bin", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "README.md"),
        *("training_args.bin", ".gitattributes", "special_tokens_map.json", "modules.json", "1_Pooling/config.json"),
        *("onnx/model.onnx", "onnx/model.onnx_data", "__pycache__/configuration_lsg.cpython-310.pyc"),
        *("onnx/model_quantized.onnx", "onnx/model_quantized.onnx.data", "onnx/model_O4.onnx", "onnx/ort_config.json"),
        *(".onnx-01234567/lock", ".onnx-01234567/new/model.onnx", ".onnx-01234567/new/model-inferred.onnx"),
        *(".README.md.new", "LICENSE", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"),
    ):
        Path("out", name).parent.mkdir(parents=True, exist_ok=True)
        Path("out", name).touch()
    Path("out/2_Normalize").mkdir()
    assert convert("--overwrite") == 0
    assert sorted(path.name for path in place.iterdir()) == ["out", "source"]
    assert not Path("out/onnx").exists() and "block_size" in json.loads(Path("out/config.json").read_text())


@pytest.mark.parametrize(
    "target, words",
    [
        ("source", "'source' is 'source' or holds it"),
        ("source/../source", "or holds it"),
        ("link", "'link' is 'source' or holds it"),
        ("source/deep/new", "is in the source 'source'"),
        ("link/new", "is in the source 'source'"),
        ("..", "or holds it"),
        ("out/model.safetensors", "is a file"),
        ("out/model.safetensors/new", "is a file, in one"),
        ("loop", "'loop' is a file, in one, or a link to itself"),
        ("loop/new", "'loop/new' is a file, in one, or a link to itself"),
    ],
)
def test_source_and_target_are_two_places(place, capsys, target, words):
    Path("link").symlink_to("source")
    Path("loop").symlink_to("loop")
    refused(capsys, "--overwrite", target=target, words=words)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to mount")
@pytest.mark.parametrize("target, words", [("bound", "or holds it"), ("bound/new", "is in the source")])
def test_bound_to_the_source(place, capsys, target, words):
    Path("bound").mkdir()
    if subprocess.run(["mount", "--bind", "source", "bound"], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        refused(capsys, "--overwrite", target=target, words=words)
    finally:
        subprocess.run(["umount", "bound"], check=True)


def in_a_process(*options, largest_file=resource.RLIM_INFINITY):
    """A conversion in a process of its own, whose files may not grow beyond `largest_file` bytes."""
    command = [
        "--initial_model=source",
        "--model_name=out",
        "--model_kwargs={'block_size': 16, 'sparse_block_size': 16}",
    ]
    return subprocess.run(
        [sys.executable, "-m", "lsg_xlmr", *command, *options],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file)),
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("share", [0.2, pytest.param(0.5, marks=pytest.mark.slow)])
def test_files_that_may_not_grow(place, share):
    """As on a full disk: the weights, or what comes before them, cannot be written."""
    before = content()
    size = int(share * Path("source/model.safetensors").stat().st_size)
    process = in_a_process("--overwrite", largest_file=size + 1)
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert "File too large" in process.stderr.strip().splitlines()[-1]
    assert content() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to mount")
@pytest.mark.parametrize("kilobytes", [40, 200, 400])
def test_full_disk(place, capsys, kilobytes):
    Path("disk").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", "disk"]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        refused(capsys, target="disk/out", words="No space left on device")
    finally:
        subprocess.run(["umount", "disk"], check=True)


@pytest.fixture
def unprivileged(monkeypatch):
    """A place of somebody who is not root, as which the test goes on."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.chdir(folder)
        shutil.copytree(SOURCE, "source")
        convert(target="first")  # imports what the user may have no right to read
        if os.geteuid() == 0:
            for path in (Path(folder), *Path(folder).rglob("*")):
                os.chown(path, 65534, 65534)
            os.seteuid(65534)
            try:
                yield Path(folder)
            finally:
                os.seteuid(0)
        else:
            yield Path(folder)
        for path in (Path(folder), *Path(folder).rglob("*")):
            path.chmod(path.stat().st_mode | stat.S_IRWXU)


@pytest.mark.parametrize(
    "path, mode, words",
    [
        (".", 0o500, "'new' cannot be written in"),
        ("source/config.json", 0, "'source/config.json' cannot be read"),
        ("source/model.safetensors", 0, "The weights of 'source' cannot be read"),
        ("source/tokenizer.json", 0, "The tokenizer of 'source' cannot be read"),
    ],
)
def test_no_permission(unprivileged, capsys, path, mode, words):
    before = sorted(Path().rglob("*"))
    Path(path).chmod(mode)
    assert convert(target="new") == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    Path(path).chmod(0o700)
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("change", ["another", "gone", "new", "in place"])
def test_source_that_changes(place, capsys, monkeypatch, change):
    """By a training that still writes it, after the weights were read; in place, the weights read change with it."""
    save_pretrained = PreTrainedModel.save_pretrained

    def save(model, *args, **kwargs):
        path = Path("source/model.safetensors")
        if change == "gone":
            path.unlink()
        elif change == "new":
            Path("source/model-00001-of-00002.safetensors").touch()
        elif change == "in place":
            with path.open("r+b") as file:
                file.seek(20_000)
                file.write(bytes(100))
        else:
            save_file(load_file(path), Path("source/new"), {"format": "pt"})
            Path("source/new").rename(path)
        return save_pretrained(model, *args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)
    before = content("out")
    assert convert("--overwrite") == 2
    assert "has changed while it was read" in capsys.readouterr().err
    assert content("out") == before and sorted(path.name for path in place.iterdir()) == ["out", "source"]


@pytest.mark.parametrize("damage", ["a bit", "a tensor"])
def test_what_was_written_is_read_back(place, capsys, monkeypatch, damage):
    save_pretrained = PreTrainedModel.save_pretrained

    def save(model, folder, **kwargs):
        save_pretrained(model, folder, **kwargs)
        path = Path(folder, "model.safetensors")
        weights = load_file(path)
        if damage == "a bit":
            weights["roberta.encoder.layer.0.output.dense.bias"].view(torch.int32)[3] ^= 1
        else:
            del weights["roberta.encoder.layer.0.output.dense.bias"]
        save_file(weights, path, {"format": "pt"})

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)
    words = "was not written right" if damage == "a bit" else "were not written whole"
    refused(capsys, "--overwrite", words=words)


def test_what_a_killed_process_left_is_removed_and_the_old_folder_put_back(place):
    """Killed between two changes of name: nobody is there under the name, the old one is beside."""
    before = content("out")
    with pytest.raises(ZeroDivisionError), new_folder("out", overwrite=True) as folder:
        work = folder.parent
        1 / 0
    assert not work.exists()
    (work / "new").mkdir(parents=True)
    (work / "lock").touch()
    Path("out").rename(work / "old")
    with pytest.raises(ZeroDivisionError), new_folder("out", overwrite=True):
        assert content("out") == before
        1 / 0
    assert content("out") == before and sorted(path.name for path in place.iterdir()) == ["out", "source"]


def test_stopped_again_and_again(place, capsys, monkeypatch):
    """Whoever presses Ctrl-C once more while a conversion cleans up stops it no sooner, and nothing stays behind."""
    rmtree = shutil.rmtree

    def interrupted(*args, **kwargs):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        rmtree(*args, **kwargs)

    def stop(*args):
        monkeypatch.setattr(shutil, "rmtree", interrupted)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(cli, "model_card", stop)
    before, handler = content(), signal.getsignal(signal.SIGINT)
    assert convert("--overwrite") == 130
    assert "stopped; nothing half-written is left" in capsys.readouterr().err
    assert content() == before and signal.getsignal(signal.SIGINT) is handler


def test_one_process_at_a_time(place):
    with new_folder("out", overwrite=True) as folder:
        Path(folder, "config.json").touch()
        before = content()
        process = in_a_process("--overwrite")
        assert process.returncode == 2 and "Another process is writing 'out'" in process.stderr
        assert content() == before
    assert [path.name for path in Path("out").iterdir()] == ["config.json"]


@pytest.mark.parametrize("debug", [False, True])
def test_debug_shows_the_traceback(place, capsys, monkeypatch, debug):
    monkeypatch.setattr(cli, "model_card", lambda *args: {}["what nobody thought of"])
    before = content()
    assert convert("--overwrite", *["--debug"] * debug) == 2
    err = capsys.readouterr().err
    assert "lsg-convert: KeyError: 'what nobody thought of' (--debug shows where)" in err
    assert ("Traceback" in err) is debug and content() == before
