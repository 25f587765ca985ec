"""Linear layers by oneDNN's products: as exact as torch's own, and only where torch would do the same product."""

import pytest
import torch
from torch import nn
from torch.nn.functional import linear
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from lsg_xlmr import LSGXLMRobertaForMaskedLM, LSGXLMRobertaModel
from lsg_xlmr.cpu import products, threads
from lsg_xlmr.cpu.libraries import amd_family, prefers_onednn
from lsg_xlmr.cpu.products import fastest
from lsg_xlmr.model.encoder import LSGLayer


pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch comes without oneDNN"
)


@pytest.fixture(autouse=True)
def by_onednn(monkeypatch):
    """As on an AMD CPU that prefers it, whatever this one is."""
    for module in (products, threads):
        monkeypatch.setattr(module, "prefers_onednn", lambda: True)
    monkeypatch.setattr(products, "amd_family", lambda: products.ZEN_5)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def shapes(monkeypatch):
    """Those of the rows that oneDNN is given."""
    found, product = [], products._product

    def note(rows, parts, bias):
        found.append(tuple(rows.shape))
        return product(rows, parts, bias)

    monkeypatch.setattr(products, "_product", note)
    return found


def make(in_features, out_features, bias=True, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(in_features, out_features, bias=bias)


def relative_error(found, expected):
    return ((found.double() - expected).square().mean() / expected.square().mean()).sqrt().item()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("num_rows", "in_features"), [(128, 96), (256, 768), (512, 3072), (544, 1025), (700, 4096)])
@torch.no_grad()
def test_as_exact_as_torch(num_rows, in_features, bias, shapes):
    module, states = make(in_features, 48, bias), torch.randn(num_rows, in_features)
    found = fastest(module, states)(states)
    assert shapes == [(size, in_features) for size in ({700: [512, 160], 544: [512]}.get(num_rows, [num_rows]))]
    assert found.shape == (num_rows, 48) and found.is_contiguous()
    exact = linear(states.double(), module.weight.double(), module.bias.double() if bias else None)
    # Of the kernels that serve: those of other CPUs add up in other orders.
    limit = 2 * max(relative_error(module(states), exact), 5e-8) if prefers_onednn() else 1e-6
    assert relative_error(found, exact) <= limit


@torch.no_grad()
def test_any_shape_and_order_of_memory():
    module, states = make(96, 48), torch.randn(2, 96, 128).transpose(1, 2)
    torch.testing.assert_close(fastest(module, states)(states), module(states), rtol=0, atol=1e-5)
    for shape in [(0, 96), (3, 0, 96), (1, 96), (31, 96), (96,), (4, 8, 16, 96)]:
        states = torch.randn(shape)
        torch.testing.assert_close(fastest(module, states)(states), module(states), rtol=0, atol=1e-5)


class Own(nn.Linear):
    def forward(self, states):
        return super().forward(states) * 2


def hooked(register):
    module = make(64, 64)
    getattr(module, register)(lambda *args: None)
    return module


OTHERS = {
    "a class of one's own": lambda: Own(64, 64),
    "pruned": lambda: prune.l1_unstructured(make(64, 64), "weight", 0.5),
    "not linear": lambda: nn.LayerNorm(64),
    "forward replaced": lambda: setattr(module := make(64, 64), "forward", lambda x: x * 2) or module,
    **{
        name: (lambda name=name: hooked(name))
        for name in ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook")
    },
}


