"""ONNX files: the model's answers from one file for all lengths and paddings, by ONNX Runtime and what uses it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from family_folders import write_model, write_wordpiece
from folders import without_mask
from onnx_answers import MAX_LENGTH, assert_answers_of_model
from repository import DATA, ROOT, TINY
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from lsg_xlmr import LSGConverter, cli, export_onnx, late_chunks
from lsg_xlmr.arguments import parse_arguments
from lsg_xlmr.conversion import ARCHITECTURES
from lsg_xlmr.onnx import export


onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
if not hasattr(torch.onnx, "ops"):
    pytest.skip("ONNX files need torch 2.8", allow_module_level=True)

SOURCE = DATA / "parity_conversion" / "source"
# With the fixture whose folder has it; those in float16 take as long to make as all others together.
every_file = pytest.mark.parametrize(
    "folder, file",
    [
        ("masked_lm", "model.onnx"),
        ("masked_lm", "model_quantized.onnx"),
        pytest.param("in_float16", "model_fp16.onnx", marks=pytest.mark.onnx),
    ],
)
BLOCKS = {"block_size": 8, "sparse_block_size": 8}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A function that makes the folder of an LSG checkpoint for 70 tokens with ONNX files in it."""

    def make(architecture="LSGXLMRobertaModel", options=MappingProxyType({}), **fields):
        folder = tmp_path_factory.mktemp("checkpoint")
        converter = LSGConverter(max_sequence_length=MAX_LENGTH)
        model, tokenizer = converter.convert_from_pretrained(SOURCE, architecture, **{**BLOCKS, **fields})
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        export_onnx(folder, **options)
        return folder

    return make


@pytest.fixture(scope="module")
def masked_lm(checkpoint):
    return checkpoint("LSGXLMRobertaForMaskedLM", {"int8": True})


@pytest.fixture(scope="module")
def in_float16(checkpoint):
    return checkpoint("LSGXLMRobertaForMaskedLM", {"float16": True})


@pytest.fixture
def copy(masked_lm, tmp_path):
    """A copy of the masked LM's folder, without ONNX files, that a test may change."""
    return Path(shutil.copytree(masked_lm, tmp_path / "copy", ignore=lambda *_: ["onnx"]))


def open_file(folder, file="model.onnx"):
    return onnxruntime.InferenceSession(folder / "onnx" / file, providers=["CPUExecutionProvider"])


def assert_same_answers(folder):
    session = open_file(folder)
    assert_answers_of_model(
        folder, lambda inputs: [session.run(None, {name: x.numpy() for name, x in batch.items()}) for batch in inputs]
    )


@pytest.mark.onnx
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_head_answers_as_the_model(checkpoint, architecture):
    assert_same_answers(checkpoint(architecture))


@pytest.mark.onnx
@pytest.mark.parametrize("fields", [{"num_global_tokens": 0}, {"pool_with_global": False}], ids=str)
@pytest.mark.parametrize("architecture", ["LSGXLMRobertaForSequenceClassification", "LSGXLMRobertaForMultipleChoice"])
def test_heads_that_pool_on_the_first_token(checkpoint, architecture, fields):
    assert_same_answers(checkpoint(architecture, **fields))


@pytest.mark.onnx
@pytest.mark.parametrize(
    "fields",
    [
        {"sparsity_type": "none", "num_global_tokens": 3},
        {"sparsity_type": "norm", "sparse_block_size": 4, "mask_first_token": True},
        {"sparsity_type": "norm", "sparsity_factor": 1, "pool_with_global": False},
        {"sparsity_type": "pooling", "sparsity_factor": 4, "sparse_block_size": 3},
        {"sparsity_type": "bos_pooling", "num_global_tokens": 20},
        {"sparsity_type": "lsh"},
        {"sparsity_type": "lsh", "sparsity_factor": 8},
        {"sparsity_type": "stride", "sparsity_factor": 8},
        {"sparsity_type": "block_stride"},
        {"sparsity_type": "norm", "num_global_tokens": 0},
        {"sparsity_type": "bos_pooling", "num_global_tokens": 0},
    ],
    ids=str,
)
def test_every_sparsity_type_answers_as_the_model(checkpoint, fields):
    assert_same_answers(checkpoint(**fields))


