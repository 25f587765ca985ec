"""FlexAttention of packed texts: what is compiled, gradients through the packing, and what stands in for it."""

import logging
import threading

import pytest
import torch
from attention_inputs import HEAD_DIM, HEADS, SPARSITY_TYPES, attend, make_inputs
from flex_on_cpu import uncompiled_flex_attention, use_flex_on_cpu
from reference import dense_lsg_attention
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention.flex_attention import create_block_mask, create_mask
from torch.nn.functional import scaled_dot_product_attention

from lsg_xlmr import LSGXLMRobertaModel
from lsg_xlmr.attention import encoder_attention, flex, packed


@pytest.fixture
def counter(monkeypatch):
    """Compiling by a backend that runs the graphs as they are and counts them."""
    torch._dynamo.reset()
    flex._kernel.cache_clear()
    use_flex_on_cpu(monkeypatch, compiled=True)
    counter, compile = CompileCounterWithBackend("eager"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, mode=None, **options: compile(f, backend=counter, **options))
    yield counter
    flex._kernel.cache_clear()


def dense_in_the_place_of_flex(query, key, value, block_mask, scale):
    """The same product with gradients on CPU, of all pairs that the tiles leave."""
    sizes = query.shape[2], key.shape[2]
    mask = create_mask(block_mask.mask_mod, 1, query.shape[1], *sizes, device="cpu")
    tiles = block_mask.to_dense().bool().repeat_interleave(packed.TILE, -2).repeat_interleave(packed.TILE, -1)
    context = scaled_dot_product_attention(query, key, value, mask & tiles, scale=scale)
    return torch.where((mask & tiles).any(-1, keepdim=True), context, 0)


@pytest.mark.parametrize("longest", [16384, 64], ids=["one sequence", "a sequence a text"])
@pytest.mark.parametrize("lengths", [None, (48, 21), (3, 40)], ids=["full", "padded", "mostly padded"])
@pytest.mark.parametrize("sparsity_type", SPARSITY_TYPES)
def test_gradients_through_the_packing(tiny_config, monkeypatch, sparsity_type, lengths, longest):
    use_flex_on_cpu(monkeypatch)
    monkeypatch.setattr(flex, "compiled_flex_attention", dense_in_the_place_of_flex)
    monkeypatch.setattr(packed, "LONGEST", longest)
    monkeypatch.setattr(packed, "SHORTEST", 128)
    config = tiny_config(
        sparsity_type=sparsity_type, sparsity_factor=4, num_global_tokens=2, max_position_embeddings=66
    )
    inputs, mask, projections = make_inputs(config, 48, lengths)
    token_mask = torch.ones(2, 48, dtype=torch.bool) if mask is None else mask[:, 2:]
    rows = torch.ones(2, 50, dtype=torch.bool) if mask is None else mask
    direction = torch.randn(2, 50, HEADS, HEAD_DIM).double()

    def answers(function):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        context = function(*leaves).double()[rows]
        (context * direction[rows]).sum().backward()
        return [context, *(x.grad for x in leaves)]

    def reference(query, key, value):
        return dense_lsg_attention(query, key, value, token_mask, config, projections)[0].transpose(1, 2)

    found = answers(lambda *x: attend(*x, mask, projections, config, "flex_attention")[0])
    for actual, wanted in zip(found, answers(reference)):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=2e-5)


def test_texts_masks_and_batches_share_the_graph_of_a_length(tiny_config, counter):
    lengths = set()
    for sparsity_type in ("norm", "lsh", "bos_pooling", "stride"):
        for t, texts in ((24, None), (40, (40, 1)), (104, (50, 104)), (248, None), (256, (7, 256)), (504, (3, 504))):
            config = tiny_config(sparsity_type=sparsity_type)
            inputs, mask, projections = make_inputs(config, t, texts)
            for batch in (slice(0, 1), slice(0, 2)):
                some = [x[batch] for x in inputs]
                with torch.no_grad():
                    attend(*some, None if mask is None else mask[batch], projections, config, "flex_attention")
                lengths.add(packed.rung(t * len(some[0])))
    assert lengths == {512, 1024}
    assert counter.frame_count == 2


