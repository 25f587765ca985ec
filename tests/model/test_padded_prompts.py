"""A decoder's text that begins with padding gets the answer it gets alone, whatever stands beside it."""

import pytest
import torch
from transformers import DynamicCache

from lsg_xlmr import LSGXLMRobertaForCausalLM
from lsg_xlmr.configuration_lsg import SPARSITY_TYPES
from lsg_xlmr.model.cache import CACHE


LENGTHS = 61, 50, 33, 7


@pytest.fixture
def decoder(tiny_config):
    def make(**fields):
        defaults = {"is_decoder": True, "eos_token_id": None, "sparsity_factor": 4, "num_global_tokens": 2}
        return LSGXLMRobertaForCausalLM(tiny_config(**{**defaults, **fields})).eval()

    return make


@pytest.fixture
def texts(token_ids):
    return [token_ids(1, length) for length in LENGTHS]


def padded(texts, total=max(LENGTHS)):
    """The texts as one batch, with padding before each."""
    ids = torch.ones(len(texts), total, dtype=torch.long)
    for row, text in zip(ids, texts):
        row[total - text.shape[1] :] = text
    return {"input_ids": ids, "attention_mask": (ids != 1).long()}


def assert_as_alone(found, texts, model):
    for row, text in zip(found, texts):
        alone = model(text).logits[0]
        torch.testing.assert_close(row[-len(alone) :], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("sparsity_type", "implementation"), [*((name, "sdpa") for name in SPARSITY_TYPES), ("norm", "eager")]
)
@torch.no_grad()
def test_at_once(decoder, texts, sparsity_type, implementation):
    model = decoder(sparsity_type=sparsity_type, attn_implementation=implementation)
    assert_as_alone(model(**padded(texts)).logits, texts, model)
    # All texts with padding, one of them alone.
    assert_as_alone(model(**padded(texts, 70)).logits, texts, model)
    assert_as_alone(model(**padded(texts[2:3], 40)).logits, texts[2:3], model)


@pytest.mark.parametrize(
    ("sparsity_type", "num_global_tokens", "pieces"),
    [
        *((name, 2, [5, 1, 30, 20, 1, 4]) for name in SPARSITY_TYPES),
        *(("norm", 0, pieces) for pieces in ([40, 21], [5, 1, 30, 20, 1, 4])),
        ("norm", 2, [1] * 61),
    ],
)
@torch.no_grad()
def test_through_a_cache(decoder, texts, sparsity_type, num_global_tokens, pieces):
    """Of the short texts the first pieces are nothing but padding."""
    model = decoder(sparsity_type=sparsity_type, num_global_tokens=num_global_tokens)
    batch, cache, found, stop = padded(texts), DynamicCache(), [], 0
    places = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0) + 2
    for piece in pieces:
        start, stop = stop, stop + piece
        inputs = {
            "input_ids": batch["input_ids"][:, start:stop],
            "attention_mask": batch["attention_mask"][:, :stop],
            "position_ids": places[:, start:stop],
        }
        found.append(model(**inputs, **{CACHE: cache}, use_cache=True).logits)
        assert cache.get_seq_length() == stop
    assert_as_alone(torch.cat(found, 1), texts, model)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}, {"num_return_sequences": 2}])
def test_generation(decoder, texts, options):
    model = decoder()
    if "num_beams" not in options and options:
        options = {**options, "do_sample": True, "top_k": 1}
    found = model.generate(**padded(texts), max_new_tokens=30, **options)
    count = options.get("num_return_sequences", 1)
    for i, text in enumerate(texts):
        alone = model.generate(text, max_new_tokens=30, **options)
        assert torch.equal(found[i * count : (i + 1) * count, -alone.shape[1] :], alone)


@torch.no_grad()
def test_a_mask_that_ends_before_the_new_tokens_is_not_needed(decoder, texts):
    model, batch, cache = decoder(), padded(texts), DynamicCache()
    model(**batch, **{CACHE: cache}, use_cache=True)
    new = torch.full((len(texts), 1), 9)
    places = batch["attention_mask"].sum(1, keepdim=True) + 2
    found = model(new, position_ids=places, **{CACHE: cache}, use_cache=True).logits
    assert_as_alone(found, [torch.cat([text, new[:1]], 1) for text in texts], lambda ids: _last(model(ids)))


def _last(outputs):
    outputs.logits = outputs.logits[:, -1:]
    return outputs


def test_gradients(decoder, texts):
    model, batch = decoder().train(), padded(texts)
    grads = []
    for run in (
        lambda: sum(row[-text.shape[1] :].pow(2).sum() for row, text in zip(model(**batch).logits, texts)),
        lambda: sum(model(text).logits.pow(2).sum() for text in texts),
    ):
        model.zero_grad()
        run().backward()
        grads.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_attention_weights(decoder, texts):
    model = decoder(attn_implementation="eager")
    found = model(**padded(texts), output_attentions=True, use_cache=False).attentions
    for i, text in enumerate(texts):
        alone = model(text, output_attentions=True, use_cache=False).attentions
        for layer, expected in zip(found, alone):
            torch.testing.assert_close(layer[i, :, -text.shape[1] :, -text.shape[1] :], expected[0], rtol=0, atol=1e-5)
            assert not layer[i, :, -text.shape[1] :, : -text.shape[1]].any()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("sparsity_type", ["none", "norm", "bos_pooling", "lsh"])
@torch.no_grad()
def test_a_first_token_that_is_no_key(decoder, texts, sparsity_type, implementation):
    """It is each text's own, not that of the padding, and no padding itself."""
    fields = {"sparsity_type": sparsity_type, "attn_implementation": implementation}
    model, visible = decoder(mask_first_token=True, **fields), decoder(**fields)
    visible.load_state_dict(model.state_dict())
    batch = padded(texts, 70)
    at_once = model(**batch, use_cache=False).logits
    cached = model(**batch, use_cache=True).logits
    for text, *rows in zip(texts, at_once, cached):
        alone = model(text, use_cache=False).logits[0]
        torch.testing.assert_close(model(text, use_cache=True).logits[0], alone, rtol=0, atol=1e-5)
        for row in rows:
            torch.testing.assert_close(row[-len(alone) :], alone, rtol=0, atol=1e-5)
        # Its query sees the globals alone, and no token sees it: as if the others were all there is.
        torch.testing.assert_close(model(text[:, :1], use_cache=False).logits[0], alone[:1], rtol=0, atol=1e-5)
        changed = text.clone()
        changed[:, -1] = text[:, -1] % 90 + 5
        torch.testing.assert_close(model(changed, use_cache=False).logits[0, 0], alone[0], rtol=0, atol=1e-5)
        assert (visible(text, use_cache=False).logits[0] - alone).abs().max() > 1e-3
        changed = text.clone()
        changed[:, 0] = text[:, 0] % 90 + 5
        if sparsity_type != "bos_pooling":  # which weighs by its query
            found = model(changed, use_cache=False).logits[0, 1:]
            torch.testing.assert_close(found, alone[1:], rtol=0, atol=1e-5)
    expected = model.generate(texts[0][:, :1], max_new_tokens=40, do_sample=False, use_cache=False)
    assert torch.equal(model.generate(texts[0][:, :1], max_new_tokens=40, do_sample=False), expected)
