"""
Graphs that people make by hand, by `torch.export`, `torch.jit.trace` and `torch.onnx.export`: made within two blocks
they give the model's own answers at all lengths, or are an error.
"""

import io
import os
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from packaging import version
from repository import ROOT, TINY
from torch.export import Dim

from lsg_xlmr.cli import main
from lsg_xlmr.conversion import ARCHITECTURES


HEADS = {
    name.removeprefix("LSGXLMRoberta").removeprefix("For"): model_class
    for name, (_, model_class) in ARCHITECTURES.items()
}
TYPES = ["none", "norm", "pooling", "bos_pooling", "lsh", "stride", "block_stride"]
# With blocks of 8: within one and two of them, at their ends, past them, and the maximum.
LENGTHS = (1, 2, 7, 8, 9, 15, 16, 17, 24, 25, 40, 41, 100, 127, 128)
DECODER = {"is_decoder": True, "use_cache": False}
NEEDS_EXPORT = pytest.mark.skipif(
    version.parse(torch.__version__) < version.parse("2.7"), reason="torch 2.6 says not that it is exporting"
)


class Answer(torch.nn.Module):
    """A model's first output, of ids and a mask in this order, as tracers take them."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask=None):
        return self.model(input_ids, attention_mask, return_dict=False)[0]


@pytest.fixture
def make(tiny_config):
    def make(head="Model", num_hidden_layers=1, **fields):
        return Answer(HEADS[head](tiny_config(num_hidden_layers=num_hidden_layers, **fields))).eval()

    return make


def batch(batch_size, length):
    """Ids and a mask; padded on the right in the second row, on the left in the third."""
    input_ids = torch.randint(5, 99, (batch_size, length))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1:2, length // 2 + 1 :] = 0
    attention_mask[2:3, : length // 3] = 0
    return input_ids, attention_mask


@torch.no_grad()
def assert_same_answers(graph, model, lengths=LENGTHS, masked=True):
    model.model.config.adaptive = True  # without it the model itself refuses most lengths
    for length in lengths:
        for batch_size in (1, 3):
            inputs = input_ids, attention_mask = batch(batch_size, length)
            if not masked:
                inputs, attention_mask = (input_ids,), torch.ones_like(input_ids)
            expected, found = model(*inputs), graph(*inputs)
            assert found.shape == expected.shape
            if expected.shape[:2] == input_ids.shape:  # the rows of padding carry no meaning
                expected, found = (x[attention_mask != 0] for x in (expected, found))
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0, msg=lambda text: f"{length}: {text}")


@torch.no_grad()
def exported(model, inputs, strict=False, dims=(Dim.DYNAMIC, Dim.DYNAMIC)):
    sizes = [dict(enumerate(dims)) for _ in inputs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers' own code, as it is traced
        return torch.export.export(model, inputs, dynamic_shapes=sizes, strict=strict).module()


@NEEDS_EXPORT
@pytest.mark.parametrize("length", [12, pytest.param(41, marks=pytest.mark.slow)])
def test_exported_at_one_length(make, length):
    model = make(num_global_tokens=2)
    assert_same_answers(exported(model, batch(2, length)), model)


@NEEDS_EXPORT
@pytest.mark.compile
@pytest.mark.parametrize(
    "fields",
    [
        *({"sparsity_type": kind} for kind in TYPES),
        {"sparsity_type": "lsh", "sparsity_factor": 8},
        {"sparsity_factor": 1, "num_hidden_layers": 2},
        {"block_size": 1, "sparsity_factor": 1},
        {"sparse_block_size": 32, "adaptive": False},
        {"mask_first_token": True, "num_global_tokens": 3},
        {"num_global_tokens": 0},
        {"num_global_tokens": 0, "attn_implementation": "eager"},
        {"num_global_tokens": 0, "head": "CausalLM", **DECODER},
        {"pool_with_global": False, "attn_implementation": "eager"},
        {"head": "CausalLM", **DECODER},
        {"head": "CausalLM", "sparsity_type": "bos_pooling", "attn_implementation": "eager", **DECODER},
        {"head": "MaskedLM", "sparse_prediction": True},
        *({"head": head} for head in HEADS if head not in ("Model", "MultipleChoice")),
    ],
    ids=str,
)
def test_exported_of_every_kind(make, fields):
    model = make(**fields)
    assert_same_answers(exported(model, batch(2, 12)), model)


@NEEDS_EXPORT
@pytest.mark.compile
@pytest.mark.parametrize(
    "fields", [{"sparsity_type": "lsh"}, {"head": "MaskedLM", "sparse_prediction": True}], ids=str
)
def test_exported_from_bytecode(make, fields):
    model = make(**fields)
    assert_same_answers(exported(model, batch(2, 12), strict=True), model)


@NEEDS_EXPORT
@pytest.mark.compile
def test_exported_without_a_mask(make):
    model = make()
    assert_same_answers(exported(model, batch(2, 12)[:1]), model, masked=False)


@NEEDS_EXPORT
@pytest.mark.compile
def test_exported_multiple_choice_embeddings_and_types(tiny_config):
    sizes = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    model = HEADS["MultipleChoice"](tiny_config(num_hidden_layers=1, type_vocab_size=2)).eval()
    choices = {name: x[:, None].repeat(1, 2, 1) for name, x in zip(("input_ids", "attention_mask"), batch(2, 12))}
    of_choices = dict.fromkeys(choices, {0: Dim.DYNAMIC, 2: Dim.DYNAMIC})
    encoder = HEADS["Model"](tiny_config(num_hidden_layers=1, type_vocab_size=2)).eval()

    def with_states(length):
        types = torch.randint(2, (2, length))
        return {"inputs_embeds": torch.randn(2, length, encoder.config.hidden_size), "token_type_ids": types}

    with torch.no_grad():
        graph = torch.export.export(model, (), choices, dynamic_shapes=of_choices, strict=False).module()
        of_states = torch.export.export(
            encoder, (), with_states(12), dynamic_shapes=dict.fromkeys(with_states(12), sizes), strict=False
        ).module()
        for length in (9, 16, 17, 41, 128):
            choices = {
                name: x[:, None].repeat(1, 2, 1) for name, x in zip(("input_ids", "attention_mask"), batch(3, length))
            }
            torch.testing.assert_close(graph(**choices).logits, model(**choices).logits, atol=1e-5, rtol=0)
            states = with_states(length)
            expected, found = (f(**states).last_hidden_state for f in (encoder, of_states))
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@NEEDS_EXPORT
def test_exported_for_short_texts_it_is_full_attention_and_refuses_longer_ones(make):
    model = make()
    graph = exported(model, batch(2, 12), dims=(Dim("batch"), Dim("length", max=16)))
    assert_same_answers(graph, model, [length for length in LENGTHS if length <= 16])
    with pytest.raises(Exception, match="16"):
        graph(*batch(1, 17))


@NEEDS_EXPORT
@pytest.mark.slow
def test_export_leaves_the_model_as_it_was(make):
    """Random projections that an export would draw are no numbers, and must not be found again."""
    inputs = batch(3, 41)
    with torch.no_grad():
        torch.manual_seed(3)
        expected = make(sparsity_type="lsh", lsh_seed=7)(*inputs)
        torch.manual_seed(3)
        model = make(sparsity_type="lsh", lsh_seed=8)
        exported(model, inputs)
        model.model.config.lsh_seed = 7
        torch.testing.assert_close(model(*inputs)[inputs[1] != 0], expected[inputs[1] != 0], atol=1e-5, rtol=0)


@torch.no_grad()
def traced(model, inputs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that the lengths that are compared may be others
        return torch.jit.trace(model, inputs)


@pytest.mark.parametrize(
    "length", [pytest.param(5, marks=pytest.mark.slow), 12, pytest.param(41, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("kind", TYPES)
def test_traced(make, kind, length):
    model = make(sparsity_type=kind)
    assert_same_answers(traced(model, batch(2, length)), model)


@pytest.mark.parametrize(
    "fields",
    [
        {"head": "MaskedLM", "sparse_prediction": True},
        {"head": "SequenceClassification", "num_hidden_layers": 2},
        {"head": "CausalLM", **DECODER},
        {"attn_implementation": "eager", "adaptive": False},
        {"mask_first_token": True, "num_global_tokens": 3, "sparsity_factor": 1},
        {"num_global_tokens": 0},
    ],
    ids=str,
)
def test_traced_of_every_kind(make, fields):
    model = make(**fields)
    assert_same_answers(traced(model, batch(2, 12)), model)


@pytest.mark.filterwarnings("ignore")
def test_traced_with_its_outputs_by_name(make):
    model = make().model
    input_ids = batch(2, 12)[0]
    with torch.no_grad():
        graph = torch.jit.trace(model, input_ids, strict=False)
        for length in (16, 17, 100):
            input_ids = batch(2, length)[0]
            expected = model(input_ids).last_hidden_state
            torch.testing.assert_close(graph(input_ids)["last_hidden_state"], expected, atol=1e-5, rtol=0)


def test_a_longer_text_than_the_positions_is_an_error_in_a_traced_graph(make):
    graph = traced(make(), batch(2, 12))
    with pytest.raises(Exception, match="out of (range|bounds)"):
        graph(*batch(1, 129))


def onnx_graph(model, inputs, **options):
    """What ONNX Runtime makes of `model`."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    names, file = ["input_ids", "attention_mask"], io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model, inputs, None if options["dynamo"] else file, input_names=names, output_names=["answer"], **options
        )
        if program is not None:
            program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])

    def graph(*inputs):
        return torch.from_numpy(session.run(None, {name: x.numpy() for name, x in zip(names, inputs)})[0])

    return graph


