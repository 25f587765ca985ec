"""What holds for every configuration, length and mask: hypothesis chooses, brute force says what is right."""

import pytest
import torch
from attention_inputs import SPARSITY_TYPES, attend as attend_encoder, make_inputs
from hypothesis import assume, given, settings, strategies as st
from reference import dense_lsg_attention
from torch.nn.functional import pad, scaled_dot_product_attention

from lsg_xlmr import LSGConfig, LSGXLMRobertaForCausalLM, LSGXLMRobertaModel
from lsg_xlmr.attention.causal_attention import causal_attention
from lsg_xlmr.attention.causal_pattern import CausalInputs


TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# The same examples on every machine; no limit on time, which is the machine's.
SETTINGS = {"derandomize": True, "deadline": None, "database": None}
IMPLEMENTATIONS = st.sampled_from(["eager", "sdpa"])


@st.composite
def configurations(draw, **fields):
    """Every valid configuration of small blocks."""
    block_size = draw(st.integers(1, 9))
    fields = {
        "sparsity_type": draw(st.sampled_from(SPARSITY_TYPES)),
        "block_size": block_size,
        "sparse_block_size": draw(st.integers(0, 12)),
        "sparsity_factor": draw(st.sampled_from([f for f in range(1, block_size + 1) if block_size % f == 0])),
        "num_global_tokens": draw(st.integers(0, 4)),
        "lsh_num_pre_rounds": draw(st.integers(0, 2)),
        "lsh_seed": draw(st.integers(0, 3)),
        **fields,
    }
    small = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    small |= {"intermediate_size": 37, "max_position_embeddings": 90, "type_vocab_size": 1, "initializer_range": 0.2}
    small |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    try:
        return LSGConfig(**small, **fields)
    except ValueError:
        assume(False)


@st.composite
def masks(draw, length, block_size):
    """`(2, length)`, `True` where a token may be seen, or `None`."""
    kind = draw(st.sampled_from(["none", "right", "left", "holes", "blocks", "all but one", "one whole text"]))
    if kind == "none":
        return None
    mask = torch.ones(2, length, dtype=torch.bool)
    for row in mask:
        if kind in ("right", "left"):
            hidden = draw(st.integers(0, length - 1))
            row[slice(length - hidden, None) if kind == "right" else slice(hidden)] = False
        elif kind == "holes":
            row[:] = torch.tensor(draw(st.lists(st.booleans(), min_size=length, max_size=length)))
        elif kind == "blocks":
            blocks = [draw(st.booleans()) for _ in range(0, length, block_size)]
            row[:] = torch.tensor(blocks).repeat_interleave(block_size)[:length]
        elif kind == "all but one":
            row[:] = False
            row[draw(st.integers(0, length - 1))] = True
    if kind == "one whole text":
        mask[draw(st.integers(0, 1))] = False
    return mask


