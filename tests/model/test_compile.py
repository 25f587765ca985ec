"""`torch.compile`: one graph for every head, forward and training, the same answers, and few compilations."""

import importlib.util
import sys

import pytest
import torch
from packaging import version
from repository import ROOT
from torch._dynamo.testing import CompileCounterWithBackend

from lsg_xlmr.conversion import ARCHITECTURES


pytestmark = pytest.mark.skipif(
    version.parse(torch.__version__) < version.parse("2.7"),
    reason="torch 2.6 compiles no transformers 5 model whole",
)

HEADS = {name: model_class for name, (_, model_class) in ARCHITECTURES.items()}


@pytest.fixture(autouse=True)
def forgotten():
    torch._dynamo.reset()


def compiled(model, backend="aot_eager", **options):
    counter = CompileCounterWithBackend(backend)
    return torch.compile(model, backend=counter, fullgraph=True, **options), counter


def batch(batch_size, length):
    """Text, padded on the right in the second row and on the left in the third, with a hole in the fourth."""
    input_ids = torch.randint(5, 99, (batch_size, length))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1:2, length // 2 :] = 0
    attention_mask[2:3, : length // 3] = 0
    attention_mask[3:4, length // 2 : length // 2 + 5] = 0
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def training_batch(name, length):
    inputs = batch(2, length)
    ids = inputs["input_ids"]
    if name.endswith("MultipleChoice"):
        inputs = {name: x[:, None].repeat(1, 2, 1) for name, x in inputs.items()}
    if name.endswith("QuestionAnswering"):
        return inputs | {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 4])}
    if name.endswith(("SequenceClassification", "MultipleChoice")):
        return inputs | {"labels": torch.tensor([0, 1])}
    return inputs | {} if name.endswith("Model") else inputs | {"labels": ids % 2 if "Token" in name else ids}


def gradients(model, function, inputs):
    model.zero_grad()
    outputs = function(**inputs)
    loss = (
        outputs["loss"] if "loss" in outputs else outputs.last_hidden_state[inputs["attention_mask"] != 0].sin().sum()
    )
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.compile
@pytest.mark.parametrize("name", HEADS)
def test_every_head_trains_in_one_graph(tiny_config, name):
    model = HEADS[name](tiny_config(num_hidden_layers=1)).train()
    function, counter = compiled(model)
    inputs = training_batch(name, 45)
    found = gradients(model, function, inputs)
    expected = gradients(model, model, inputs)
    assert counter.frame_count == 1 and found.keys() >= expected.keys()
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.compile
@pytest.mark.parametrize("sparsity_type", ["none", "norm", "pooling", "bos_pooling", "lsh", "stride", "block_stride"])
def test_every_sparsity_type_answers_as_without(tiny_config, sparsity_type):
    model = HEADS["LSGXLMRobertaModel"](tiny_config(sparsity_type=sparsity_type)).eval()
    function, _ = compiled(model)
    inputs = batch(4, 61)
    seen = inputs["attention_mask"] != 0
    with torch.no_grad():
        expected, found = (f(**inputs).last_hidden_state[seen] for f in (model, function))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.compile
@pytest.mark.parametrize("name", ["LSGXLMRobertaModel", "LSGXLMRobertaForCausalLM"])
def test_without_global_tokens(tiny_config, name):
    model = HEADS[name](tiny_config(num_global_tokens=0, is_decoder=name.endswith("CausalLM"))).train()
    function, counter = compiled(model)
    inputs = training_batch(name, 45) | {"use_cache": False}
    if "labels" in inputs:  # what padding itself answers is another in each implementation
        inputs["labels"] = inputs["labels"].masked_fill(inputs["attention_mask"] == 0, -100)
    found, expected = gradients(model, function, inputs), gradients(model, model, inputs)
    assert counter.frame_count == 1 and found.keys() >= expected.keys()
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.compile
@pytest.mark.parametrize("length", [11, 61])
def test_a_decoder_in_one_graph(tiny_config, length):
    model = HEADS["LSGXLMRobertaForCausalLM"](tiny_config(is_decoder=True)).eval()
    function, counter = compiled(model)
    ids = batch(4, length)["input_ids"]
    with torch.no_grad():
        expected, found = (f(ids, use_cache=False).logits for f in (model, function))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert counter.frame_count == 1


