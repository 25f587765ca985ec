"""An encoder given a cache: its keys and values are a prefix, as for stock XLM-RoBERTa."""

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, StaticCache, XLMRobertaModel

from lsg_xlmr import LSGXLMRobertaModel
from lsg_xlmr.model import encoder
from lsg_xlmr.model.cache import CACHE


PREFIX, SHORT, LONG = 5, 11, 45  # blocks are of 8


@pytest.fixture
def prefix():
    """Keys and values `2 2 n h d` of two layers, for two texts."""
    return torch.randn(2, 2, 2, 4, PREFIX, 8, requires_grad=True)


def cache_of(prefix):
    cache = DynamicCache()
    for i, (key, value) in enumerate(prefix):
        cache.update(key, value, i)
    return cache


def masks(length):
    """None, and one that hides the end of the second text and a place of its prefix."""
    mask = torch.ones(2, PREFIX + length, dtype=torch.long)
    mask[1, -4:] = mask[1, 2] = 0
    return {"whole": None, "masked": mask}


def gradients(model, prefix, ids, mask, direction):
    """The last hidden state of what is not masked, and the gradient of the prefix."""
    inputs = {"attention_mask": mask, CACHE: cache_of(prefix)}
    states = model(ids, **inputs).last_hidden_state
    assert states.shape == (*ids.shape, 32)
    kept = states[torch.ones_like(ids).bool() if mask is None else mask[:, PREFIX:].bool()]
    return kept.detach(), torch.autograd.grad((kept * direction).sum(), prefix)[0]


@pytest.mark.parametrize("kind", ["whole", "masked"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_without_globals_it_is_stock(tiny_config, token_ids, prefix, monkeypatch, kind, implementation):
    """To a text within two blocks, by `pool_with_global=False` to the first position."""
    config = tiny_config(num_global_tokens=3, pool_with_global=False)
    model = LSGXLMRobertaModel._from_config(config, attn_implementation=implementation).eval()
    stock = XLMRobertaModel(config).eval()
    stock.load_state_dict(model.state_dict(), strict=False)
    key_mask = encoder.key_mask

    def without_globals(attention_mask, batch_size, length, *args, **kwargs):
        mask = torch.ones(batch_size, length, dtype=torch.long) if attention_mask is None else attention_mask.clone()
        mask[0, PREFIX + 3] = 0  # hides one token, lest nothing be masked
        mask = key_mask(mask, batch_size, length, *args, **kwargs)
        return torch.cat([torch.zeros_like(mask[:, :3]), mask[:, 3:]], 1)

    monkeypatch.setattr(encoder, "key_mask", without_globals)
    ids, mask, direction = token_ids(2, SHORT), masks(SHORT)[kind], torch.randn(32)
    stock_mask = torch.ones(2, PREFIX + SHORT, dtype=torch.long) if mask is None else mask.clone()
    stock_mask[0, PREFIX + 3] = 0
    states, expected = (
        m(ids, attention_mask=x, **{CACHE: cache_of(prefix)}).last_hidden_state
        for m, x in ((model, mask), (stock, stock_mask))
    )
    kept = stock_mask[:, PREFIX:].bool()
    torch.testing.assert_close(states[kept], expected[kept], rtol=0, atol=1e-5)
    found, wanted = (torch.autograd.grad((x[kept] * direction).sum(), prefix)[0] for x in (states, expected))
    assert wanted.abs().max() > 0.01
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["whole", "masked"])
@pytest.mark.parametrize("length", [SHORT, LONG])
@pytest.mark.parametrize("fields", [{}, {"sparsity_type": "lsh"}, {"mask_first_token": True}], ids=str)
def test_all_implementations_agree(tiny_config, token_ids, prefix, kind, length, fields):
    model = LSGXLMRobertaModel(tiny_config(num_global_tokens=2, **fields)).eval()
    ids, mask, direction = token_ids(2, length), masks(length)[kind], torch.randn(32)
    model.set_attn_implementation("eager")
    expected = gradients(model, prefix, ids, mask, direction)
    assert expected[1].abs().amax((0, 1, 2, 3, 5)).min() > 1e-3  # every place of the prefix is seen
    model.set_attn_implementation("sdpa")
    for found, wanted in zip(gradients(model, prefix, ids, mask, direction), expected):
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)
    with torch.no_grad():
        found = model(ids, attention_mask=mask, **{CACHE: cache_of(prefix)}).last_hidden_state
    kept = torch.ones_like(ids).bool() if mask is None else mask[:, PREFIX:].bool()
    torch.testing.assert_close(found[kept], expected[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_an_empty_cache_changes_nothing_and_takes_the_tokens(tiny_config, token_ids):
    model, ids = LSGXLMRobertaModel(tiny_config()).eval(), token_ids(2, LONG)
    for cache in (DynamicCache(), EncoderDecoderCache(DynamicCache(), DynamicCache())):
        found = model(ids, **{CACHE: cache}).last_hidden_state
        torch.testing.assert_close(found, model(ids).last_hidden_state, rtol=0, atol=1e-6)
        assert cache.get_seq_length() == LONG


@torch.no_grad()
def test_positions_begin_after_the_prefix(tiny_config, token_ids, prefix):
    """As stock's do."""
    model, ids = LSGXLMRobertaModel(tiny_config()).eval(), token_ids(2, LONG)
    positions = torch.arange(2 + PREFIX, 2 + PREFIX + LONG).expand(2, -1)
    found, expected = (
        model(ids, position_ids=position_ids, **{CACHE: cache_of(prefix)}).last_hidden_state
        for position_ids in (None, positions)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("mask_length", [LONG, PREFIX + LONG + 1])
def test_a_mask_has_the_prefix_too(tiny_config, token_ids, prefix, mask_length):
    model = LSGXLMRobertaModel(tiny_config())
    with pytest.raises(ValueError, match=r"those in the cache included: \(2, 50\)"):
        mask = torch.ones(2, mask_length)
        model(token_ids(2, LONG), attention_mask=mask, **{CACHE: cache_of(prefix)})


def test_a_static_cache_is_refused(tiny_config, token_ids):
    model = LSGXLMRobertaModel(tiny_config())
    with pytest.raises(ValueError, match="in a DynamicCache, not in a StaticCache"):
        model(token_ids(2, LONG), **{CACHE: StaticCache(model.config, max_cache_len=64)})


@pytest.mark.compile
@pytest.mark.parametrize("length", [SHORT, LONG])
@pytest.mark.parametrize("kind", ["whole", "masked"])
def test_compiled(tiny_config, token_ids, prefix, length, kind):
    model = LSGXLMRobertaModel(tiny_config(num_global_tokens=2)).eval()
    ids, mask, direction = token_ids(2, length), masks(length)[kind], torch.randn(32)
    expected = gradients(model, prefix, ids, mask, direction)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True)
    for found, wanted in zip(gradients(compiled, prefix, ids, mask, direction), expected):
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)