@torch.no_grad()
def test_sparse_weights_are_torch_s():
    module, states = make(64, 96), torch.randn(128, 64)
    expected = module(states)
    module.weight = nn.Parameter(module.weight.to_sparse_csr(), requires_grad=False)
    torch.testing.assert_close(fastest(module, states)(states), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_a_plain_linear_layer_is_called_as_it_is(name):
    module = OTHERS[name]()
    with torch.no_grad():
        assert fastest(module, torch.zeros(128, 64)) is module


def test_hooks_on_all_modules():
    module, handle = make(64, 64), register_module_forward_hook(lambda *args: None)
    try:
        assert fastest(module, torch.zeros(128, 64)) is module
    finally:
        handle.remove()


@torch.no_grad()
def test_what_torch_is_told_holds(monkeypatch):
    module, states = make(64, 64), torch.randn(128, 64)
    assert fastest(module, states) is not module
    with torch.autocast("cpu"):
        assert fastest(module, states) is module
    with torch.backends.mkldnn.flags(enabled=False):
        assert fastest(module, states) is module
    for precision in ("high", "medium"):
        torch.set_float32_matmul_precision(precision)
        try:
            assert fastest(module, states) is module
        finally:
            torch.set_float32_matmul_precision("highest")
    if hasattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision"):
        before = torch.backends.mkldnn.matmul.fp32_precision
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        try:
            assert fastest(module, states) is module
        finally:
            torch.backends.mkldnn.matmul.fp32_precision = before
    with FlopCounterMode(display=False):
        assert fastest(module, states) is module
    with torch.device("cpu"):  # a mode that sees functions
        assert fastest(module, states) is module
    for dtype in (torch.bfloat16, torch.float64):
        assert fastest(module, states.to(dtype)) is module
    with torch.autograd.forward_ad.dual_level():
        assert fastest(module, states) is module
    for changed in (make(64, 64).to(torch.bfloat16), make(64, 64).to("meta")):
        assert fastest(changed, states) is changed
    monkeypatch.setattr(products, "prefers_onednn", lambda: False)
    module = make(64, 64)
    assert fastest(module, states) is module


@pytest.mark.parametrize("is_grad", [True, False])
def test_too_few_features_are_the_error_that_torch_gives(is_grad):
    module, states = make(96, 64), torch.randn(128, 64)
    with torch.set_grad_enabled(is_grad), pytest.raises(RuntimeError, match="cannot be multiplied"):
        fastest(module, states)(states)


@torch.no_grad()
def test_the_feed_forward_part_is_done_so_too(tiny_config, shapes):
    config = tiny_config(intermediate_size=1100)
    for length in (128, 544):
        shapes.clear()
        LSGLayer(config).eval().feed_forward_chunk(torch.randn(1, length, 32))
        # The weight of the second half is copied, which some positions are not worth.
        assert shapes[:1] == [(min(length, 512), 32)]
        assert ((512, 1100) in shapes) is (length == 544)


@pytest.mark.parametrize("intermediate_size", [37, 1100])
@torch.no_grad()
def test_a_hook_sees_what_a_module_of_stock_is_given(tiny_config, token_ids, intermediate_size):
    """As accelerate's do, which move all that a module is given to where its weights are."""
    model = LSGXLMRobertaForMaskedLM(tiny_config(intermediate_size=intermediate_size, max_position_embeddings=700))
    model.eval()
    input_ids = token_ids(1, 600)
    expected, seen = model(input_ids).logits, set()

    def look(module, args, kwargs):
        seen.update(map(type, (*args, *kwargs.values())))

    layers = [module for layer in model.roberta.encoder.layer for module in layer.modules() if module is not layer]
    for module in (*layers, *model.lm_head.modules()):
        module.register_forward_pre_hook(look, with_kwargs=True)
    torch.testing.assert_close(model(input_ids).logits, expected, atol=1e-5, rtol=0)
    assert seen and not any(issubclass(kind, nn.Module) or "function" in kind.__name__ for kind in seen), seen


def test_traced_and_transformed():
    module, states, seen = make(64, 64).requires_grad_(False), torch.randn(128, 64), []

    def function(states):
        product = fastest(module, states)
        seen.append(product is module)
        return product(states).sum()

    torch.func.grad(function)(states)
    torch.func.vmap(function)(states[None])
    torch.jit.trace(function, states, check_trace=False)
    assert seen == [True] * 3


@pytest.mark.parametrize("wanted", ["x", "w", "b", "xw", "xb", "wb", "xwb"])
@pytest.mark.parametrize("in_features", [96, 1100])
def test_gradients(wanted, in_features):
    module, states = make(in_features, 48), torch.randn(3, 200, in_features)
    states.requires_grad_("x" in wanted)
    module.weight.requires_grad_("w" in wanted)
    module.bias.requires_grad_("b" in wanted)
    leaves = [leaf for leaf in (states, module.weight, module.bias) if leaf.requires_grad]
    found, expected = fastest(module, states)(states), module(states)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    grad = torch.randn_like(found)
    for one, other in zip(torch.autograd.grad(found, leaves, grad), torch.autograd.grad(expected, leaves, grad)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", [25, 26])
def test_gradients_of_gradients(monkeypatch, family):
    monkeypatch.setattr(products, "amd_family", lambda: family)
    module, states = make(64, 96), torch.randn(128, 64, requires_grad=True)
    leaves, found = [states, module.weight, module.bias], []
    for product in (fastest(module, states), module):
        first = torch.autograd.grad(product(states).pow(3).sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(grad.pow(2).sum() for grad in first), leaves)
        found.append((*first, *second))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


def test_gradients_that_torch_gives_in_another_form():
    module, states = make(64, 96), torch.randn(128, 64, requires_grad=True)
    found, expected = fastest(module, states)(states), module(states)
    for one, other in zip(*[torch.autograd.grad(x.sum(), [states, module.weight]) for x in (found, expected)]):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)  # of `sum`: one number, expanded
    many = torch.randn(3, 128, 96)
    found, expected = fastest(module, states)(states), module(states)
    batches = [torch.autograd.grad(x, states, many, is_grads_batched=True)[0] for x in (found, expected)]
    torch.testing.assert_close(*batches, rtol=0, atol=1e-5)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing(use_reentrant):
    module, states, grads = make(64, 96), torch.randn(128, 64, requires_grad=True), []
    product = fastest(module, states)
    for found in (checkpoint(product, states, use_reentrant=use_reentrant), module(states)):
        states.grad = None
        found.pow(2).sum().backward()
        grads.append(states.grad)
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-5)