def test_a_masked_lm_gives_the_logits_of_the_masks(masked_lm):
    mask = AutoTokenizer.from_pretrained(masked_lm).mask_token_id
    input_ids = np.array([[0, mask, 7, mask, 2], [0, 8, 7, mask, 2]])
    session = open_file(masked_lm)
    (logits,) = session.run(None, {"input_ids": input_ids, "attention_mask": np.ones_like(input_ids)})
    assert logits.shape[0] == 3
    alone = session.run(None, {"input_ids": input_ids[1:], "attention_mask": np.ones_like(input_ids[1:])})[0]
    np.testing.assert_allclose(logits[2:], alone, atol=1e-5)


@pytest.mark.onnx
@pytest.mark.parametrize("has_mask", [True, False])
def test_a_masked_lm_gives_all_logits_where_asked_for(checkpoint, tmp_path, has_mask):
    folder = checkpoint("LSGXLMRobertaForMaskedLM")
    if not has_mask:
        without_mask(folder)
    export_onnx(folder, overwrite=True, logits="all")
    assert_same_answers(folder)


def test_all_logits_are_of_a_masked_lm(copy):
    with_field(copy, architectures=["LSGXLMRobertaForTokenClassification"])
    with pytest.raises(
        ValueError, match="'all' is for a masked LM, and this is a LSGXLMRobertaForTokenClassification"
    ):
        export_onnx(copy, logits="all")
    with pytest.raises(ValueError, match="logits must be 'masks' or 'all', got 'none'"):
        export_onnx(copy, logits="none")
    assert not (copy / "onnx").exists()


@pytest.mark.onnx
def test_float16_answers_are_near(in_float16):
    mask = AutoTokenizer.from_pretrained(in_float16).mask_token_id
    input_ids = np.tile([0, 9, 8, 7, mask], (2, 12))
    inputs = {"input_ids": input_ids, "attention_mask": np.ones_like(input_ids)}
    exact, near = (open_file(in_float16, file).run(None, inputs)[0] for file in ("model.onnx", "model_fp16.onnx"))
    assert near.dtype == np.float32 and not np.array_equal(exact, near)
    cosine = (exact * near).sum(-1) / np.linalg.norm(exact, axis=-1) / np.linalg.norm(near, axis=-1)
    assert cosine.min() > 0.9999
    weights = onnx.load(in_float16 / "onnx" / "model_fp16.onnx").graph.initializer
    assert sum(weight.data_type == onnx.TensorProto.FLOAT16 and len(weight.dims) == 2 for weight in weights) > 12


@every_file
def test_a_file_is_as_the_standard_has_it(request, folder, file):
    model = onnx.load(request.getfixturevalue(folder) / "onnx" / file)
    onnx.checker.check_model(model)
    (opset,) = model.opset_import
    assert opset.version == (22 if file == "model_fp16.onnx" else 20)
    assert model.ir_version == onnx.helper.find_min_ir_version_for([opset])


def test_int8_answers_are_near(masked_lm):
    mask = AutoTokenizer.from_pretrained(masked_lm).mask_token_id
    input_ids = np.tile([0, 9, 8, 7, mask], (2, 12))
    inputs = {"input_ids": input_ids, "attention_mask": np.ones_like(input_ids)}
    exact, near = (open_file(masked_lm, file).run(None, inputs)[0] for file in ("model.onnx", "model_quantized.onnx"))
    cosine = (exact * near).sum(-1) / np.linalg.norm(exact, axis=-1) / np.linalg.norm(near, axis=-1)
    assert cosine.min() > 0.98 and not np.array_equal(exact, near)
    weights = onnx.load(masked_lm / "onnx" / "model_quantized.onnx").graph.initializer
    assert sum(weight.data_type == onnx.TensorProto.INT8 and len(weight.dims) == 2 for weight in weights) > 12


@pytest.mark.parametrize(
    "length, mask_shape, message",
    [
        (MAX_LENGTH + 1, None, "input_ids_may_have_70_tokens_at_most"),
        (9, (2, 8), "attention_mask_must_have_the_shape_of_input_ids"),
        (9, (1, 9), "attention_mask_must_have_the_shape_of_input_ids"),
        (9, (2, 1, 9, 9), "attention_mask"),
        (9, (), "attention_mask"),
    ],
)
@every_file
def test_what_onnxruntime_says_of_wrong_inputs_names_the_rule(request, folder, file, length, mask_shape, message):
    inputs = {"input_ids": np.full((2, length), 7), "attention_mask": np.ones(mask_shape or (2, length), np.int64)}
    if mask_shape == ():
        del inputs["attention_mask"]
    with pytest.raises(Exception, match=message):
        open_file(request.getfixturevalue(folder), file).run(None, inputs)


