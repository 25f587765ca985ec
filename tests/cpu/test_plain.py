"""What is not known to be the same in pieces is called once a layer, with the whole, on the caller's thread."""

import threading
import time
import types
import warnings

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, prune

from lsg_xlmr import LSGXLMRobertaForCausalLM, LSGXLMRobertaModel
from lsg_xlmr.cpu import threads as own_threads
from lsg_xlmr.cpu.plain import is_plain
from lsg_xlmr.model.encoder import LSGLayer


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(own_threads, "POSITIONS", 5)
    monkeypatch.setattr(own_threads, "POSITIONS_SHARED", 7)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model(tiny_config):
    return LSGXLMRobertaModel(tiny_config()).eval()


def answers(model, ids):
    """By one thread and by four, twice each."""
    found = []
    for num_threads in (1, 4, 1, 4):
        torch.set_num_threads(num_threads)
        with torch.no_grad():
            found.append(model(ids).last_hidden_state)
    return found


def replace_linears(model, make):
    """Put `make(linear)` in the place of every linear layer of `model`'s encoder."""
    for module in list(model.encoder.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, make(child))
    return model


class Scaled(nn.Linear):
    """Rounds by the largest of all that it is given, as dynamically quantized layers do, and notes its calls."""

    def forward(self, x):
        self.calls.append((tuple(x.shape[:-1]), threading.get_ident()))
        scale = x.abs().max() / 3
        return super().forward((x / scale).round() * scale)

    @classmethod
    def of(cls, linear):
        scaled = cls(linear.in_features, linear.out_features)
        scaled.load_state_dict(linear.state_dict())
        scaled.calls = []
        return scaled


class PackedAtFirst(nn.Module):
    """Turns its weights about at its first call, and once more for every other call that begins meanwhile."""

    def __init__(self, linear):
        super().__init__()
        self.linear, self.is_packed = linear, False

    def forward(self, x):
        if not self.is_packed:
            time.sleep(0.001)
            self.linear.weight.data = self.linear.weight.data.flip(0)
            self.is_packed = True
        return nn.functional.linear(x, self.linear.weight.flip(0), self.linear.bias)


def test_a_layer_that_scales_by_all_it_is_given(model, token_ids):
    replace_linears(model, Scaled.of)
    first, *others = answers(model, token_ids(2, 43))
    for found in others:
        torch.testing.assert_close(found, first, rtol=0, atol=1e-5)
    for module in model.modules():
        if isinstance(module, Scaled):
            assert module.calls == [((2, 49), threading.get_ident())] * 4  # 48 positions in blocks, and the global


@pytest.mark.parametrize("num_threads", [1, 4])
def test_a_layer_that_changes_itself_at_its_first_call(model, token_ids, num_threads):
    ids = token_ids(2, 43)
    expected = answers(model, ids)[0]
    replace_linears(model, PackedAtFirst)
    torch.set_num_threads(num_threads)
    with torch.no_grad():
        found = model(ids).last_hidden_state
    for one in (found, *answers(model, ids)):
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-5)