@pytest.mark.compile
def test_one_graph_holds_for_all_lengths_past_two_blocks(tiny_config):
    model = HEADS["LSGXLMRobertaModel"](tiny_config(num_hidden_layers=1)).eval()
    function, counter = compiled(model, "eager", dynamic=True)
    for length in (17, 18, 24, 40, 41, 127, 128):
        inputs = batch(4, length)
        seen = inputs["attention_mask"] != 0
        with torch.no_grad():
            expected, found = (f(**inputs).last_hidden_state[seen] for f in (model, function))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert counter.frame_count == 1
    with torch.no_grad():
        for length in (3, 8, 15, 16):
            function(**batch(4, length))
    assert counter.frame_count == 2


def test_dropout_drops_the_same_in_the_backward_pass(tiny_config):
    config = tiny_config(num_hidden_layers=1, attention_probs_dropout_prob=0.5)
    model = HEADS["LSGXLMRobertaModel"](config).train().double()
    function, _ = compiled(model)
    inputs = {"inputs_embeds": torch.randn(1, 33, config.hidden_size, dtype=torch.double, requires_grad=True)}

    def loss():
        torch.manual_seed(1)
        return function(**inputs).last_hidden_state.sin().sum()

    (gradient,) = torch.autograd.grad(loss(), inputs["inputs_embeds"])
    direction = torch.randn_like(gradient)
    step, base = 1e-6, inputs["inputs_embeds"]
    values = []
    for sign in (1, -1):
        inputs = {"inputs_embeds": (base + sign * step * direction).detach().requires_grad_()}
        values.append(loss().item())
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(float((gradient * direction).sum()), rel=1e-4)


@pytest.mark.compile
def test_the_compiled_graph_has_one_operator_a_layer(tiny_config):
    graphs = []
    model = HEADS["LSGXLMRobertaModel"](tiny_config()).eval()
    function = torch.compile(model, backend=lambda graph, _: graphs.append(graph) or graph, fullgraph=True)
    with torch.no_grad():
        function(**batch(2, 40))
    operators = [node for node in graphs[0].graph.nodes if "attention_compiled" in str(node.target)]
    assert len(graphs) == 1 and len(operators) == 2


@pytest.mark.compile
def test_an_exported_graph_has_standard_operators_only(tiny_config):
    model = HEADS["LSGXLMRobertaModel"](tiny_config()).eval()
    for strict in (False, True):
        program = torch.export.export(model, (), kwargs=batch(2, 40), strict=strict)
        targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        assert all(target.startswith(("aten.", "<built-in")) for target in targets), targets


@pytest.mark.compile
def test_every_copy_of_the_code_has_its_own_operators(tiny_config, tmp_path):
    models = []
    for package in ("first-copy", "second.copy", "second.copy"):
        for name in ("configuration_lsg", "modeling_lsg_xlm_roberta"):
            spec = importlib.util.spec_from_file_location(f"{package}.{name}", ROOT / f"{name}.py")
            module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        config = module.LSGConfig(**tiny_config(num_hidden_layers=1).to_dict())
        models.append(module.LSGXLMRobertaModel(config).eval())
    inputs = batch(2, 40)
    seen = inputs["attention_mask"] != 0
    for model in models:
        function, _ = compiled(model)
        with torch.no_grad():
            expected, found = (f(**inputs).last_hidden_state[seen] for f in (model, function))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.compile
@pytest.mark.parametrize("training", [False, True])
def test_inductor_answers_as_without(tiny_config, training):
    model = HEADS["LSGXLMRobertaForSequenceClassification"](tiny_config(num_hidden_layers=1)).train(training)
    function, _ = compiled(model, "inductor")
    inputs = training_batch("LSGXLMRobertaForSequenceClassification", 45)
    if training:
        found, expected = (gradients(model, f, inputs) for f in (function, model))
    else:
        with torch.no_grad():
            found, expected = ({"logits": f(**inputs).logits} for f in (function, model))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-4)