def test_layers_share_the_mask_and_standard_operators_are_all_there_is(masked_lm):
    graph = onnx.load(masked_lm / "onnx" / "model.onnx").graph
    operators = [node.op_type for node in graph.node]
    num_layers = json.loads((masked_lm / "config.json").read_text())["num_hidden_layers"]
    assert operators.count("If") == num_layers
    assert operators.count("Where") == operators.count("LessOrEqual") == 2  # of the mask; of the length
    assert {node.domain for node in graph.node} == {""}


@pytest.mark.onnx
def test_the_answers_decide_whether_a_file_is_written(copy, monkeypatch):
    monkeypatch.setattr(export, "MAX_DIFFERENCE", -1.0)
    before = sorted(copy.rglob("*"))
    with pytest.raises(ValueError, match="differ from the model's"):
        export_onnx(copy)
    assert sorted(copy.rglob("*")) == before


@pytest.mark.onnx
def test_files_are_replaced_only_when_told(copy):
    export_onnx(copy)
    with pytest.raises(ValueError, match="not empty"):
        export_onnx(copy)
    export_onnx(copy, overwrite=True, int8=True)
    card = (copy / "README.md").read_text()
    assert card.count("## ONNX") == 1 and "model_quantized.onnx" in card


@pytest.mark.onnx
def test_large_weights_go_to_a_file_of_their_own(copy, monkeypatch):
    monkeypatch.setattr(export, "MAX_BYTES", 0)
    export_onnx(copy, int8=True, opset_version=18)
    files = {path.name for path in (copy / "onnx").iterdir()}
    assert files >= {"model.onnx", "model.onnx_data", "model_quantized.onnx"}
    assert onnx.load(copy / "onnx" / "model.onnx", load_external_data=False).opset_import[0].version == 18
    assert_same_answers(copy)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda folder: folder / "missing", "There is no folder"),
        (lambda folder: SOURCE, "without LSG attention"),
        (lambda folder: with_field(folder, is_decoder=True), "decoder"),
        (lambda folder: with_field(folder, architectures=["XLMRobertaForOther"]), "XLMRobertaForOther"),
    ],
)
def test_what_cannot_be_exported_is_named(copy, make, message):
    with pytest.raises(ValueError, match=message):
        export_onnx(make(copy))
    assert not (copy / "onnx").exists()


def with_field(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    return folder


@pytest.mark.parametrize("opset_version", [17, "20", None])
def test_old_operators_are_refused(copy, opset_version):
    with pytest.raises(ValueError, match="opset_version must be an int of at least 18"):
        export_onnx(copy, opset_version=opset_version)


def test_a_missing_package_gives_the_line_that_installs_it(copy, monkeypatch, capsys):
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ImportError, match="need onnxscript.*pip install onnx onnxscript onnxruntime"):
        export_onnx(copy)
    assert cli.main(["--initial_model", str(SOURCE), "--model_name", "out", "--onnx"]) == 2
    assert "pip install onnx" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], pytest.param(["float16"], marks=pytest.mark.onnx)], ids=str)
def test_the_command_converts_and_exports(tmp_path, monkeypatch, capsys, more):
    monkeypatch.chdir(tmp_path)
    options = ["--model_name", "out", "--max_sequence_length", "600", "--model_kwargs", str(BLOCKS)]
    assert cli.main(["--initial_model", str(SOURCE), *options, "--onnx", "int8", *more, "--run_test"]) == 0
    out = capsys.readouterr().out
    assert "by model.onnx" in out and "by model_quantized.onnx" in out
    assert "8-bit weights; cosine to float32 0.9" in out
    card = Path("out/README.md").read_text()
    assert "## Usage" in card and "The cosine of its answers to the float32 model's is 0.9" in card
    for is_told in ("by model_fp16.onnx" in out, "in float16; cosine to float32" in out, "model_fp16.onnx" in card):
        assert is_told == bool(more)
    answers = open_file(Path("out")).get_outputs()
    assert [answer.name for answer in answers] == ["logits"]