def test_quantized_dynamically(model, token_ids):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of functions that will go
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert type(quantized.encoder.layer[0].output.dense) is not nn.Linear
    first, *others = answers(quantized, token_ids(2, 43))
    for found in others:
        torch.testing.assert_close(found, first, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_threads", [1, 4])
@pytest.mark.parametrize("is_global", [False, True])
def test_hooks_on_all_modules_see_one_call_a_layer(tiny_config, token_ids, num_threads, is_global):
    model = LSGXLMRobertaForCausalLM(tiny_config(is_decoder=True)).eval()
    torch.set_num_threads(num_threads)
    calls = []

    def note(module, inputs, output):
        shapes = [x.shape[:2] for x in inputs if isinstance(x, torch.Tensor)]
        calls.append((module, shapes, threading.get_ident()))

    if is_global:
        handles = [register_module_forward_hook(note)]
    else:
        handles = [module.register_forward_hook(note) for module in model.modules()]
    with torch.no_grad():
        model(token_ids(2, 43))
    for handle in handles:
        handle.remove()
    assert {thread for *_, thread in calls} == {threading.get_ident()}
    of_layers = [(module, shapes) for module, shapes, _ in calls if isinstance(module, (nn.Linear, nn.LayerNorm))]
    in_layers = [module for module in model.roberta.encoder.modules() if isinstance(module, (nn.Linear, nn.LayerNorm))]
    seen = [module for module, _ in of_layers]
    assert [seen.count(module) for module in in_layers] == [1] * len(in_layers)
    assert all(shapes == [(2, 44)] for module, shapes in of_layers if module in in_layers)
    assert is_plain(model.roberta.encoder.layer)


def test_what_transformers_notes_is_no_obstacle(model, token_ids):
    """Its hooks for `hidden_states` stay for ever after they are asked for once."""
    ids = token_ids(2, 43)
    torch.set_num_threads(2)
    with torch.no_grad():
        assert len(model(ids, output_hidden_states=True).hidden_states) == 3
        assert is_plain(model.encoder.layer)
        expected = [state for state in model(ids, output_hidden_states=True).hidden_states]
        torch.set_num_threads(1)
        found = model(ids, output_hidden_states=True).hidden_states
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


class Adapted(nn.Linear):
    """A user's own."""


class Marked(torch.Tensor):
    """A kind of weights."""


def _subclassed(layer):
    layer.output.dense.__class__ = Adapted


def _own_layer(layer):
    layer.__class__ = type("OwnLayer", (LSGLayer,), {})


def _own_forward(layer):
    layer.output.dense.forward = lambda x: x / x.abs().max()


def _parametrized(layer):
    parametrizations.weight_norm(layer.intermediate.dense)


def _pruned(layer):
    prune.l1_unstructured(layer.intermediate.dense, "weight", amount=0.2)


def _compiled(layer):
    layer.attention.output.compile(backend="eager")


def _other_weights(layer):
    layer.output.dense.weight = nn.Parameter(layer.output.dense.weight.data.as_subclass(Marked))


def _tensors_for_weights(layer):
    weight = layer.output.dense.weight.data.as_subclass(Marked)
    del layer.output.dense.weight
    layer.output.dense.weight = weight


def _mc_dropout(layer):
    layer.output.dropout.train()


def _pre_hook(layer):
    layer.attention.self.query.register_forward_pre_hook(lambda module, inputs: None)


def _hook_of_the_layer(layer):
    layer.register_forward_hook(lambda module, inputs, output: None)


def _own_activation(layer):
    del layer.intermediate.intermediate_act_fn
    layer.intermediate.intermediate_act_fn = lambda x: x / x.abs().max()


def _other_module(layer):
    layer.output.LayerNorm = nn.BatchNorm1d(32)


CHANGES = [
    value for name, value in list(globals().items()) if name.startswith("_") and isinstance(value, types.FunctionType)
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_not_plain(model, change):
    assert is_plain(model.encoder.layer)
    change(model.encoder.layer[1])
    assert not is_plain(model.encoder.layer) and is_plain(model.encoder.layer[0])


def test_not_plain_where_the_class_is_patched(model, monkeypatch):
    forward = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: forward(self, x))
    assert not is_plain(model.encoder.layer)


def test_plain_again(model):
    handle = model.encoder.layer[0].output.dense.register_forward_hook(lambda module, inputs, output: None)
    assert not is_plain(model.encoder.layer)
    handle.remove()
    assert is_plain(model.encoder.layer) and not is_plain(model.train().encoder.layer)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu", "silu"])
def test_every_float_dtype_is_plain(tiny_config, dtype, act):
    assert is_plain(LSGXLMRobertaModel(tiny_config(hidden_act=act)).to(dtype).eval().encoder.layer)


def test_dropout_that_stays_on_draws_on_one_thread(tiny_config, token_ids):
    """Monte Carlo dropout: the same seed, the same numbers."""
    model = LSGXLMRobertaModel(tiny_config(hidden_dropout_prob=0.3)).eval()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    ids = token_ids(2, 43)
    found = []
    for num_threads in (1, 4):
        torch.set_num_threads(num_threads)
        torch.manual_seed(0)
        with torch.no_grad():
            found.append(model(ids).last_hidden_state)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)
