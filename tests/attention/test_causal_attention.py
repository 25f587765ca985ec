"""Causal LSG attention of every implementation against the brute-force reference."""

import pytest
import torch
from attention_inputs import HEAD_DIM, HEADS, SPARSITY_TYPES, make_inputs
from reference import dense_lsg_attention

from lsg_xlmr.attention.causal_attention import causal_attention
from lsg_xlmr.attention.causal_pattern import CausalInputs
from lsg_xlmr.cpu import threads


# Windows are what "sdpa" does where there is no CPU, and in graphs.
IMPLEMENTATIONS = ("eager", "sdpa", "windows")


@pytest.fixture
def attend(monkeypatch):
    """A function from tensors, mask, projections and configuration to the context and the weights, if any."""

    def attend(query, key, value, mask, projections, config, implementation, dropout=0.0):
        inputs = CausalInputs(query, key, value, mask, config, HEAD_DIM**-0.5, dropout, projections)
        with monkeypatch.context() as patch:
            if implementation == "windows":
                patch.setattr(threads, "PIECEWISE_DEVICES", ())
            return causal_attention(inputs, "eager" if implementation == "eager" else "sdpa")

    return attend


@pytest.fixture
def compare(attend):
    def compare(config, implementation, t, lengths=None, dtype=torch.float32, tolerance=1e-5, left=False):
        inputs, mask, projections = make_inputs(config, t, lengths, dtype)
        prefix = config.num_global_tokens
        if left and mask is not None:
            mask[:, prefix:] = mask[:, prefix:].flip(1)
        context, weights = attend(*inputs, mask, projections, config, implementation)
        token_mask = torch.ones(2, t, dtype=torch.bool) if mask is None else mask[:, prefix:]
        expected, expected_weights = dense_lsg_attention(*inputs, token_mask, config, projections, causal=True)
        rows = torch.cat([torch.ones(2, prefix, dtype=torch.bool), token_mask], 1)
        torch.testing.assert_close(context[rows].double(), expected.transpose(1, 2)[rows], rtol=0, atol=tolerance)
        assert context.isfinite().all() and (weights is None) == (implementation != "eager")
        if weights is not None:
            expected_weights = expected_weights[:, :, prefix:, prefix:]
            weights, expected_weights = (x.transpose(1, 2)[token_mask] for x in (weights, expected_weights))
            torch.testing.assert_close(weights.double(), expected_weights, rtol=0, atol=tolerance)

    return compare


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("sparsity_type", SPARSITY_TYPES)
@pytest.mark.parametrize("lengths", [None, (45, 21), (3, 40)], ids=["full", "padded", "mostly padded"])
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_every_sparsity_type(compare, tiny_config, implementation, sparsity_type, lengths, left):
    compare(tiny_config(sparsity_type=sparsity_type, sparsity_factor=4), implementation, 45, lengths, left=left)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "fields",
    [
        {"block_size": 6, "sparse_block_size": 6, "sparsity_factor": 2},
        {"block_size": 8, "sparse_block_size": 8, "sparsity_factor": 8},
        {"block_size": 8, "sparse_block_size": 4, "sparsity_factor": 2},
        {"block_size": 8, "sparse_block_size": 16, "sparsity_factor": 4},
        {"block_size": 8, "sparse_block_size": 0, "sparsity_factor": 2},
        {"block_size": 8, "sparse_block_size": 8, "sparsity_factor": 1},
        {"block_size": 4, "sparse_block_size": 12, "sparsity_factor": 1, "num_global_tokens": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("sparsity_type", SPARSITY_TYPES[1:])
def test_blocks_and_factors(compare, tiny_config, implementation, sparsity_type, fields):
    config = tiny_config(sparsity_type=sparsity_type, **fields)
    t = 5 * config.block_size - 1
    compare(config, implementation, t, (t, t - config.block_size - 1))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("t", [1, 7, 8, 9, 16, 17, 24, 25, 31, 64])
@pytest.mark.parametrize("num_global_tokens", [1, 7])
def test_every_length(compare, tiny_config, implementation, t, num_global_tokens):
    compare(tiny_config(num_global_tokens=num_global_tokens), implementation, t)
    compare(tiny_config(num_global_tokens=num_global_tokens), implementation, t, (t, max(1, t // 2)), left=True)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)], ids=str)
@pytest.mark.parametrize("sparsity_type", SPARSITY_TYPES)
def test_half_precision(compare, tiny_config, implementation, dtype, tolerance, sparsity_type):
    compare(tiny_config(sparsity_type=sparsity_type), implementation, 41, (41, 27), dtype, tolerance)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("sparsity_type", SPARSITY_TYPES)
@pytest.mark.parametrize("lengths", [None, (45, 21)], ids=["full", "padded"])
def test_gradients(attend, tiny_config, implementation, sparsity_type, lengths):
    config = tiny_config(sparsity_type=sparsity_type, sparsity_factor=4, num_global_tokens=2)
    inputs, mask, projections = make_inputs(config, 45, lengths)
    token_mask = torch.ones(2, 45, dtype=torch.bool) if mask is None else mask[:, 2:]
    rows = torch.ones(2, 47, dtype=torch.bool) if mask is None else mask
    direction = torch.randn(2, 47, HEADS, HEAD_DIM).double()

    def gradients(function):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        (function(*leaves).double() * direction)[rows].sum().backward()
        return [x.grad for x in leaves]

    found = gradients(lambda *x: attend(*x, mask, projections, config, implementation)[0])
    expected = gradients(
        lambda *x: dense_lsg_attention(*x, token_mask, config, projections, causal=True)[0].transpose(1, 2)
    )
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("sparsity_type", SPARSITY_TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("lengths", [None, (45, 37)], ids=["full", "padded"])
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_no_bit_of_the_future(attend, tiny_config, implementation, sparsity_type, dtype, lengths, left):
    """Whatever comes after a token is changed, its output stays the same."""
    config = tiny_config(sparsity_type=sparsity_type, num_global_tokens=2)
    inputs, mask, projections = make_inputs(config, 45, lengths, dtype)
    if left and mask is not None:
        mask[:, 2:] = mask[:, 2:].flip(1)
    before, weights = attend(*inputs, mask, projections, config, implementation)
    for first_changed in (3, 8, 15, 16, 17, 24, 36):
        changed = [x.clone() for x in inputs]
        for x in changed:
            x[:, :, 2 + first_changed :] = 9 * torch.randn(2, HEADS, 45 - first_changed, HEAD_DIM)
        after, _ = attend(*changed, mask, projections, config, implementation)
        assert torch.equal(before[:, : 2 + first_changed], after[:, : 2 + first_changed])
        assert not torch.equal(before, after)


def test_dropout_drops_and_keeps_the_mean(attend, tiny_config):
    config = tiny_config()
    inputs, _, _ = make_inputs(config, 45)
    expected, _ = attend(*inputs, None, None, config, "sdpa")
    found = [attend(*inputs, None, None, config, "sdpa", dropout=0.2)[0] for _ in range(200)]
    assert not torch.equal(found[0], found[1])
    torch.testing.assert_close(torch.stack(found).mean(0), expected, rtol=0, atol=0.25)
