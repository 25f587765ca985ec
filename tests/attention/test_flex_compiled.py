"""
FlexAttention as it is compiled, for this CPU: every kind of input against eager attention, and how many graphs there
are. `pytest -m flex`; torch's compiler needs g++.
"""

import pytest
import torch
from attention_inputs import SPARSITY_TYPES, attend, make_inputs
from flex_on_cpu import use_flex_on_cpu
from torch._dynamo.utils import counters

from lsg_xlmr import LSGXLMRobertaForMaskedLM


pytestmark = pytest.mark.flex

LENGTHS = (24, 136, 256, 264, 504)  # in batches of two these are two lengths of the ladder
DTYPES = [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)]


@pytest.fixture(autouse=True)
def flex_on_cpu(monkeypatch):
    use_flex_on_cpu(monkeypatch, compiled=True)


@pytest.fixture
def num_graphs():
    """A function that says how many graphs were compiled since the test began."""
    before = counters["stats"]["unique_graphs"]
    return lambda: counters["stats"]["unique_graphs"] - before


def compare(config, t, lengths, dtype=torch.float32, tolerance=1e-5):
    inputs, mask, projections = make_inputs(config, t, lengths, dtype)
    with torch.no_grad():
        found = attend(*inputs, mask, projections, config, "flex_attention")[0]
        expected = attend(*(x.float() for x in inputs), mask, projections, config, "eager")[0]
    rows = torch.ones(found.shape[:2], dtype=torch.bool) if mask is None else mask
    torch.testing.assert_close(found[rows].float(), expected[rows], rtol=0, atol=tolerance)
    assert found.isfinite().all()  # of padding too: what is not a number would spread in the next layer


def test_every_type_length_and_padding(tiny_config, num_graphs):
    for t in LENGTHS:
        for sparsity_type in SPARSITY_TYPES:
            config = tiny_config(sparsity_type=sparsity_type, sparsity_factor=4, num_global_tokens=2)
            for lengths in (None, (t, t - 1), (t - 9, t // 2), (1, t), (5, 3)):
                compare(config, t, lengths)
    assert 0 < num_graphs() <= 4  # with and without sparse tokens


@pytest.mark.parametrize("dtype, tolerance", DTYPES[1:], ids=str)
def test_half_precision(tiny_config, num_graphs, dtype, tolerance):
    for t in (24, 136, 248):
        for sparsity_type in SPARSITY_TYPES[1:]:
            for lengths in (None, (t, t // 2)):
                compare(tiny_config(sparsity_type=sparsity_type), t, lengths, dtype, tolerance)
    assert 0 < num_graphs() <= 1


@pytest.mark.parametrize("sparsity_type", ["norm", "lsh"])
def test_the_default_sizes(tiny_config, num_graphs, sparsity_type):
    config = tiny_config(
        sparsity_type=sparsity_type, block_size=128, sparse_block_size=128, max_position_embeddings=2050
    )
    for t in (384, 512, 896, 1024):
        for lengths in (None, (t - 100, t // 3)):
            compare(config, t, lengths)
    assert num_graphs() <= 2


@pytest.mark.parametrize("num_global_tokens", [2, 0])
def test_masks_with_holes_and_on_the_left(tiny_config, num_global_tokens):
    for sparsity_type in SPARSITY_TYPES:
        config = tiny_config(sparsity_type=sparsity_type, sparsity_factor=4, num_global_tokens=num_global_tokens)
        inputs, mask, projections = make_inputs(config, 200, (200, 200))
        mask[0, num_global_tokens:150] = False
        mask[1] &= torch.rand(200 + num_global_tokens) > 0.4
        mask[:, :num_global_tokens] = True
        with torch.no_grad():
            found = attend(*inputs, mask, projections, config, "flex_attention")[0]
            expected = attend(*inputs, mask, projections, config, "eager")[0]
        torch.testing.assert_close(found[mask], expected[mask], rtol=0, atol=1e-5)
        assert found.isfinite().all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_requests_of_a_model(tiny_config, num_graphs, mode):
    """Texts as they come, one graph for all of them but those of up to two blocks, which need none."""
    config = tiny_config(hidden_size=64, max_position_embeddings=514)
    model = LSGXLMRobertaForMaskedLM(config).eval()
    lengths = [17, 130, 16, 90, 33, 128, 512, 31, 24, 64, 5, 100, 120, 128, 77, 260, 511, 250]
    for number, length in enumerate(lengths):
        batch_size = 1 + number % 3 if length < 170 else 1
        input_ids = torch.randint(5, 99, (batch_size, length))
        attention_mask = torch.ones_like(input_ids)
        if number % 2:
            attention_mask[0, length * 2 // 3 :] = 0
        answers = []
        for implementation in ("flex_attention", "eager"):
            model.set_attn_implementation(implementation)
            with mode():
                answers.append(model(input_ids, attention_mask=attention_mask).logits[attention_mask.bool()])
        torch.testing.assert_close(*answers, rtol=0, atol=1e-4)
    assert 0 < num_graphs() <= 1
