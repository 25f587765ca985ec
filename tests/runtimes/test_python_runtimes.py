"""ONNX files in ONNX Runtime, OpenVINO and fastembed, the oldest promised and the newest: the model's answers."""

import json
import subprocess

import numpy as np
import pytest
import torch
from onnx_answers import LENGTHS, MAX_LENGTH, assert_answers_of_model, batches
from repository import DATA, ROOT
from transformers import AutoModel, AutoTokenizer

from lsg_xlmr import LSGConverter, export_onnx
from lsg_xlmr.conversion import ARCHITECTURES


pytestmark = pytest.mark.runtimes

SOURCE = DATA / "parity_conversion" / "source"
BLOCK_SIZE = 8


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A function that makes the folder of an LSG checkpoint for 70 tokens with `onnx/model.onnx` in it, once."""
    made = {}

    def make(architecture="LSGXLMRobertaModel", opset_version=20, **fields):
        key = architecture, opset_version, *fields.items()
        if key not in made:
            folder = made[key] = tmp_path_factory.mktemp("checkpoint")
            converter = LSGConverter(max_sequence_length=MAX_LENGTH)
            fields = {"block_size": BLOCK_SIZE, "sparse_block_size": BLOCK_SIZE, **fields}
            model, tokenizer = converter.convert_from_pretrained(SOURCE, architecture, **fields)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            export_onnx(folder, opset_version=opset_version)
        return made[key]

    return make


def answers_elsewhere(python, runtime, file, inputs, work):
    """What `runtime` gives, run by `python`, for each of `inputs`: lists of arrays, in the file's order."""
    named = {f"{i}/{name}": x.numpy() for i, batch in enumerate(inputs) for name, x in batch.items()}
    np.savez(work / "inputs.npz", **named)
    script = ROOT / "benchmarks" / "serving" / "by_python.py"
    command = [python, script, runtime, file, work / "inputs.npz", work / "outputs.npz", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = np.load(work / "outputs.npz")
    names = [name for name in sorted(found) if not name.endswith("seconds")]
    return [[found[name] for name in names if name.startswith(f"{i}/")] for i in range(len(inputs))]


def assert_same_answers(folder, environment, runtime, work, lengths=LENGTHS):
    python, file = environment / "bin" / "python", folder / "onnx" / "model.onnx"
    assert_answers_of_model(folder, lambda inputs: answers_elsewhere(python, runtime, file, inputs, work), lengths)


EVERYWHERE = [(version, runtime) for runtime in ("onnxruntime", "openvino") for version in ("oldest", "newest")]


@pytest.mark.parametrize("version, runtime", EVERYWHERE)
@pytest.mark.parametrize("num_global_tokens", [0, 16])
def test_every_length(checkpoint, runtimes, tmp_path, num_global_tokens, version, runtime):
    folder = checkpoint(num_global_tokens=num_global_tokens)
    assert_same_answers(folder, runtimes / version, runtime, tmp_path, range(1, MAX_LENGTH + 1))


FIELDS = [
    {"sparsity_type": "none", "num_global_tokens": 16},
    {"sparsity_type": "norm", "sparse_block_size": 4, "mask_first_token": True},
    {"sparsity_type": "pooling", "sparsity_factor": 4, "sparse_block_size": 3},
    {"sparsity_type": "bos_pooling", "num_global_tokens": 16},
    {"sparsity_type": "lsh", "num_global_tokens": 0},
    {"sparsity_type": "stride", "sparsity_factor": 8, "num_global_tokens": 16},
    {"sparsity_type": "block_stride", "pool_with_global": False},
]


@pytest.mark.parametrize("version, runtime", EVERYWHERE)
@pytest.mark.parametrize(
    "architecture, fields",
    zip(ARCHITECTURES, FIELDS, strict=True),
    ids=lambda x: x.get("sparsity_type") if isinstance(x, dict) else x.removeprefix("LSGXLMRoberta"),
)
def test_every_head_and_sparsity_type(checkpoint, runtimes, tmp_path, architecture, fields, version, runtime):
    assert_same_answers(checkpoint(architecture, **fields), runtimes / version, runtime, tmp_path)


def test_an_older_onnxruntime_takes_opset_18(checkpoint, runtimes, tmp_path):
    assert_same_answers(checkpoint(opset_version=18), runtimes / "opset_18", "onnxruntime", tmp_path)


@pytest.mark.parametrize("version", ["oldest", "newest"])
def test_a_text_over_the_maximum_has_no_answer(checkpoint, runtimes, tmp_path, version):
    python, file = runtimes / version / "bin" / "python", checkpoint() / "onnx" / "model.onnx"
    inputs = list(batches(7, [MAX_LENGTH + 1]))
    with pytest.raises(AssertionError, match="input_ids_may_have_70_tokens_at_most"):
        answers_elsewhere(python, "onnxruntime", file, inputs, tmp_path)
    for (states,) in answers_elsewhere(python, "openvino", file, inputs, tmp_path):
        assert np.isnan(states).all()


@pytest.mark.parametrize("version", ["oldest", "newest"])
def test_fastembed(site, runtimes, version):
    folder = site / "embedder"
    texts = ["Paris is the capital of France.", "The Seine flows through France. " * 220, "Berlin " * 5000]
    command = [runtimes / version / "bin" / "python", ROOT / "benchmarks" / "serving" / "by_fastembed.py"]
    vectors = {}
    for file in ("onnx/model.onnx", "onnx/model_quantized.onnx"):
        question = json.dumps({"folder": str(folder), "file": file, "dim": 128, "texts": texts})
        done = subprocess.run(command, input=question, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        vectors[file] = torch.tensor(json.loads(done.stdout)["answers"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    for i, text in enumerate(texts):
        inputs = tokenizer(text, truncation=True, return_tensors="pt")
        with torch.no_grad():
            vector = torch.nn.functional.normalize(model(**inputs).last_hidden_state[0].mean(0), dim=0)
        torch.testing.assert_close(vectors["onnx/model.onnx"][i], vector, atol=1e-5, rtol=0)
        assert vectors["onnx/model_quantized.onnx"][i] @ vector > 0.99
