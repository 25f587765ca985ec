"""Every file of a source is made anew, carried because it fits, or named: nothing is left behind in silence."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from folders import SMALL, embedder, modules, write
from safetensors.torch import save_file

from lsg_xlmr.cli import main
from lsg_xlmr.conversion.contents import NO_CONTENT, kind_of


HIDDEN_SIZE, POSITIONS = 16, 514
# What each test's folder holds from the start, and every result.
MADE = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
MADE |= {"configuration_lsg.py", "modeling_lsg_xlm_roberta.py"}


@pytest.fixture
def source(tmp_path):
    return Path(shutil.copytree(SMALL, tmp_path / "source"))


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """A function that converts `source` and gives the files of the result, and the warning of what is left behind."""
    monkeypatch.chdir(tmp_path)

    def run(*options, source="source", code=0):
        capsys.readouterr()
        found = main([f"--initial_model={source}", "--model_name=out", "--max_sequence_length=600", *options])
        err = capsys.readouterr().err.replace("\r", "\n")
        assert found == code, err
        warnings = [line for line in err.splitlines() if line.startswith("Left behind of ")]
        assert len(warnings) <= 1
        files = {path.relative_to("out").as_posix() for path in Path("out").rglob("*") if path.is_file()}
        return files, warnings[0] if warnings else err.strip().splitlines()[-1] if code else ""

    return run


CARRIED = [
    *("LICENSE", "LICENSE.txt", "LICENCE.md", "LICENSE-MODEL", "NOTICE", "NOTICE.txt", "COPYING", "CITATION.cff"),
    *("THIRD_PARTY_NOTICES.txt", "MODEL_LICENSE.pdf", "USE_POLICY.md", "LICENSES/MIT.txt"),
    *("special_tokens_map.json", "sentencepiece.bpe.model", "vocab.txt", "additional_chat_templates/tool.jinja"),
]


@pytest.mark.parametrize("name", CARRIED)
def test_what_still_fits_is_carried_as_it_is(source, convert, name):
    if not (source / name).is_file():
        write(source, name, "as it is")
    files, warning = convert()
    assert name in files and not warning
    assert Path("out", name).read_bytes() == (source / name).read_bytes()


def linear(out_features):
    return torch.nn.Linear(HIDDEN_SIZE, out_features).state_dict()


@pytest.mark.parametrize("name", ["sparse_linear.pt", "my_head.pth", "head.bin", "table.safetensors", "heads/a.pt"])
def test_tensors_of_the_hidden_size_are_carried(source, convert, name):
    write(source, name)
    save = save_file if name.endswith(".safetensors") else torch.save
    save(linear(1), source / name)
    files, warning = convert()
    assert name in files and not warning
    assert Path("out", name).read_bytes() == (source / name).read_bytes()
    assert main(["--verify", "out"]) == 0


NAMED = {
    "optimizer.pt": "state and reports of a training",
    "trainer_state.json": "state and reports of a training",
    "training_args.bin": "state and reports of a training",
    "rng_state_0.pth": "state and reports of a training",
    "eval_results.json": "state and reports of a training",
    "onnx/model.onnx": "other forms of the old weights; --onnx makes",
    "openvino/openvino_model.bin": "other forms of the old weights",
    "tf_model.h5": "other forms of the old weights",
    "flax_model.msgpack": "other forms of the old weights",
    "model.fp16.safetensors": "other forms of the old weights",
    "model-Q4.gguf": "other forms of the old weights",
    "imatrix.dat": "other forms of the old weights",
    "handler.py": "could run code",
    "LICENSE.py": "could run code",
    "lib.so": "could run code",
    "1_Pooling/helper.py": "could run code",
    "head.pkl": "could run code",
    "adapter_config.json": "an adapter, which is not applied",
    "generation_config.json": "settings of text generation",
    "preprocessor_config.json": "not known to fit",
    "logo.png": "not known to fit",
    "1_Pooling/config.json": "not known to fit",
    "deep/er/notes.txt": "not known to fit",
}


@pytest.mark.parametrize("name, meaning", NAMED.items())
def test_what_is_left_behind_is_named(source, convert, name, meaning):
    write(source, name, "{}")
    files, warning = convert()
    assert files == MADE | {"special_tokens_map.json", "sentencepiece.bpe.model"}
    shown = name if "/" not in name else f"{name.split('/')[0]}/"
    assert warning.startswith(f"Left behind of source: {shown} (") and meaning in warning


@pytest.mark.parametrize(
    "content, meaning",
    [
        (torch.nn.Linear(HIDDEN_SIZE, 1), "pickles of more than tensors, which could run code"),
        ({"weight": torch.zeros(POSITIONS, HIDDEN_SIZE)}, "depend on the number of positions"),
        (torch.zeros(POSITIONS - 2, 3), "depend on the number of positions"),
        ({"roberta.encoder.layer.0.x": torch.zeros(HIDDEN_SIZE)}, "other forms of the old weights"),
        ({"state": {}, "param_groups": [1]}, "state and reports of a training"),
    ],
)
def test_tensors_that_do_not_fit_are_named(source, convert, content, meaning):
    torch.save(content, source / "head.pt")
    files, warning = convert()
    assert "head.pt" not in files and warning.startswith("Left behind of source: head.pt (") and meaning in warning


def test_settings_that_name_code_are_named(source, convert):
    config = json.loads((source / "config.json").read_text())
    write(source, "config.json", {**config, "custom_pipelines": {"a": {"impl": "mine.Pipeline"}}})
    settings = json.loads((source / "tokenizer_config.json").read_text())
    write(source, "tokenizer_config.json", {**settings, "auto_map": {"AutoTokenizer": ["mine.Tokenizer", None]}})
    write(source, "chat_template.json", {"auto_map": {"AutoProcessor": "mine.Processor"}})
    files, warning = convert()
    assert "chat_template.json" not in files
    assert "chat_template.json, custom_pipelines of config.json (settings that name code from elsewhere" in warning
    assert main(["--verify", "out"]) == 0


def test_modules_of_their_own_code_are_left_and_named(tmp_path, convert):
    folder = embedder(tmp_path / "source")
    own = modules("", "1_Pooling")
    own[0]["type"] = "custom_st.Transformer"
    write(folder, "modules.json", own)
    write(folder, "custom_st.py", "raise SystemExit")
    files, warning = convert()
    assert not {"modules.json", "custom_st.py", "1_Pooling/config.json"} & files
    assert "config_sentence_transformers.json, modules.json (settings that name code" in warning
    assert "custom_st.py (could run code" in warning and "1_Pooling/ (not known to fit" in warning
    assert main(["--verify", "out"]) == 0


def test_a_words_table_is_no_settings(source, convert):
    """A word of a vocabulary may be called as a field that names code."""
    write(source, "vocab.json", {"types": 5, "auto_map": 6, "max_length": 7})
    files, warning = convert()
    assert not warning and json.loads(Path("out/vocab.json").read_text())["max_length"] == 7
    assert main(["--verify", "out"]) == 0


@pytest.mark.parametrize(
    "name",
    [
        ".git/HEAD",
        ".gitattributes",
        ".cache/huggingface/download/config.json.metadata",
        "__pycache__/a.pyc",
        ".DS_Store",
    ],
)
def test_what_is_no_content_of_a_checkpoint(source, convert, name):
    write(source, name)
    files, warning = convert()
    assert kind_of(name) == NO_CONTENT and name not in files and not warning


def test_links_out_of_the_folder_are_refused_or_named(source, convert, tmp_path):
    write(tmp_path, "outside/secret.txt")
    (source / "notes.txt").symlink_to(tmp_path / "outside" / "secret.txt")
    (source / "more").symlink_to(tmp_path / "outside")
    files, warning = convert()
    assert not {"notes.txt", "more/secret.txt"} & files
    assert "more (links to folders, which are not followed)" in warning and "notes.txt (not known to fit" in warning
    shutil.rmtree("out")
    (source / "LICENSE").symlink_to(tmp_path / "outside" / "secret.txt")
    _, line = convert(code=2)
    assert "source/LICENSE' is a link out of the folder" in line and not Path("out").exists()
    (source / "LICENSE").unlink()
    torch.save(linear(1), tmp_path / "outside" / "head.pt")
    (source / "head.pt").symlink_to(tmp_path / "outside" / "head.pt")
    _, line = convert(code=2)
    assert "source/head.pt' is a link out of the folder" in line


def test_a_folder_of_links_into_the_hubs_cache(tmp_path, convert):
    """As `hf download --local-dir` once made them, and as people make them by hand."""
    blobs = tmp_path / "hub" / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    (tmp_path / "source").mkdir()
    for number, path in enumerate(SMALL.iterdir()):
        shutil.copy(path, blobs / f"{number:064x}")
        (tmp_path / "source" / path.name).symlink_to(blobs / f"{number:064x}")
    files, warning = convert()
    assert files == MADE | {"special_tokens_map.json", "sentencepiece.bpe.model"} and not warning
    assert not [path for path in Path("out").iterdir() if path.is_symlink()]


def test_what_a_conversion_has_carried_is_replaced(source, convert):
    """Again over the result, whose files are in the source, or of a kind that conversions write."""
    torch.save(linear(1), source / "head.pt")
    for name in ("NOTICE", "chat_template.jinja", "THIRD_PARTY_NOTICES.md"):
        write(source, name, "as it is")
    before, _ = convert()
    write("out", ".cache/huggingface/download/config.json.metadata")
    write("out", ".cache/huggingface/.gitignore", "*")
    files, _ = convert("--overwrite")
    assert files == before >= {"head.pt", "NOTICE", "chat_template.jinja", "THIRD_PARTY_NOTICES.md"}
    write("out", "head.pt", "trained since")
    _, line = convert("--overwrite", code=2)
    assert "'out' holds head.pt, which would be lost" in line
    assert Path("out/head.pt").read_text() == "trained since"


def test_a_second_conversion_leaves_no_code_of_its_own(source, convert):
    """The two files that travel with a checkpoint are made anew, and no code from elsewhere."""
    convert()
    shutil.move("out", "first")
    files, warning = convert("--resize_lsg", source="first")
    assert files == MADE | {"special_tokens_map.json", "sentencepiece.bpe.model"} and not warning
