"""Keys and values of a prefix, as prefix tuning gives them, which every query of an encoder sees."""

import pytest
import torch
from attention_inputs import HEAD_DIM, HEADS, SPARSITY_TYPES, make_inputs
from flex_on_cpu import use_flex_on_cpu
from reference import dense_lsg_attention

from lsg_xlmr.attention.encoder_attention import lsg_attention
from lsg_xlmr.attention.pattern import AttentionInputs
from lsg_xlmr.cpu import threads


PREFIX = 5
# Windows are what "sdpa" does where there is no CPU, and in graphs.
IMPLEMENTATIONS = ("eager", "sdpa", "windows", "flex_attention")


@pytest.fixture
def attend(monkeypatch):
    """A function from tensors, mask, projections, configuration and implementation to the context and the weights."""
    use_flex_on_cpu(monkeypatch)

    def attend(query, key, value, mask, projections, config, implementation):
        inputs = AttentionInputs(
            query, key, value, mask, config, HEAD_DIM**-0.5, projections=projections, num_prefix=PREFIX
        )
        with monkeypatch.context() as patch:
            if implementation == "windows":
                patch.setattr(threads, "PIECEWISE_DEVICES", ())
            return lsg_attention(inputs, "sdpa" if implementation == "windows" else implementation)

    return attend


def make_prefixed(config, t, lengths):
    """As [`make_inputs`], with a prefix; of a mask one of its keys is hidden."""
    (query, key, value), mask, projections = make_inputs(config, t, lengths)
    first = config.num_global_tokens
    key, value = (
        torch.cat([x[:, :, :first], torch.randn(2, HEADS, PREFIX, HEAD_DIM), x[:, :, first:]], 2) for x in (key, value)
    )
    if mask is not None:
        mask = torch.cat([mask[:, :first], torch.ones(2, PREFIX, dtype=torch.bool), mask[:, first:]], 1)
        mask[1, first + 2] = False
    return (query, key, value), mask, projections


@pytest.mark.parametrize(
    "sparsity_type, t, lengths",
    [
        *(("norm", 13, None), ("norm", 13, (13, 6)), ("norm", 48, None)),
        *((sparsity_type, 48, (48, 21)) for sparsity_type in SPARSITY_TYPES),
    ],
)
def test_against_the_reference(attend, tiny_config, sparsity_type, t, lengths):
    config = tiny_config(sparsity_type=sparsity_type, sparsity_factor=4, num_global_tokens=2)
    inputs, mask, projections = make_prefixed(config, t, lengths)
    token_mask = torch.ones(2, t, dtype=torch.bool) if mask is None else mask[:, 2 + PREFIX :]
    prefix_mask = None if mask is None else mask[:, 2 : 2 + PREFIX]
    direction = torch.randn(2, 2 + t, HEADS, HEAD_DIM).double()
    rows = torch.cat([torch.ones(2, 2, dtype=torch.bool), token_mask], 1)

    def gradients(function):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        context = function(*leaves)
        (context.double() * direction)[rows].sum().backward()
        return context.detach()[rows].double(), [x.grad for x in leaves]

    def reference(query, key, value):
        context, _ = dense_lsg_attention(
            query, key, value, token_mask, config, projections, num_prefix=PREFIX, prefix_mask=prefix_mask
        )
        return context.transpose(1, 2)

    expected, expected_gradients = gradients(reference)
    for implementation in IMPLEMENTATIONS:
        is_flex = implementation == "flex_attention"
        if is_flex and t > 16:  # torch's FlexAttention has no backward pass on CPU
            found = attend(*inputs, mask, projections, config, implementation)[0][rows].double()
        else:
            found, found_gradients = gradients(
                lambda *x, i=implementation: attend(*x, mask, projections, config, i)[0]
            )
            for actual, wanted in zip(found_gradients, expected_gradients):
                torch.testing.assert_close(actual, wanted, rtol=0, atol=2e-5)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5, msg=lambda text: f"{implementation}: {text}")


def test_the_weights_are_those_of_tokens(attend, tiny_config):
    config = tiny_config(sparsity_type="norm", num_global_tokens=2)
    inputs, _, projections = make_prefixed(config, 48, None)
    weights = attend(*inputs, None, projections, config, "eager")[1]
    mask = torch.ones(2, 48, dtype=torch.bool)
    expected = dense_lsg_attention(*inputs, mask, config, projections, num_prefix=PREFIX)[1]
    torch.testing.assert_close(weights.double(), expected[:, :, 2:, 2 + PREFIX :], rtol=0, atol=1e-5)
