"""The LSG product of every implementation against the brute-force reference."""

import pytest
import torch
from attention_inputs import HEAD_DIM, HEADS, SPARSITY_TYPES, attend, make_inputs
from flex_on_cpu import use_flex_on_cpu
from reference import dense_lsg_attention

from lsg_xlmr.attention import flex
from lsg_xlmr.attention.encoder_attention import IMPLEMENTATIONS
from lsg_xlmr.attention.sparsity import lsh_projections
from lsg_xlmr.cpu import threads


@pytest.fixture(autouse=True)
def flex_attention_on_cpu(monkeypatch):
    """Without this "sdpa" would stand in for FlexAttention here."""
    use_flex_on_cpu(monkeypatch)


def compare(config, implementation, t, lengths=None, dtype=torch.float32, tolerance=1e-5):
    inputs, mask, projections = make_inputs(config, t, lengths, dtype)
    context, weights = attend(*inputs, mask, projections, config, implementation)
    token_mask = torch.ones(2, t, dtype=torch.bool) if mask is None else mask[:, config.num_global_tokens :]
    expected, expected_weights = dense_lsg_attention(*inputs, token_mask, config, projections)
    rows = torch.cat([torch.ones(2, config.num_global_tokens, dtype=torch.bool), token_mask], 1)
    torch.testing.assert_close(context[rows].double(), expected.transpose(1, 2)[rows], rtol=0, atol=tolerance)
    assert (weights is None) == (implementation != "eager")
    if weights is not None:
        of_tokens = expected_weights[:, :, config.num_global_tokens :]
        weights, expected = (x.transpose(1, 2)[token_mask].double() for x in (weights, of_tokens))
        to_globals, expected = expected.split((config.num_global_tokens, t), -1)
        torch.testing.assert_close(weights, expected, rtol=0, atol=tolerance)
        torch.testing.assert_close(1 - weights.sum(-1), to_globals.sum(-1), rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("sparsity_type", SPARSITY_TYPES)
@pytest.mark.parametrize("lengths", [None, (48, 21), (3, 40)], ids=["full", "padded", "mostly padded"])
def test_every_sparsity_type(tiny_config, implementation, sparsity_type, lengths):
    compare(tiny_config(sparsity_type=sparsity_type, sparsity_factor=4), implementation, 48, lengths)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "fields",
    [
        {"block_size": 6, "sparse_block_size": 6, "sparsity_factor": 2},  # 3 sparse tokens a block
        {"block_size": 8, "sparse_block_size": 8, "sparsity_factor": 8},  # one
        {"block_size": 8, "sparse_block_size": 4, "sparsity_factor": 2},
        {"block_size": 8, "sparse_block_size": 16, "sparsity_factor": 4},
        {"block_size": 8, "sparse_block_size": 2, "sparsity_factor": 2},
        {"block_size": 8, "sparse_block_size": 0, "sparsity_factor": 2},
        {"block_size": 8, "sparse_block_size": 8, "sparsity_factor": 1},
        {"block_size": 9, "sparse_block_size": 3, "sparsity_factor": 3},
        {"block_size": 4, "sparse_block_size": 12, "sparsity_factor": 1, "num_global_tokens": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("sparsity_type", SPARSITY_TYPES[1:])
def test_blocks_and_factors(tiny_config, implementation, sparsity_type, fields):
    config = tiny_config(sparsity_type=sparsity_type, **fields)
    t = 5 * config.block_size
    compare(config, implementation, t, (t, t - config.block_size - 1))


@pytest.mark.parametrize("sparsity_type", ["pooling", "bos_pooling", "stride", "block_stride"])
def test_sparse_windows_that_end_within_a_block(tiny_config, sparsity_type):
    compare(tiny_config(sparsity_type=sparsity_type, sparse_block_size=7), "sdpa", 48, (48, 30))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_windows_that_cut_a_chunk_take_its_side_of_larger_or_smaller_norms(tiny_config, implementation):
    compare(tiny_config(sparsity_type="norm", sparse_block_size=13), implementation, 48, (48, 30))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("t", [1, 7, 16, 24, 64])
@pytest.mark.parametrize("num_global_tokens", [1, 7])
def test_lengths_on_both_sides_of_two_blocks(tiny_config, implementation, t, num_global_tokens):
    compare(tiny_config(num_global_tokens=num_global_tokens), implementation, t)
    compare(tiny_config(num_global_tokens=num_global_tokens), implementation, t, (t, max(1, t // 2)))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_masks_with_holes(tiny_config, implementation):
    config = tiny_config(sparsity_type="pooling")
    inputs, _, _ = make_inputs(config, 40)
    mask = torch.rand(2, 41) > 0.5
    mask[:, 0] = True
    context, _ = attend(*inputs, mask, None, config, implementation)
    expected, _ = dense_lsg_attention(*inputs, mask[:, 1:], config)
    torch.testing.assert_close(context[mask].double(), expected.transpose(1, 2)[mask], rtol=0, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)], ids=str)
@pytest.mark.parametrize("sparsity_type", SPARSITY_TYPES)
def test_half_precision(tiny_config, implementation, dtype, tolerance, sparsity_type):
    compare(tiny_config(sparsity_type=sparsity_type), implementation, 40, (40, 27), dtype, tolerance)


@pytest.mark.parametrize("sparsity_type", SPARSITY_TYPES)
@pytest.mark.parametrize("lengths", [None, (48, 21)], ids=["full", "padded"])
def test_gradients_agree_with_the_reference(tiny_config, sparsity_type, lengths):
    config = tiny_config(sparsity_type=sparsity_type, sparsity_factor=4, num_global_tokens=2)
    inputs, mask, projections = make_inputs(config, 48, lengths)
    token_mask = torch.ones(2, 48, dtype=torch.bool) if mask is None else mask[:, 2:]
    rows = torch.ones(2, 50, dtype=torch.bool) if mask is None else mask
    direction = torch.randn(2, 50, HEADS, HEAD_DIM).double()

    def gradients(function):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        context = function(*leaves)
        (context.double() * direction)[rows].sum().backward()
        return [x.grad for x in leaves]

    def reference(query, key, value):
        return dense_lsg_attention(query, key, value, token_mask, config, projections)[0].transpose(1, 2)

    expected = gradients(reference)
    for implementation in ("eager", "sdpa"):  # torch's FlexAttention has no backward pass on CPU
        found = gradients(lambda *x, i=implementation: attend(*x, mask, projections, config, i)[0])
        for actual, wanted in zip(found, expected):
            torch.testing.assert_close(actual, wanted, rtol=0, atol=2e-5)


def test_windows_for_other_devices_give_the_same_numbers(tiny_config, monkeypatch):
    monkeypatch.setattr(threads, "PIECEWISE_DEVICES", ())
    for sparsity_type in SPARSITY_TYPES:
        for lengths in (None, (48, 21)):
            compare(tiny_config(sparsity_type=sparsity_type, sparsity_factor=4), "sdpa", 48, lengths)


def test_sdpa_stands_in_for_flex_attention_where_that_has_no_kernel(tiny_config, monkeypatch):
    config = tiny_config()
    inputs, _, _ = make_inputs(config, 48)
    inputs = [x.requires_grad_() for x in inputs]
    monkeypatch.setattr(flex, "FLEX_DEVICES", ("cuda",))
    expected = attend(*inputs, None, None, config, "sdpa")[0]
    found = attend(*inputs, None, None, config, "flex_attention")[0]
    assert torch.equal(found, expected)
    found.sum().backward()


def test_dropout_keeps_the_mean_and_repeats_with_the_seed(tiny_config):
    config = tiny_config()
    inputs, _, _ = make_inputs(config, 48)

    def run():
        return attend(*inputs, None, None, config, "sdpa", dropout=0.3)[0]

    torch.manual_seed(3)
    first = run()
    torch.manual_seed(3)
    assert torch.equal(first, run())
    assert not torch.equal(first, run())
    mean = torch.stack([run() for _ in range(300)]).mean(0)
    exact = attend(*inputs, None, None, config, "sdpa")[0]
    torch.testing.assert_close(mean, exact, rtol=0, atol=0.15)


def test_dropout_of_everything(tiny_config):
    inputs, _, _ = make_inputs(tiny_config(), 48)
    inputs = [x.requires_grad_() for x in inputs]
    context = attend(*inputs, None, None, tiny_config(), "sdpa", dropout=1.0)[0]
    context.sum().backward()
    assert not context.any() and not any(x.grad.any() for x in inputs)


def test_gradients_of_dropout(tiny_config):
    """With the seed fixed, dropout is a fixed linear map of the weights: finite differences apply."""
    config = tiny_config(sparsity_type="stride", block_size=2, sparse_block_size=2)
    inputs, mask, _ = make_inputs(config, 10, (10, 7), torch.float64)
    inputs, mask = [x[1:, :2, :, :2].detach().clone().requires_grad_() for x in inputs], mask[1:]

    def function(*x):
        torch.manual_seed(5)
        return attend(*x, mask, None, config, "sdpa", dropout=0.4)[0]

    assert torch.autograd.gradcheck(function, inputs)


def test_nothing_is_changed_in_place(tiny_config):
    config = tiny_config(sparsity_type="lsh")
    inputs, mask, projections = make_inputs(config, 40, (40, 27))
    tensors = [*inputs, mask, *projections]
    copies = [x.clone() for x in tensors]
    for implementation in IMPLEMENTATIONS:
        attend(*inputs, mask, projections, config, implementation)
    assert all(torch.equal(x, copy) for x, copy in zip(tensors, copies))


def test_lsh_projections_are_fixed_by_seed_and_layer():
    def draw(seed, layer):
        return lsh_projections(seed, layer, 2, 4, (8, 2), torch.device("cpu"))[0]

    first = draw(0, 0)
    assert torch.equal(first, torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(first, draw(0, 0))
    assert not torch.equal(first, draw(0, 1))
    assert not torch.equal(first, draw(7, 0))
