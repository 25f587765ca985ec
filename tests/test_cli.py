"""The command line: what it writes, that it loads anywhere, what it says, and that a failure leaves no trace."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from folders import embedder, without_mask, write
from huggingface_hub import metadata_load
from repository import DATA, ROOT
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForMaskedLM, AutoTokenizer

from lsg_xlmr import __version__, cli


SOURCE = DATA / "parity_conversion" / "source"
BLOCKS = "{'block_size': 16, 'sparse_block_size': 16}"
FILES = [
    "README.md",
    "config.json",
    "configuration_lsg.py",
    "model.safetensors",
    "modeling_lsg_xlm_roberta.py",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
]

# Run where lsg_xlmr cannot be imported: answers of a checkpoint, and of what is loaded from what it saved.
LOAD_ELSEWHERE = """
import sys
sys.modules["lsg_xlmr"] = None
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
answers = []
for folder, copy in (("out", "again"), ("again", None)):
    model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer("Paris is the <mask> of France. " * 30, return_tensors="pt")
    with torch.no_grad():
        answers.append(model(**inputs).logits)
    if copy:
        model.save_pretrained(copy)
        tokenizer.save_pretrained(copy)
torch.save(answers, "answers.pt")
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """A function that runs the command line in an empty folder and gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*argv, source=SOURCE, **options):
        given = {"initial_model": source, "model_name": "out", "max_sequence_length": 600, "model_kwargs": BLOCKS}
        if not argv or argv[0].startswith("--"):
            given = {name: value for name, value in {**given, **options}.items() if value is not None}
            argv = [*(f"--{name}={value}" for name, value in given.items()), *argv]
        capsys.readouterr()
        try:
            code = cli.main(list(argv))
        except SystemExit as exit:
            code = exit.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def source(tmp_path):
    """A copy of the source checkpoint that a test may change."""
    return Path(shutil.copytree(SOURCE, tmp_path / "source"))


def python_blocks(card):
    return re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)


def test_result(run):
    code, out, err = run()
    assert code == 0
    assert sorted(path.name for path in Path("out").iterdir()) == FILES
    assert re.match(
        r"Wrote out: LSGXLMRobertaForMaskedLM for 600 tokens, 9 files, \d\.\d MB, in \d+\.\d s. Load it with\n\n", out
    )
    assert "|" in err and "Traceback" not in err
    assert Path("out/sentencepiece.bpe.model").read_bytes() == (SOURCE / "sentencepiece.bpe.model").read_bytes()
    config = json.loads(Path("out/config.json").read_text())
    assert config["block_size"] == 16 and config["max_position_embeddings"] == 602
    assert config["architectures"] == ["LSGXLMRobertaForMaskedLM"]
    assert config["auto_map"]["AutoModelForMaskedLM"] == "modeling_lsg_xlm_roberta.LSGXLMRobertaForMaskedLM"
    assert str(SOURCE) not in "".join(path.read_text() for path in Path("out").glob("*.[jm][sd]*"))
    # The file itself, which transformers 5.0 reads without its normalization of the text where it is an XLM-RoBERTa's.
    tokenizer, before = AutoTokenizer.from_pretrained("out"), Tokenizer.from_file(str(SOURCE / "tokenizer.json"))
    assert tokenizer.model_max_length == 600
    # By the name that transformers 4 knows too, with which optimum opens ONNX files.
    settings = json.loads(Path("out/tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    text = "Paris is the capital of France, ½ ｆｕｌｌ ﬁ. Париж — столица Франции."
    assert tokenizer(text).input_ids == before.encode(text).ids
    scope = {}
    exec(out.split("\n\n", 1)[1], scope)
    assert type(scope["model"]).__name__ == "LSGXLMRobertaForMaskedLM"


@pytest.mark.parametrize(
    "architecture, tag",
    [
        ("XLMRobertaModel", "feature-extraction"),
        ("XLMRobertaForMaskedLM", "fill-mask"),
        ("LSGXLMRobertaForCausalLM", "text-generation"),
        ("LSGXLMRobertaForMultipleChoice", "multiple-choice"),
        ("LSGXLMRobertaForQuestionAnswering", "question-answering"),
        ("LSGXLMRobertaForSequenceClassification", "text-classification"),
        ("LSGXLMRobertaForTokenClassification", "token-classification"),
    ],
)
def test_model_card_snippets_run(run, source, architecture, tag):
    (source / "README.md").write_text("---\nlicense: mit\nlanguage: [fr, ru]\ntags: [a]\n---\n# The source\n")
    assert run(source=source, architecture=architecture)[0] == 0
    card = Path("out/README.md")
    header = metadata_load(card)
    assert header["pipeline_tag"] == tag and header["library_name"] == "transformers"
    assert header["license"] == "mit" and header["language"] == ["fr", "ru"] and "lsg" in header["tags"]
    assert "| `block_size` | `16` |" in card.read_text()
    blocks = python_blocks(card)
    assert len(blocks) >= 3
    for block in blocks:
        exec(block, {})


@pytest.mark.parametrize("header", ["", "---\n[: broken\n---\n"])
def test_source_card_that_says_nothing(run, source, header):
    (source / "README.md").write_text(f"{header}# The source\n")
    assert run(source=source)[0] == 0
    assert "license" not in metadata_load("out/README.md")


def test_loads_where_the_package_is_not(tmp_path, stored_weights):
    """The script of a clone from another folder, and a process that sees only what was written."""
    options = {"initial_model": str(SOURCE), "model_name": "out", "model_kwargs": BLOCKS}
    (tmp_path / "options.json").write_text(json.dumps(options))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HF_MODULES_CACHE"] = str(tmp_path / "modules")
    script = [sys.executable, str(ROOT / "convert_checkpoint.py"), "options.json"]
    subprocess.run(script, cwd=tmp_path, env=environment, check=True, capture_output=True)
    subprocess.run(
        [sys.executable, "-I", "-c", LOAD_ELSEWHERE], cwd=tmp_path, env=environment, check=True, capture_output=True
    )
    model, tokenizer = cli.LSGConverter().convert_from_pretrained(SOURCE, block_size=16, sparse_block_size=16)
    inputs = tokenizer("Paris is the <mask> of France. " * 30, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits
    answers = torch.load(tmp_path / "answers.pt")
    torch.testing.assert_close(answers, [expected] * 2, rtol=0, atol=1e-5)
    weights = [stored_weights(tmp_path / name) for name in ("out", "again")]
    state_dict = model.state_dict()
    torch.testing.assert_close(weights, [{name: state_dict[name] for name in weights[0]}] * 2, rtol=0, atol=0)
    assert sorted(set(FILES) - {path.name for path in (tmp_path / "again").iterdir()}) == [
        "README.md",
        "sentencepiece.bpe.model",
        "special_tokens_map.json",
    ]


def test_options_from_a_json_file(run, tmp_path):
    options = {
        "initial_model": str(SOURCE),
        "model_name": "out",
        "max_sequence_length": 700,
        "random_global_init": True,
        "resize_lsg": False,
        "architecture": None,
        "model_kwargs": {"block_size": 32, "mask_first_token": True},
        "push_to_hub": False,
    }
    Path("options.json").write_text(json.dumps(options))
    assert run("options.json")[0] == 0
    config = json.loads(Path("out/config.json").read_text())
    assert (config["max_position_embeddings"], config["block_size"], config["mask_first_token"]) == (702, 32, True)


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "cannot be read"),
        ("[]", "one JSON object"),
        ('{"initial_model": "a"}', "--model_name"),
        ('{"initial_model": "a", "model_name": "b", "blok_size": 3}', "--blok_size"),
        ('{"initial_model": "a", "model_name": "b", "max_sequence_length": "long"}', "invalid int value: 'long'"),
        ('{"initial_model": "a", "model_name": "b", "max_sequence_length": 4096.5}', "invalid int value: '4096.5'"),
        ('{"initial_model": "a", "model_name": "b", "resize_lsg": 3}', "--resize_lsg"),
        ('{"initial_model": "a", "model_name": "b", "model_kwargs": [1]}', "--model_kwargs"),
        ('{"initial_model": "a", "model_name": "b", "model_name": "c"}', "'model_name' stands in it twice"),
        ('{"a": ' * 30000, "cannot be read"),
    ],
)
def test_wrong_json_files(run, text, words):
    Path("options.json").write_text(text)
    code, out, err = run("options.json")
    assert code == 2 and not out and words in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "text", ["{'mask_first_token': True}", "{'mask_first_token': true}", '{"mask_first_token": true}']
)
def test_model_kwargs_in_python_and_in_json(run, text):
    assert run(model_kwargs=text)[0] == 0
    assert json.loads(Path("out/config.json").read_text())["mask_first_token"] is True


@pytest.mark.parametrize(
    "options, words",
    [
        ({"source": "/nowhere/at/all"}, "no folder '/nowhere/at/all'"),
        ({"source": "nobody/nothing"}, "nobody/nothing"),
        ({"source": "options.txt"}, "no folder 'options.txt'"),
        ({"source": "empty"}, "no config.json"),
        ({"source": "bert"}, "'bert'"),
        ({"source": "corrupt"}, "cannot be read"),
        ({"model_name": "full"}, "--overwrite"),
        ({"model_name": "options.txt"}, "is a file"),
        ({"source": "corrupt", "model_name": "corrupt", "overwrite": True}, "name a new folder"),
        ({"model_name": ".", "overwrite": True}, "name a new folder"),
        ({"model_name": "full", "overwrite": True}, "'full' holds kept.txt, which would be lost"),
        ({"model_name": "bert", "overwrite": True}, "'bert' holds no checkpoint"),
        ({"source": "corrupt", "model_name": "corrupt/new"}, "is in the source 'corrupt'"),
        ({"source": "corrupt", "model_name": "link/new"}, "is in the source 'corrupt'"),
        ({"source": "corrupt", "model_name": "link", "overwrite": True}, "name a new folder"),
        ({"source": ""}, "--initial_model is empty"),
        ({"model_name": ""}, "--model_name is empty"),
        ({"max_sequence_length": 2}, "at least 3"),
        ({"max_sequence_length": 10**11}, "at most 16777216"),
        ({"seed": 10**23}, "`seed` must be an int of at least 0 and at most"),
        ({"max_sequence_length": "many"}, "invalid int value"),
        ({"architecture": "XLMRobertaForNothing"}, "XLMRobertaForNothing"),
        ({"model_kwargs": "{'block_size': 0}"}, "block_size"),
        ({"model_kwargs": "block_size=3"}, "is no dict"),
        ({"model_kwargs": "{1: 2}"}, "is no dict"),
        ({"model_kwargs": "{'a':" * 30000}, "is no dict"),
        ({"model_kwargs": "{'is_stock': True}"}, "LSGConfig has no field 'is_stock'"),
        ({"model_kwargs": "{'max_sequence_length': 9}"}, "LSGConfig has no field 'max_sequence_length'"),
        ({"model_kwargs": "{'token': 'x', 'revision': 'y'}"}, "LSGConfig has no field 'revision', 'token'"),
        ({"model_kwargs": "{'to_dict': 1}"}, "LSGConfig has no field 'to_dict'"),
        ({"dtype": "int8"}, "int8"),
        ({"model_name": None}, "--model_name"),
        ({"model_nam": "x"}, "--model_nam"),
    ],
)
def test_errors_are_one_line_and_leave_no_trace(run, tmp_path, options, words):
    for name in ("full", "empty", "bert", "corrupt"):
        Path(name).mkdir()
    Path("options.txt").write_text("a file")
    Path("full/kept.txt").write_text("kept")
    Path("bert/config.json").write_text('{"model_type": "bert"}')
    shutil.copytree(SOURCE, "corrupt", dirs_exist_ok=True)
    Path("link").symlink_to("corrupt")
    Path("corrupt/model.safetensors").write_bytes((SOURCE / "model.safetensors").read_bytes()[:1000])
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    code, out, err = run(**options)
    assert code == 2 and not out
    message = err.rsplit("\r", 1)[-1].strip()  # the progress bar goes before it
    assert message.startswith("lsg-convert: ") and words in message and "\n" not in message
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_overwrite_replaces_only_upon_success(run, source):
    shutil.copytree(SOURCE, "out")
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    code, _, err = run("--overwrite", model_kwargs="{'block_size': 0}")
    assert code == 2 and "block_size" in err
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before
    assert run("--overwrite")[0] == 0
    assert sorted(path.name for path in Path("out").iterdir()) == FILES
    assert sorted(path.name for path in Path().iterdir()) == ["out", "source"]


def test_failure_while_writing_leaves_the_target_alone(run, monkeypatch):
    shutil.copytree(SOURCE, "out")
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}

    def no_space(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(cli, "model_card", no_space)
    code, _, err = run("--overwrite")
    assert code == 2 and "No space left on device" in err
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before
    assert [str(path) for path in Path().iterdir()] == ["out"]


def test_missing_parents_are_made(run):
    assert run(model_name="a/b/out")[0] == 0
    assert sorted(path.name for path in Path("a/b/out").iterdir()) == FILES
    assert run(model_name="c/d", model_kwargs="{'block_size': 0}")[0] == 2
    assert not Path("c").exists()


def test_dtype_and_seed(run):
    assert run(model_name="half", dtype="bfloat16")[0] == 0
    assert {weight.dtype for weight in load_file("half/model.safetensors").values()} == {torch.bfloat16}
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        assert run("--random_global_init", model_name=name, seed=seed)[0] == 0
    one, again, two = (load_file(f"{name}/model.safetensors") for name in ("one", "again", "two"))
    torch.testing.assert_close(one, again, rtol=0, atol=1e-5)  # matrix products follow the draw
    global_tokens = "roberta.embeddings.global_embeddings.weight"
    assert (one[global_tokens] - two[global_tokens]).abs().max() > 0.01


def test_sentence_transformers_folder(run, tmp_path):
    source = embedder(tmp_path / "embedder")
    code, out, err = run(source=source, architecture="XLMRobertaModel")
    assert code == 0 and "to be trained" not in err  # the pooler, which no module reads
    assert out.endswith('SentenceTransformer\n\nmodel = SentenceTransformer("out", trust_remote_code=True)\n')
    assert json.loads(Path("out/modules.json").read_text()) == json.loads((source / "modules.json").read_text())
    settings = json.loads(Path("out/sentence_bert_config.json").read_text())
    assert settings == {"max_seq_length": 600, "do_lower_case": False}
    for name in ("1_Pooling/config.json", "config_sentence_transformers.json"):
        assert json.loads(Path("out", name).read_text()) == json.loads((source / name).read_text())
    assert Path("out/2_Normalize").is_dir()
    assert metadata_load("out/README.md")["library_name"] == "sentence-transformers"
    assert metadata_load("out/README.md")["pipeline_tag"] == "sentence-similarity"


def test_the_card_of_an_embedder_shows_its_own_vectors(run, tmp_path):
    assert run(source=embedder(tmp_path / "embedder"), architecture="XLMRobertaModel")[0] == 0
    card = Path("out/README.md").read_text()
    assert "last_hidden_state" not in card and "must be trained" not in card and "AutoModel" not in card
    assert card.count('SentenceTransformer("out", trust_remote_code=True)') == 2
    assert "`query` ('query: '), `document` ('passage: ')" in card and 'prompt_name="query"' in card
    assert 'config_kwargs={\n        "num_global_tokens": 16,' in card and "Pooling, Normalize" in card


@pytest.mark.parametrize(
    "name, tag, shown",
    [
        ("SparseEncoder", "feature-extraction", 'model.encode(["This'),
        ("CrossEncoder", "fill-mask", 'model.predict([("What is this?", "This'),
        ("MultiVectorEncoder", "feature-extraction", 'model.encode(["This'),
        ("Unheard", "sentence-similarity", 'SentenceTransformer("out"'),
        (["Unheard"], "sentence-similarity", 'SentenceTransformer("out"'),
    ],
)
def test_the_card_of_other_classes_of_sentence_transformers(run, tmp_path, name, tag, shown):
    source = embedder(tmp_path / "embedder")
    write(source, "config_sentence_transformers.json", {"model_type": name, "prompts": None})
    assert run(source=source)[0] == 0
    card = Path("out/README.md").read_text()
    assert metadata_load("out/README.md")["pipeline_tag"] == tag and shown in card
    assert isinstance(name, list) or name == "Unheard" or f'{name}("out", trust_remote_code=True)' in card


def test_another_class_than_the_embedders_shows_itself(run, tmp_path):
    source = embedder(tmp_path / "embedder")
    code, out, err = run(source=source, architecture="XLMRobertaForSequenceClassification")
    assert code == 0 and "AutoModelForSequenceClassification" in out and "to be trained" in err
    assert metadata_load("out/README.md")["library_name"] == "transformers"


def test_a_tokenizer_without_a_mask(run, source):
    without_mask(source)
    assert AutoTokenizer.from_pretrained(source).mask_token is None
    code, _, err = run(source=source)
    assert code == 2 and "or draw them by random_global_init" in err
    assert run("--random_global_init", source=source)[0] == 0
    card = Path("out/README.md").read_text()
    assert "None" not in card
    for block in python_blocks(Path("out/README.md")):
        exec(block, {})


def test_run_test(run):
    code, out, err = run("--run_test", model_kwargs=None)
    lines = out.split("\n\n")[0].splitlines()
    assert code == 0 and len(lines) == 3
    assert re.match(r"ok     AutoModelForMaskedLM +\d+ tokens .* s   600 tokens .* s$", lines[0])
    assert re.match(r"ok     Paris is the <mask> of France\.  '.*' 0\.\d+ before, 0\.\d+ after.* differ by ", lines[1])
    assert lines[2].startswith("Wrote out: ")


def test_run_test_finds_another_answer(run, monkeypatch):
    """A conversion that forgets the words answers at random; the result stays, and is not pushed."""
    from_pretrained = AutoModelForMaskedLM.from_pretrained

    def forgetful(name_or_path, **kwargs):
        result = from_pretrained(name_or_path, **kwargs)
        if name_or_path == "out":
            torch.nn.init.normal_(result.get_input_embeddings().weight, std=5.0)
        return result

    monkeypatch.setattr(AutoModelForMaskedLM, "from_pretrained", forgetful)
    monkeypatch.setattr(cli, "_full_name", lambda options: "somebody/out")
    monkeypatch.setattr(cli, "_push", lambda *args: pytest.fail("pushed"))
    code, out, err = run("--run_test", "--push_to_hub", model_kwargs=None)
    assert code == 1 and "FAILED Paris is the" in out and "Wrote out: " in out
    assert "lsg-convert: the test failed" in err
    assert Path("out/model.safetensors").is_file()


def test_run_test_finds_a_head_that_fails(run, monkeypatch):
    monkeypatch.setattr(AutoModelForMaskedLM, "from_pretrained", lambda *args, **kwargs: 1 / 0)
    code, out, _ = run("--run_test", model_kwargs=None)
    assert code == 1 and "FAILED AutoModelForMaskedLM                failed: division by zero" in out


# Hides what an installation tells of this package, as where there is none.
NOT_INSTALLED = """
import importlib.metadata
from_name = importlib.metadata.Distribution.from_name
def hidden(name):
    if name.replace("_", "-").lower() == "lsg-xlmr":
        raise importlib.metadata.PackageNotFoundError(name)
    return from_name(name)
importlib.metadata.Distribution.from_name = hidden
"""


def test_verify_in_a_clone_where_nothing_is_installed(run, tmp_path):
    assert run()[0] == 0
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "lsg_xlmr", clone / "lsg_xlmr", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "convert_checkpoint.py", clone)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NOT_INSTALLED)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    asked = [sys.executable, "-c", "from importlib.metadata import version; version('lsg-xlmr')"]
    asked = subprocess.run(asked, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert "PackageNotFoundError" in asked.stderr
    command = [sys.executable, str(clone / "convert_checkpoint.py"), "--verify", "out"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f": that of lsg-xlmr {__version__}, sha256 ") == 2


def test_module_runs_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lsg_xlmr", "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("lsg_xlmr", run_name="__main__")
    help = capsys.readouterr().out
    assert caught.value.code == 0 and help.startswith("usage: lsg-convert") and "--max_sequence_length" in help
