"""On a CUDA device: every implementation against the eager one on CPU, forward and backward. `pytest -m cuda`."""

import pytest
import torch
from torch._dynamo.utils import counters

from lsg_xlmr import LSGXLMRobertaForMaskedLM


pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def config(tiny_config):
    return tiny_config(hidden_size=64, num_attention_heads=4, block_size=16, sparse_block_size=16)


def make_inputs(padded):
    input_ids = torch.randint(5, 99, (2, 120))
    attention_mask = torch.ones_like(input_ids)
    if padded:
        attention_mask[1, 70:] = 0
    return {"input_ids": input_ids, "attention_mask": attention_mask}


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("sparsity_type", ["none", "norm", "pooling", "bos_pooling", "lsh", "stride", "block_stride"])
@pytest.mark.parametrize("padded", [False, True])
def test_same_numbers_as_on_cpu(config, implementation, sparsity_type, padded):
    config.sparsity_type = sparsity_type
    model = LSGXLMRobertaForMaskedLM(config).eval()
    inputs = make_inputs(padded)
    kept = inputs["attention_mask"].bool()

    def run(device):
        model.zero_grad()
        logits = model.to(device)(**{name: x.to(device) for name, x in inputs.items()}).logits.cpu()
        logits[kept].square().mean().backward()
        return logits[kept].detach(), [p.grad.cpu() for p in model.parameters() if p.grad is not None]

    model.set_attn_implementation("eager")
    expected, expected_gradients = run("cpu")
    model.set_attn_implementation(implementation)
    found, gradients = run("cuda")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    for a, b in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
def test_padding_that_sees_nothing_without_global_tokens(config, implementation):
    config.num_global_tokens = 0
    test_same_numbers_as_on_cpu(config, implementation, "norm", padded=True)


def test_flex_attention_is_the_default(config):
    assert LSGXLMRobertaForMaskedLM(config).config._attn_implementation == "flex_attention"


@pytest.mark.parametrize("with_gradients", [False, True])
def test_one_graph_for_each_length_of_the_ladder(config, with_gradients):
    """Texts of many lengths and batches of many sizes, with holes in their masks, against eager attention."""
    model = LSGXLMRobertaForMaskedLM(config).eval().cuda()
    before = counters["stats"]["unique_graphs"]
    for batch_size in (1, 2, 3, 5, 8):
        for length in (33, 48, 77, 100, 128):
            input_ids = torch.randint(5, 99, (batch_size, length), device="cuda")
            attention_mask = (torch.rand(batch_size, length, device="cuda") > 0.3).long()
            attention_mask[:, 0] = 1
            answers = []
            for implementation in ("flex_attention", "eager"):
                model.set_attn_implementation(implementation)
                model.zero_grad()
                with torch.set_grad_enabled(with_gradients):
                    logits = model(input_ids, attention_mask=attention_mask).logits[attention_mask.bool()]
                if with_gradients:
                    logits.square().mean().backward()
                gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
                answers.append([logits.detach(), *gradients])
            for found, expected in zip(*answers, strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)
    assert counters["stats"]["unique_graphs"] - before <= 2  # 512 and 1,024 tokens


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_step_in_half_precision(config, dtype, dropout):
    config.attention_probs_dropout_prob = dropout
    model = LSGXLMRobertaForMaskedLM(config).to("cuda", dtype).train()
    inputs = {name: x.cuda() for name, x in make_inputs(True).items()}
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