def test_weights_changed_between_forward_and_backward_are_noticed():
    module, states = make(64, 96), torch.randn(128, 64, requires_grad=True)
    found = fastest(module, states)(states)
    with torch.no_grad():
        module.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.sum().backward()


@pytest.mark.parametrize("family", [25, 26])
def test_few_numbers_of_rows_in_training(shapes, monkeypatch, family):
    monkeypatch.setattr(products, "amd_family", lambda: family)
    module = make(24, 40)
    for num_rows in (*range(128, 520, 30), 600, 770, 1030, 1300):
        states = torch.randn(num_rows, 24, requires_grad=True)
        fastest(module, states)(states).sum().backward()
    assert {num_rows for num_rows, _ in shapes} <= {*range(128, 512, 32), 512, 1024}


@pytest.mark.parametrize("family", [25, 26])
@pytest.mark.parametrize("num_rows", [128, 500, 1300])
def test_gradients_of_any_number_of_rows(monkeypatch, family, num_rows):
    monkeypatch.setattr(products, "amd_family", lambda: family)
    module, states = make(64, 96), torch.randn(num_rows, 64, requires_grad=True)
    inputs = states, module.weight, module.bias
    weights = torch.randn(num_rows, 96)
    found, expected = (
        torch.autograd.grad((product(states) * weights).sum(), inputs) for product in (fastest(module, states), module)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part", ["intermediate", "output", "attention"])
@pytest.mark.parametrize("intermediate_size", [37, 1100])
def test_gradients_where_one_part_alone_is_trained(tiny_config, token_ids, monkeypatch, part, intermediate_size):
    """What the second half of the feed-forward part is given may take gradients where the layer's input does not."""
    config = tiny_config(intermediate_size=intermediate_size, num_hidden_layers=1, max_position_embeddings=600)
    model, input_ids = LSGXLMRobertaModel(config).eval(), token_ids(1, 544)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(f"layer.0.{part}.dense" in name or f"layer.0.{part}.self" in name)
    wanted, grads = [x for x in model.parameters() if x.requires_grad], []
    weights = torch.randn(1, 544, 32)
    for prefers in (True, False):
        for module in (products, threads):
            monkeypatch.setattr(module, "prefers_onednn", lambda prefers=prefers: prefers)
        grads.append(torch.autograd.grad((model(input_ids).last_hidden_state * weights).sum(), wanted))
    assert all(grad.abs().max() > 1e-3 for grad in grads[0] if grad.dim() > 1)
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4)


def test_what_is_kept_for_the_backward_pass_is_what_torch_keeps():
    module, states = make(64, 96), torch.randn(128, 64, requires_grad=True)
    kept = []
    for frozen in ((), ("weight",), ("weight", "bias")):
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name not in frozen)
        sizes = []
        for product in (fastest(module, states), module):
            with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes[-1].append(x.numel()) or x, lambda x: x):
                sizes.append([])
                product(states)
        kept.append([sum(x) for x in sizes])
    assert [ours for ours, _ in kept] == [theirs for _, theirs in kept]


@pytest.mark.parametrize("num_threads", [1, 2])
@torch.no_grad()
def test_few_numbers_of_rows_whatever_the_lengths(tiny_config, token_ids, shapes, num_threads):
    """For each oneDNN makes a kernel, which takes a millisecond and stays."""
    model = LSGXLMRobertaModel(tiny_config()).eval()
    torch.set_num_threads(num_threads)
    for length in (33, 64, 90, 111, 600):
        model(token_ids(1, min(length, 120)).repeat(1 if length < 600 else 6, 1))
    assert shapes and all(num_rows % 32 == 0 for num_rows, _ in shapes)


@pytest.mark.parametrize("train", [False, True])
def test_a_model_gives_the_same(tiny_config, token_ids, monkeypatch, shapes, train):
    config = tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model, ids = LSGXLMRobertaForMaskedLM(config).train(train), token_ids(2, 100)
    torch.set_num_threads(1)  # several cut so few positions into pieces that are not worth it
    found = []
    for prefers in (True, False):
        for module in (products, threads):
            monkeypatch.setattr(module, "prefers_onednn", lambda prefers=prefers: prefers)
        with torch.set_grad_enabled(train):
            outputs = model(ids, labels=ids)
        if train:
            model.zero_grad()
            outputs.loss.backward()
        grads = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if train}
        found.append((outputs.logits.detach(), grads))
        count = len(shapes)
    assert shapes and len(shapes) == count
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-5)
    for name, grad in found[0][1].items():
        torch.testing.assert_close(grad, found[1][1][name], rtol=1e-3, atol=1e-5)


def test_the_family_is_the_one_the_system_tells(tmp_path, monkeypatch):
    families = {
        "vendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2": 26,
        "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143": None,
        "": None,
    }
    for text, family in families.items():
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr("lsg_xlmr.cpu.libraries.Path", lambda path: tmp_path / "cpuinfo")
        assert amd_family.__wrapped__() == family
    monkeypatch.setattr("lsg_xlmr.cpu.libraries.Path", lambda path: tmp_path / "none")
    assert amd_family.__wrapped__() is None