@pytest.mark.onnx
def test_a_tokenizer_without_a_mask(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(SOURCE, "source")
    without_mask("source")
    fields = f"--model_kwargs={BLOCKS}"
    command = ["--initial_model=source", "--model_name=out", "--random_global_init", "--onnx", fields]
    command += [f"--max_sequence_length={MAX_LENGTH}"]
    assert cli.main(command) == 2 and not Path("out").exists()
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "The ONNX file of a masked LM answers where the masks are" in line
    assert cli.main([*command, "--architecture=XLMRobertaForTokenClassification"]) == 0
    assert_same_answers(tmp_path / "out")


def test_a_file_of_options_may_list_the_types(tmp_path):
    path = tmp_path / "options.json"
    for given, expected in (
        (["int8", "float16"], ["float32", "int8", "float16"]),
        (True, ["float32"] * 2),
        (False, None),
    ):
        path.write_text(json.dumps({"initial_model": "in", "model_name": "out", "onnx": given}))
        options = parse_arguments([str(path)])
        assert options.onnx == expected


@pytest.mark.onnx
def test_the_command_exports_what_is_there(copy, capsys):
    weights = (copy / "model.safetensors").read_bytes()
    assert cli.main(["--model_name", str(copy), "--onnx"]) == 0
    assert "onnx/model.onnx gives PyTorch's answers" in capsys.readouterr().out
    assert (copy / "model.safetensors").read_bytes() == weights
    assert [path.name for path in (copy / "onnx").iterdir()] == ["model.onnx"]
    assert not [path for path in copy.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--model_name", "out"], "required: --initial_model"),
        (
            ["--model_name", "out", "--initial_model", "in", "--logits", "all"],
            "--logits is of ONNX files: it needs --onnx",
        ),
        (["--model_name", "out", "--onnx", "int8", "--logits", "some"], "invalid choice: 'some'"),
        (["--model_name", "out", "--onnx", "int4"], "none of float32, int8 and float16"),
        (
            ["--model_name", "out", "--onnx", "--max_sequence_length", "9"],
            "--max_sequence_length does not go with --onnx",
        ),
    ],
)
def test_wrong_command_lines(argv, message, capsys):
    with pytest.raises(SystemExit):
        cli.main(argv)
    assert message in capsys.readouterr().err


def test_the_example_needs_neither_torch_nor_transformers(masked_lm):
    code = "import sys, runpy; sys.modules.update(torch=None, transformers=None); runpy.run_path(sys.argv.pop(1))"
    texts = ["Paris is the <mask> of France. <mask>", "One <mask>"]
    command = [sys.executable, "-c", code, ROOT / "examples" / "serve_onnx.py", masked_lm, "model.onnx", *texts]
    words = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert len(words.strip().split(" ")) >= 3


@pytest.mark.onnx
def test_the_example_gives_late_chunks(checkpoint):
    folder = checkpoint()
    texts = ["Paris is the capital of France.", "The Seine flows. " * 2, "", "Rome"]
    script = ROOT / "examples" / "serve_onnx.py"
    command = [sys.executable, "-c", "import sys, runpy; sys.modules.update(torch=None, transformers=None)\n"]
    command[-1] += "import numpy; numpy.set_printoptions(9, 10**9, linewidth=10**9); runpy.run_path(sys.argv.pop(1))"
    command += [str(script), str(folder), "model.onnx", *texts, "--window"]
    lines = subprocess.run([*command, "9"], capture_output=True, text=True, check=True).stdout.splitlines()
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    found = late_chunks(model, texts, AutoTokenizer.from_pretrained(folder), window=9)
    expected = [(span, vector) for vectors, spans in found for span, vector in zip(spans, vectors, strict=True)]
    assert len(expected) > len(texts)
    for line, (span, vector) in zip(lines, expected, strict=True):
        start, end, numbers = line.split(" ", 2)
        assert (int(start), int(end)) == span
        answer = torch.tensor([float(number) for number in numbers.strip("[]").split()])
        torch.testing.assert_close(answer, vector, atol=1e-4, rtol=0)
    done = subprocess.run([*command, "0"], capture_output=True, text=True)
    assert done.returncode == 2 and "--window must be 1 or more, got 0" in done.stderr