def test_block_sizes_share_it_too(tiny_config, counter):
    for block_size in (8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96):
        config = tiny_config(block_size=block_size, sparse_block_size=block_size, num_global_tokens=3)
        with torch.no_grad():
            attend(*(x[:1] for x in make_inputs(config, 3 * block_size)[0]), None, None, config, "flex_attention")
    assert counter.frame_count == 1


@pytest.mark.slow
def test_no_number_of_sizes_is_too_many(tiny_config, counter):
    """torch compiles the code of a function eight times, and then runs it as it is."""
    sizes = set()
    for repeat in range(2):
        for num_global_tokens in range(1, 72, 6):
            config = tiny_config(num_global_tokens=num_global_tokens)
            inputs, _, _ = make_inputs(config, 40)
            with torch.no_grad():
                found = attend(*inputs, None, None, config, "flex_attention")[0]
                torch.testing.assert_close(found, attend(*inputs, None, None, config, "eager")[0], rtol=0, atol=1e-5)
            sizes.add(packed.Packing(2, 40, num_global_tokens, 4, 8, 8).sections)
    assert counter.frame_count == len(sizes) > 8


def test_a_kernel_is_never_left_for_single_operations(counter):
    """Where all else is the same and a constant of the mask differs each time, the limit is an error."""
    query = torch.randn(1, 2, 512, 16)

    def run(constant):
        mask = create_block_mask(lambda b, h, q, k: q + constant > k, None, None, 512, 512, device="cpu")
        with torch.no_grad():
            return flex.compiled_flex_attention(query, query, query, mask, 0.25)

    with pytest.raises(Exception, match="limit|fullgraph"):
        for constant in range(1, 20):
            run(constant)


def test_inference_mode_autocast_and_training_have_graphs_of_their_own_kinds(tiny_config, counter):
    config = tiny_config(sparsity_type="bos_pooling")
    inputs, mask, _ = make_inputs(config, 48, (48, 21), torch.bfloat16)
    expected = attend(*(x.float() for x in inputs), mask, None, config, "eager")[0]
    for context in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with context(), torch.autocast("cpu", torch.bfloat16):
            found = attend(*inputs, mask, None, config, "flex_attention")[0]
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found[mask].float(), expected[mask], rtol=0, atol=2e-2)
    assert counter.frame_count <= 2


def test_dropout_is_announced_and_exact(tiny_config, monkeypatch, caplog):
    use_flex_on_cpu(monkeypatch)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    config = tiny_config()
    inputs, _, _ = make_inputs(config, 48)
    torch.manual_seed(0)
    found = attend(*inputs, None, None, config, "flex_attention", dropout=0.25)[0]
    torch.manual_seed(0)
    assert torch.equal(found, attend(*inputs, None, None, config, "sdpa", dropout=0.25)[0])
    attend(*inputs, None, None, config, "flex_attention", dropout=0.25)
    (record,) = caplog.records
    assert "attention_probs_dropout_prob=0.0" in record.message and "5.1 times" in record.message


@pytest.mark.slow
def test_a_compiled_model_has_windows(tiny_config, token_ids, monkeypatch):
    use_flex_on_cpu(monkeypatch)

    def unexpected(*args):
        raise AssertionError("FlexAttention within a graph, of which sizes may be symbols")

    monkeypatch.setattr(encoder_attention, "flex_attention", unexpected)
    model = LSGXLMRobertaModel(tiny_config(), add_pooling_layer=False).eval()
    model.set_attn_implementation("flex_attention")
    ids = token_ids(2, 45)
    with torch.no_grad():
        found = torch.compile(model, backend="eager", dynamic=True)(ids).last_hidden_state
        model.set_attn_implementation("eager")
        torch.testing.assert_close(found, model(ids).last_hidden_state, rtol=0, atol=1e-5)


def test_a_model_runs_it_on_the_thread_that_called(tiny_config, token_ids, monkeypatch):
    """Torch's kernels for CPUs have memory for as many threads as there were when they were compiled."""
    use_flex_on_cpu(monkeypatch)
    threads = []

    def noted(*args):
        threads.append(threading.get_ident())
        return uncompiled_flex_attention(*args)

    monkeypatch.setattr(flex, "compiled_flex_attention", noted)
    model = LSGXLMRobertaModel(tiny_config(), add_pooling_layer=False).eval()
    model.set_attn_implementation("flex_attention")
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            model(token_ids(1, 45))
    finally:
        torch.set_num_threads(num_threads)
    assert threads == [threading.get_ident()] * 2
