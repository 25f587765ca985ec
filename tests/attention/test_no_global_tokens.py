"""Attention without global tokens: against the brute-force reference, and finite where a query sees nothing at all."""

import pytest
import torch
from attention_inputs import HEAD_DIM, HEADS, SPARSITY_TYPES, make_inputs
from flex_on_cpu import use_flex_on_cpu
from reference import dense_lsg_attention

from lsg_xlmr.attention import blockwise
from lsg_xlmr.attention.causal_attention import causal_attention
from lsg_xlmr.attention.causal_pattern import CausalInputs
from lsg_xlmr.attention.encoder_attention import lsg_attention
from lsg_xlmr.attention.pattern import AttentionInputs
from lsg_xlmr.cpu import threads


# Windows are what "sdpa" does where there is no CPU, and in graphs.
IMPLEMENTATIONS = ("eager", "sdpa", "windows", "flex_attention")


@pytest.fixture
def attend(monkeypatch):
    """A function from tensors, mask, projections, configuration and implementation to the context and the weights."""
    use_flex_on_cpu(monkeypatch)

    def attend(query, key, value, mask, projections, config, implementation, causal=False):
        inputs_class, attention = (CausalInputs, causal_attention) if causal else (AttentionInputs, lsg_attention)
        inputs = inputs_class(query, key, value, mask, config, HEAD_DIM**-0.5, projections=projections)
        with monkeypatch.context() as patch:
            if implementation == "windows":
                patch.setattr(threads, "PIECEWISE_DEVICES", ())
            return attention(inputs, "sdpa" if implementation == "windows" else implementation)

    return attend


@pytest.fixture
def compare(attend):
    def compare(config, t, mask, causal=False):
        """Of every implementation: context, weights and gradients of what is not masked, and nothing that is NaN."""
        inputs, _, projections = make_inputs(config, t)
        token_mask = torch.ones(2, t, dtype=torch.bool) if mask is None else mask
        direction = torch.randn(2, t, HEADS, HEAD_DIM).double()

        def answers(function, backward=True):
            leaves = [x.detach().clone().requires_grad_(backward) for x in inputs]
            context, weights = function(*leaves)
            if backward:
                (context.double() * direction)[token_mask].sum().backward()
            return context.detach(), weights, [x.grad for x in leaves if backward]

        def reference(*x):
            context, weights = dense_lsg_attention(*x, token_mask, config, projections, causal)
            return context.transpose(1, 2), weights

        expected, expected_weights, wanted = answers(reference)
        for implementation in IMPLEMENTATIONS[: 3 if causal else 4]:
            # torch's FlexAttention has no backward pass on CPU
            context, weights, found = answers(
                lambda *x, i=implementation: attend(*x, mask, projections, config, i, causal),
                backward=implementation != "flex_attention" or t <= 2 * config.block_size,
            )
            assert context.isfinite().all(), implementation
            torch.testing.assert_close(context[token_mask].double(), expected[token_mask], rtol=0, atol=1e-5)
            for one, other in zip(found, wanted, strict=False):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
            assert (weights is None) == (implementation != "eager")
            if weights is not None:
                of_tokens, of_reference = (x.transpose(1, 2)[token_mask] for x in (weights, expected_weights))
                torch.testing.assert_close(of_tokens.double(), of_reference, rtol=0, atol=1e-5)
                torch.testing.assert_close(of_tokens.sum(-1), torch.ones(of_tokens.shape[:-1]), rtol=0, atol=1e-5)

    return compare


def masks(t):
    """Padding at either end, many blocks of it in the middle, and a text of nothing else."""
    place = torch.arange(t)
    rows = {
        "all": (place >= 0, place >= 0),
        "right": (place < t - 3, place < 5),
        "left": (place >= 3, place >= t - 5),
        "hole": ((place < 3) | (place > t - 4), place % 20 == 0),
        "nothing": (place < 0, place < t // 2),
    }
    return {name: None if name == "all" else torch.stack(of_name) for name, of_name in rows.items()}


def cases(*quick):
    """All types with all kinds of masks, of which `quick` are always run."""
    found = [(sparsity_type, kind) for sparsity_type in SPARSITY_TYPES for kind in masks(1)]
    return [case if case in quick else pytest.param(*case, marks=pytest.mark.slow) for case in found]


@pytest.mark.parametrize(
    "sparsity_type, kind", cases(("norm", "all"), ("norm", "hole"), ("norm", "nothing"), ("bos_pooling", "nothing"))
)
def test_encoder(tiny_config, compare, sparsity_type, kind):
    config = tiny_config(sparsity_type=sparsity_type, sparsity_factor=4, num_global_tokens=0)
    compare(config, 48, masks(48)[kind])


@pytest.mark.parametrize(
    "sparsity_type, kind", cases(("norm", "left"), ("pooling", "hole"), ("bos_pooling", "nothing"))
)
def test_decoder(tiny_config, compare, sparsity_type, kind):
    config = tiny_config(sparsity_type=sparsity_type, sparsity_factor=4, num_global_tokens=0)
    compare(config, 45, masks(45)[kind], causal=True)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("t", [1, 7, 16, pytest.param(24, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", masks(1))
def test_short_texts(tiny_config, compare, causal, t, kind):
    compare(tiny_config(num_global_tokens=0), t, masks(t)[kind], causal=causal)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(tiny_config, attend, causal, dtype):
    """Masked scores stay below any other, and finite."""
    config = tiny_config(num_global_tokens=0)
    inputs, _, _ = make_inputs(config, 48, dtype=dtype)
    inputs[0] *= 100  # scores of some thousands
    for kind, mask in masks(48).items():
        kept = torch.ones(2, 48, dtype=torch.bool) if mask is None else mask
        expected, _ = attend(*(x.float() for x in inputs), mask, None, config, "eager", causal)
        for implementation in ("sdpa", "windows"):
            found, _ = attend(*inputs, mask, None, config, implementation, causal)
            assert found.isfinite().all(), (kind, implementation)
            torch.testing.assert_close(found[kept].float(), expected[kept], rtol=0, atol=0.5)


def test_texts_of_nothing_but_padding_on_several_threads(tiny_config, attend, monkeypatch):
    monkeypatch.setattr(blockwise, "num_parallel", lambda: 2)
    config = tiny_config(num_global_tokens=0)
    inputs, _, _ = make_inputs(config, 48)
    for causal in (False, True):
        context, _ = attend(*inputs, torch.zeros(2, 48, dtype=torch.bool), None, config, "sdpa", causal)
        assert context.isfinite().all()


def test_a_long_text_at_once_takes_windows_in_a_decoder_too(tiny_config, attend, monkeypatch):
    """Off the CPU, where the memory of all pairs of tokens would be missed."""
    config = tiny_config(num_global_tokens=0)
    inputs, _, _ = make_inputs(config, 45)
    expected, _ = attend(*inputs, None, None, config, "windows", causal=True)
    monkeypatch.setattr(CausalInputs, "visible", None)
    torch.testing.assert_close(attend(*inputs, None, None, config, "windows", causal=True)[0], expected)
