"""`--push_to_hub` and loading from the hub, against a small server on loopback that speaks its protocol."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from folders import old_embedder, write
from hub_server import TOKEN, HubServer, Repository
from repository import ROOT, TINY


pytestmark = pytest.mark.ecosystem

SOURCE = TINY
LOAD = """
import sys, torch
from transformers import AutoModel, AutoTokenizer
name, revision, token = sys.argv[1:]
options = {"revision": revision, "token": token or None}
tokenizer = AutoTokenizer.from_pretrained(name, **options)
model = AutoModel.from_pretrained(name, trust_remote_code=True, code_revision=revision, **options)
print(type(model).__name__, model.config.block_size, tokenizer.model_max_length)
print(float(model(**tokenizer("Paris", return_tensors="pt")).last_hidden_state.abs().sum()) > 0)
"""


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture
def run(hub, tmp_path):
    """A function that runs Python with the arguments, where `hub` is the hub and nothing has been fetched yet."""

    def run(*arguments, token=None, home="home"):
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS"))
        }
        environment |= {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path / home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        if token:
            environment["HF_TOKEN"] = token
        return subprocess.run(
            [sys.executable, *map(str, arguments)], env=environment, cwd=tmp_path, capture_output=True, text=True
        )

    return run


def convert(run, *options, source=SOURCE, **kwargs):
    return run("-m", "lsg_xlmr", "--initial_model", source, "--model_name", "converted", *options, **kwargs)


def load(run, name, revision="main", token="", **kwargs):
    return run("-c", LOAD, name, revision, token, **kwargs)


def assert_refused(result, message):
    """One line, the last of stderr after the progress bar's, and exit code 2."""
    assert result.returncode == 2
    assert re.match(f"lsg-convert: {message}", result.stderr.strip().splitlines()[-1]), result.stderr
    assert "Traceback" not in result.stderr


def test_pushed_and_loaded_by_revision(hub, run, tmp_path):
    first = convert(run, "--push_to_hub", "--token", TOKEN)
    assert first.returncode == 0, first.stderr
    repository = hub.repositories["someone/converted"]
    files = {
        path.relative_to(tmp_path / "converted").as_posix(): path.read_bytes()
        for path in (tmp_path / "converted").rglob("*")
        if path.is_file()
    }
    assert repository.commits[-1][1] == files
    assert "someone/converted" in files["README.md"].decode()
    old = repository.commits[-1][0]

    fields = ("--model_kwargs", "{'block_size': 64, 'sparse_block_size': 64}", "--overwrite")
    second = convert(run, *fields, "--push_to_hub", "someone/converted", token=TOKEN)
    assert second.returncode == 0, second.stderr
    for revision, block_size in (("main", 64), (old, 128)):
        loaded = load(run, "someone/converted", revision)
        assert loaded.stdout.split() == ["LSGXLMRobertaModel", str(block_size), "4096", "True"], loaded.stderr
    wrong = load(run, "someone/converted", "0" * 40)
    assert wrong.returncode != 0 and "0" * 40 in wrong.stderr


def test_private(hub, run):
    convert(run, token=TOKEN)
    pushed = run(
        "-c",
        "from huggingface_hub import HfApi; api = HfApi(); api.create_repo('someone/secret', private=True); "
        "api.upload_folder(repo_id='someone/secret', folder_path='converted')",
        token=TOKEN,
    )
    assert pushed.returncode == 0, pushed.stderr
    assert hub.repositories["someone/secret"].private
    refused = load(run, "someone/secret", home="other")
    assert refused.returncode != 0 and "someone/secret is not a" in refused.stderr
    loaded = load(run, "someone/secret", token=TOKEN, home="other")
    assert loaded.stdout.split()[0] == "LSGXLMRobertaModel", loaded.stderr
    # A source that is private: the converter's own token option.
    refused = convert(run, "--overwrite", source="someone/secret", home="third")
    assert_refused(
        refused, "'someone/secret' is neither a folder here nor a model the hub gives .a private one takes --token"
    )
    again = convert(
        run, "--overwrite", "--token", TOKEN, "--max_sequence_length", "1024", source="someone/secret", home="third"
    )
    assert again.returncode == 0 and "for 1024 tokens" in again.stdout, again.stderr


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_older_embedder_of_the_hub_is_converted_whole(hub, run, tmp_path):
    """What is carried is fetched, of the weights one form, and the rest is named without being fetched."""
    folder = old_embedder(tmp_path / "source", TINY)
    (folder / "0_Transformer" / "pytorch_model.bin").write_bytes(b"the same weights again")
    for name in ("optimizer.pt", "onnx/model.onnx", "handler.py", "tf_model.h5"):
        write(folder, name, "of no use here")
    write(folder, "LICENSE.md", "free")
    torch.save({"weight": torch.zeros(1, 128)}, folder / "sparse_linear.pt")
    hub.repositories["someone/old"] = Repository()
    hub.repositories["someone/old"].commit(files_of(folder))
    done = convert(run, source="someone/old", home="other")
    assert done.returncode == 0 and 'SentenceTransformer("converted"' in done.stdout, done.stderr
    told = " ".join(done.stderr.split())
    assert "onnx/, tf_model.h5 (other forms of the old weights" in told
    assert "handler.py (could run code" in told and "optimizer.pt (state and reports" in told
    converted = files_of(tmp_path / "converted")
    assert {"LICENSE.md", "sparse_linear.pt", "1_Pooling/config.json", "modules.json"} <= converted.keys()
    assert not [line for line in hub.requests if re.search("resolve.*(optimizer|onnx|handler|h5|pytorch_model)", line)]
    # Without the net, from the cache.
    hub.fails = "."
    again = convert(run, "--overwrite", source="someone/old", home="other")
    assert again.returncode == 0, again.stderr


def test_an_adapter_of_the_hub_names_its_model(hub, run):
    hub.repositories["someone/adapter"] = Repository()
    adapter = {"base_model_name_or_path": "someone/base", "peft_type": "LORA"}
    files = {"adapter_config.json": json.dumps(adapter).encode(), "adapter_model.safetensors": b""}
    hub.repositories["someone/adapter"].commit(files)
    refused = convert(run, source="someone/adapter")
    assert refused.returncode == 2 and "holds an adapter of 'someone/base'" in refused.stderr


def test_wrong_token_is_refused_before_the_work(hub, run, tmp_path):
    refused = convert(run, "--push_to_hub", token="hf_" + "b" * 34)
    assert_refused(refused, "Cannot push to 'converted'")
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize("fails", ["POST .*/commit/", "PUT /lfs/"])
def test_server_that_fails_in_the_middle(hub, run, tmp_path, fails):
    hub.fails = fails
    failed = convert(run, "--push_to_hub", token=TOKEN)
    assert_refused(failed, "converted is written, but not pushed to 'someone/converted'")
    assert len(hub.repositories["someone/converted"].commits) == 1
    assert (tmp_path / "converted" / "model.safetensors").is_file()
    hub.fails = None
    loaded = load(run, tmp_path / "converted")
    assert loaded.stdout.split()[0] == "LSGXLMRobertaModel", loaded.stderr


def test_name_that_is_not_there(hub, run):
    hub.repositories["someone/else"] = Repository()
    failed = convert(run, source="someone/nothing", token=TOKEN)
    assert_refused(failed, "'someone/nothing' is neither a folder here nor a model the hub gives")