AXES = dict.fromkeys(("input_ids", "attention_mask"), {0: "batch", 1: "length"})


@NEEDS_EXPORT
@pytest.mark.onnx
@pytest.mark.parametrize(
    "fields",
    [
        *({"sparsity_type": kind} for kind in TYPES),
        {"num_global_tokens": 3, "num_hidden_layers": 2, "mask_first_token": True},
        {"num_global_tokens": 0, "num_hidden_layers": 2},
        {"num_global_tokens": 0, "head": "CausalLM", **DECODER},
        {"head": "MaskedLM", "sparse_prediction": True},
        {"head": "SequenceClassification", "adaptive": False},
        {"head": "CausalLM", **DECODER},
        {"attn_implementation": "eager"},
    ],
    ids=str,
)
@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx_by_hand(make, fields, dynamo):
    model = make(**fields)
    if not dynamo and fields.get("sparsity_type") in ("bos_pooling", "lsh"):
        with pytest.raises(ValueError, match="lsg-convert --model_name FOLDER --onnx"):
            onnx_graph(model, batch(2, 12), dynamo=dynamo, dynamic_axes=AXES)
        return
    assert_same_answers(onnx_graph(model, batch(2, 12), dynamo=dynamo, dynamic_axes=AXES), model)


@NEEDS_EXPORT
@pytest.mark.onnx
@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx_of_one_length_refuses_others(make, dynamo):
    model = make()
    graph, inputs = onnx_graph(model, batch(2, 12), dynamo=dynamo), batch(2, 12)
    seen = inputs[1] != 0
    with torch.no_grad():
        torch.testing.assert_close(graph(*inputs)[seen], model(*inputs)[seen], atol=1e-5, rtol=0)
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        graph(*batch(2, 17))


@NEEDS_EXPORT
@pytest.mark.compile
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
def test_the_example_compiled_ahead_of_time(tmp_path):
    folder, package = tmp_path / "m", tmp_path / "model.pt2"
    assert main(["--initial_model", str(TINY), "--model_name", str(folder), "--max_sequence_length", "1024"]) == 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, ROOT / "examples" / "aot_inductor.py", folder, package]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("differs by") == 2, done.stderr[-3000:]
    compiled, model = torch._inductor.aoti_load_package(str(package)), HEADS["Model"].from_pretrained(folder).eval()
    for length in (1, 9, 128, 256, 257, 384, 1000, 1024):
        for batch_size in (1, 3):
            input_ids, attention_mask = batch(batch_size, length)
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
            with torch.no_grad():
                expected, found = (f(**inputs)[0][attention_mask != 0] for f in (model, compiled))
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