@st.composite
def cases(draw, causal=False, **fields):
    """A configuration, a length it takes, a mask of the tokens and a seed."""
    config = draw(configurations(is_decoder=causal, **fields))
    length = draw(st.integers(1, 40))
    if not causal and length > 2 * config.block_size:
        length = -(-length // config.block_size) * config.block_size
    return config, length, draw(masks(length, config.block_size)), draw(st.integers(0, 999))


def attend(query, key, value, mask, projections, config, implementation):
    if not config.is_decoder:
        return attend_encoder(query, key, value, mask, projections, config, implementation)[0]
    inputs = CausalInputs(query, key, value, mask, config, query.shape[-1] ** -0.5, 0.0, projections)
    return causal_attention(inputs, implementation)[0]


def compare(case, implementation, dtype, with_gradients=False):
    config, length, token_mask, seed = case
    torch.manual_seed(seed)
    tensors, _, projections = make_inputs(config, length, dtype=dtype)
    prefix = config.num_global_tokens
    mask = None if token_mask is None else pad(token_mask, (prefix, 0), value=True)
    before = [x.clone() for x in tensors]
    leaves = [x.clone().requires_grad_(with_gradients) for x in tensors]
    context = attend(*leaves, mask, projections, config, implementation)
    assert context.isfinite().all()
    seen = torch.ones(2, length, dtype=torch.bool) if mask is None else token_mask
    others = [x.clone().requires_grad_(with_gradients) for x in tensors]
    expected, _ = dense_lsg_attention(*others, seen, config, projections, causal=config.is_decoder)
    expected = expected.transpose(1, 2)
    rows = torch.cat([torch.ones(2, prefix, dtype=torch.bool), seen], 1)
    torch.testing.assert_close(context[rows].double(), expected[rows], rtol=0, atol=TOLERANCES[dtype])
    if with_gradients:
        probe = torch.randn(context[rows].shape)
        (context[rows] * probe).sum().backward()
        (expected[rows] * probe).sum().backward()
        for found, right in zip(leaves, others):
            assert found.grad.isfinite().all()
            torch.testing.assert_close(found.grad, right.grad, rtol=0, atol=1e-4)
    for x, leaf, unchanged in zip(tensors, leaves, before):
        assert torch.equal(x, unchanged) and torch.equal(leaf, unchanged)


@settings(max_examples=150, **SETTINGS)
@given(st.one_of(cases(), cases(causal=True)), IMPLEMENTATIONS)
def test_outputs_and_gradients_are_those_of_the_reference(case, implementation):
    compare(case, implementation, torch.float32, with_gradients=True)


@settings(max_examples=80, **SETTINGS)
@given(st.one_of(cases(), cases(causal=True)), IMPLEMENTATIONS, st.sampled_from([torch.float16, torch.bfloat16]))
def test_half_precision(case, implementation, dtype):
    compare(case, implementation, dtype)


@settings(max_examples=80, **SETTINGS)
@given(st.one_of(cases(), cases(causal=True)), IMPLEMENTATIONS, st.sampled_from([1.0, 30.0, 1000.0, 60000.0]))
def test_extreme_activations_stay_finite_where_stocks_do(case, implementation, scale):
    config, length, token_mask, seed = case
    torch.manual_seed(seed)
    tensors, _, projections = make_inputs(config, length)
    query, key, value = ((x.clamp(-1, 1) * scale).half() for x in tensors)
    scaling = query.shape[-1] ** -0.5
    if implementation == "eager":  # as transformers has it
        stock = (query @ key.transpose(2, 3) * scaling).softmax(-1) @ value
    else:
        stock = scaled_dot_product_attention(query, key, value)
    mask = None if token_mask is None else pad(token_mask, (config.num_global_tokens, 0), value=True)
    found = attend(query, key, value, mask, projections, config, implementation)
    assert found.isfinite().all() or not stock.isfinite().all()


# A run of padding counts as one sparse token there, as in the published code: see docs/compatibility.md.
INDEPENDENT = st.sampled_from([kind for kind in SPARSITY_TYPES if kind not in ("bos_pooling", "lsh")])


@settings(max_examples=80, **SETTINGS)
@given(st.data(), IMPLEMENTATIONS, st.booleans())
@torch.no_grad()
def test_a_text_does_not_know_its_batch_or_its_padding(data, implementation, is_decoder):
    config = data.draw(configurations(sparsity_type=data.draw(INDEPENDENT), is_decoder=is_decoder))
    config._attn_implementation = implementation
    torch.manual_seed(data.draw(st.integers(0, 999)))
    model = (LSGXLMRobertaForCausalLM if is_decoder else LSGXLMRobertaModel)(config).eval()
    lengths = data.draw(st.lists(st.integers(1, 60), min_size=2, max_size=3))
    ids = torch.full((len(lengths), max(lengths) + data.draw(st.integers(0, 20))), 1)
    for row, length in zip(ids, lengths):
        row[:length] = torch.randint(5, 99, (length,))
    inputs = {"input_ids": ids, "attention_mask": (ids != 1).long()}
    before = {name: x.clone() for name, x in inputs.items()}
    found = model(**inputs)[0]
    assert found.isfinite().all()
    assert all(torch.equal(inputs[name], before[name]) for name in inputs)
    for row, length, states in zip(ids, lengths, found):
        alone = model(row[None, :length])[0][0]
        torch.testing.assert_close(states[:length], alone, rtol=0, atol=1e-5)


@pytest.fixture
def threads():
    """Sets torch's number of threads, and back."""
    number = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(number)


@pytest.mark.parametrize(
    "sparsity_type",
    [name if name == "norm" else pytest.param(name, marks=pytest.mark.slow) for name in SPARSITY_TYPES],
)
@pytest.mark.parametrize("is_decoder", [False, True], ids=["encoder", "decoder"])
def test_one_thread_or_two(tiny_config, token_ids, threads, sparsity_type, is_decoder):
    model_class = LSGXLMRobertaForCausalLM if is_decoder else LSGXLMRobertaModel
    model = model_class(tiny_config(sparsity_type=sparsity_type, is_decoder=is_decoder)).eval()
    ids, results = token_ids(3, 90), []
    for number in (1, 2):
        threads(number)
        model.zero_grad()
        with torch.no_grad():
            answer = model(ids)[0]
        model(ids)[0].square().sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append({"answer": answer, **gradients})
    for name, value in results[0].items():
        scale = max(1.0, float(value.abs().max()))
        torch.testing.assert_close(results[1][name], value, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("sparsity_type", SPARSITY_TYPES)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_inference_mode_then_training(tiny_config, token_ids, sparsity_type, implementation):
    model = LSGXLMRobertaModel(
        tiny_config(sparsity_type=sparsity_type, lsh_seed=5, attn_implementation=implementation)
    )
    ids = token_ids(2, 60)
    with torch.inference_mode():
        model.eval()(ids)
    model.train()(ids).last_hidden_state.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.encoder.parameters())


@pytest.mark.parametrize("is_decoder", [False, True], ids=["encoder", "decoder"])
def test_second_derivatives_are_right_or_an_error(tiny_config, token_ids, is_decoder):
    model_class = LSGXLMRobertaForCausalLM if is_decoder else LSGXLMRobertaModel
    model = model_class(tiny_config(is_decoder=is_decoder, attn_implementation="eager")).double().eval()
    embeds = model.get_input_embeddings()(token_ids(1, 30)).detach().requires_grad_()
    direction = torch.randn_like(embeds)

    def gradient(x):
        return torch.autograd.grad(model(inputs_embeds=x)[0].square().sum(), x, create_graph=True)[0]

    found = torch.autograd.grad((gradient(embeds) * direction).sum(), embeds)[0]
    step = 1e-5 * direction
    expected = (gradient(embeds + step) - gradient(embeds - step)).detach() / 2e-5
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    model.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match="no second derivatives. Load .* attn_implementation='eager'"):
        torch.autograd.grad((gradient(embeds) * direction).sum(), embeds)


@pytest.mark.parametrize("is_decoder", [False, True], ids=["encoder", "decoder"])
def test_torch_func_works_or_says_how(tiny_config, token_ids, is_decoder):
    model_class = LSGXLMRobertaForCausalLM if is_decoder else LSGXLMRobertaModel
    model = model_class(tiny_config(is_decoder=is_decoder)).eval()
    parameters, ids = dict(model.named_parameters()), token_ids(2, 60)

    def loss(parameters):
        return torch.func.functional_call(model, parameters, (ids,))[0].square().sum()

    with pytest.raises(RuntimeError, match="torch.func cannot .* attn_implementation='eager'"):
        torch.func.grad(loss)(parameters)
    model.set_attn_implementation("eager")
    found = torch.func.grad(loss)(parameters)
    loss(parameters).backward()
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-4)