def test_the_example_gives_no_chunks_of_a_masked_lm(masked_lm):
    command = [sys.executable, ROOT / "examples" / "serve_onnx.py", masked_lm, "model.onnx", "Rome", "--window", "9"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "--window is for files of last_hidden_state, and model.onnx gives" in done.stderr


# Run by another Python: the embeddings and scores of long texts from folders opened as ONNX.
OPEN_ELSEWHERE = """
import sys
import numpy as np
from sentence_transformers import CrossEncoder, SentenceTransformer
embedder, reranker, out = sys.argv[1:]
texts = ["Paris is the capital of France.", "The Seine flows through France. " * 380, "Berlin " * 40]
file = {"file_name": "onnx/model.onnx"}
embeddings = SentenceTransformer(embedder, backend="onnx", model_kwargs=file).encode(texts, batch_size=3)
reranker = CrossEncoder(reranker, backend="onnx", model_kwargs=file)
scores = reranker.predict([(texts[0], text) for text in texts], batch_size=3)
np.savez(out, embeddings=embeddings, scores=scores)
"""


@pytest.mark.onnx
@pytest.mark.skipif(
    "SENTENCE_TRANSFORMERS_PYTHON" not in os.environ,
    reason="SENTENCE_TRANSFORMERS_PYTHON names no Python that has sentence-transformers[onnx]",
)
def test_sentence_transformers_opens_the_files_without_trust(tmp_path):
    tiny = TINY
    embedder, reranker = tmp_path / "embedder", tmp_path / "reranker"
    source = Path(shutil.copytree(tiny, tmp_path / "source"))
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    modules += [{"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    (source / "modules.json").write_text(json.dumps(modules))
    (source / "1_Pooling").mkdir()
    hidden_size = json.loads((tiny / "config.json").read_text())["hidden_size"]
    pooling = {"word_embedding_dimension": hidden_size, "pooling_mode_mean_tokens": True}
    (source / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    for folder, architecture in ((embedder, "Model"), (reranker, "ForSequenceClassification")):
        options = ["--model_name", str(folder), "--architecture", f"LSGXLMRoberta{architecture}", "--onnx"]
        num_labels = ["--model_kwargs", "{'num_labels': 1}"] if folder == reranker else []
        assert cli.main(["--initial_model", str(source), *options, *num_labels]) == 0
    (reranker / "modules.json").unlink()

    command = [os.environ["SENTENCE_TRANSFORMERS_PYTHON"], "-c", OPEN_ELSEWHERE, embedder, reranker, tmp_path / "out"]
    subprocess.run(command, check=True)
    found = np.load(tmp_path / "out.npz")

    tokenizer = AutoTokenizer.from_pretrained(embedder)
    texts = ["Paris is the capital of France.", "The Seine flows through France. " * 380, "Berlin " * 40]
    padded = {"padding": True, "truncation": True, "return_tensors": "pt"}
    inputs = tokenizer(texts, **padded)
    assert inputs["input_ids"].shape[1] > 3000
    with torch.no_grad():
        states = AutoModel.from_pretrained(embedder, trust_remote_code=True)(**inputs).last_hidden_state
        weights = inputs["attention_mask"][..., None]
        embeddings = (states * weights).sum(1) / weights.sum(1)
        model = AutoModelForSequenceClassification.from_pretrained(reranker, trust_remote_code=True)
        scores = model(**tokenizer(texts[:1] * 3, texts, **padded)).logits.sigmoid()[:, 0]
    torch.testing.assert_close(torch.from_numpy(found["embeddings"]), embeddings, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.from_numpy(found["scores"]), scores, atol=1e-4, rtol=0)


@pytest.mark.onnx
@pytest.mark.parametrize("architecture", ["BertForSequenceClassification", "BertModel", "BertForMaskedLM"])
def test_a_checkpoint_that_was_bert_takes_the_types_of_tokens(tmp_path, architecture):
    source, target = tmp_path / "source", tmp_path / "target"
    write_model(source, architecture, vocab_size=700)
    write_wordpiece(source)
    options = ["--max_sequence_length", str(MAX_LENGTH), "--model_kwargs", str(BLOCKS), "--onnx"]
    assert cli.main(["--initial_model", str(source), "--model_name", str(target), *options]) == 0
    session = open_file(target)
    assert [x.name for x in session.get_inputs()] == ["input_ids", "attention_mask", "token_type_ids"]
    tokenizer = AutoTokenizer.from_pretrained(target)
    pairs = ["Paris is in [MASK]. " * 4, "Rome"], ["The Seine flows [MASK].", "Italy [MASK]"]
    inputs = tokenizer(*pairs, padding=True, return_tensors="pt")
    assert inputs.token_type_ids.max() == 1
    name = architecture.replace("Bert", "LSGXLMRoberta")
    model = ARCHITECTURES[name][1].from_pretrained(target).eval()
    with torch.no_grad():
        expected = model(**inputs)[0]
    if architecture == "BertForMaskedLM":
        expected = expected[inputs.input_ids == tokenizer.mask_token_id]
    outputs = session.run(None, {x.name: inputs[x.name].numpy() for x in session.get_inputs()})[0]
    if architecture == "BertModel":
        expected, outputs = (x[inputs.attention_mask.numpy() == 1] for x in (expected.numpy(), outputs))
    np.testing.assert_allclose(outputs, np.asarray(expected), rtol=0, atol=1e-4)
