"""Models without global tokens: stock XLM-RoBERTa within two blocks, and what needs a global token says so."""

import pytest
import torch
from attention_inputs import SPARSITY_TYPES
from transformers import (
    AutoModel,
    DynamicCache,
    XLMRobertaForCausalLM,
    XLMRobertaForMultipleChoice,
    XLMRobertaForQuestionAnswering,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
    XLMRobertaModel,
)

import lsg_xlmr
from lsg_xlmr import LSGConfig, LSGEncoderDecoderModel, LSGXLMRobertaForCausalLM, LSGXLMRobertaModel
from lsg_xlmr.attention.encoder_attention import IMPLEMENTATIONS
from lsg_xlmr.cpu import threads
from lsg_xlmr.model.cache import CACHE


LONG = 45  # tokens; blocks are of 8


@pytest.fixture
def make(tiny_config):
    """A function that makes a model without global tokens."""

    def make(model_class=LSGXLMRobertaModel, implementation="sdpa", **fields):
        config = tiny_config(num_global_tokens=0, **fields)
        return model_class._from_config(config, attn_implementation=implementation).eval()

    return make


def stock_of(model, model_class):
    """The stock model of the same weights."""
    stock = model_class(model.config).eval()
    assert stock.load_state_dict(model.state_dict(), strict=False).missing_keys == []
    return stock


def padded(ids, *lengths):
    mask = torch.zeros_like(ids)
    for row, length in zip(mask, lengths, strict=True):
        row[:length] = 1
    return {"input_ids": ids.where(mask == 1, 1), "attention_mask": mask}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("length", [1, 9, 16])
@torch.no_grad()
def test_within_two_blocks_it_is_stock(make, token_ids, implementation, length):
    model = make(implementation=implementation)
    stock = stock_of(model, XLMRobertaModel)
    stock.set_attn_implementation("eager" if implementation == "eager" else "sdpa")
    for inputs in ({"input_ids": token_ids(2, length)}, padded(token_ids(2, length), length, max(1, length - 5))):
        found, expected = model(**inputs), stock(**inputs)
        kept = inputs.get("attention_mask", torch.ones(2, length)).bool()
        torch.testing.assert_close(found.last_hidden_state[kept], expected.last_hidden_state[kept], rtol=0, atol=1e-5)
        torch.testing.assert_close(found.pooler_output, expected.pooler_output, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "stock_class",
    [
        XLMRobertaForSequenceClassification,
        XLMRobertaForTokenClassification,
        XLMRobertaForQuestionAnswering,
        XLMRobertaForMultipleChoice,
    ],
)
@pytest.mark.parametrize("pool_with_global", [True, False])
@torch.no_grad()
def test_heads_pool_on_the_first_token(make, token_ids, stock_class, pool_with_global):
    model = make(getattr(lsg_xlmr, f"LSG{stock_class.__name__}"), pool_with_global=pool_with_global)
    stock = stock_of(model, stock_class)
    if stock.base_model.pooler is None and model.base_model.pooler is not None:
        pytest.skip("transformers 5.0 builds this stock head without the pooler that it needs")
    ids = token_ids(2, 16)
    ids = ids[:, None].repeat(1, 3, 1) if "MultipleChoice" in stock_class.__name__ else ids
    for one, other in zip(model(ids).to_tuple(), stock(ids).to_tuple(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    if stock_class is XLMRobertaForSequenceClassification:
        long = token_ids(2, LONG)
        torch.testing.assert_close(model(long).logits, model.classifier(model.roberta(long).last_hidden_state))


@pytest.mark.parametrize("sparsity_type", SPARSITY_TYPES)
def test_long_texts_in_every_implementation(make, token_ids, monkeypatch, sparsity_type):
    """Padded, some to nothing, they answer as alone, and train without a NaN."""
    model = make(sparsity_type=sparsity_type, sparsity_factor=4)
    ids, direction = token_ids(3, LONG), torch.randn(32)
    batch = padded(ids, LONG, 19, 0)
    answers = {}
    for name in ("eager", "sdpa", "windows"):
        model.set_attn_implementation("eager" if name == "eager" else "sdpa")
        with monkeypatch.context() as patch:
            if name == "windows":
                patch.setattr(threads, "PIECEWISE_DEVICES", ())
            states = model(**batch).last_hidden_state
        assert states.isfinite().all()
        kept = states[batch["attention_mask"].bool()]
        model.zero_grad()
        (kept * direction).sum().backward()
        gradients = {key: x.grad for key, x in model.named_parameters() if x.grad is not None}
        answers[name] = kept.detach(), gradients
    for kept, gradients in answers.values():
        torch.testing.assert_close(kept, answers["eager"][0], rtol=0, atol=1e-5)
        assert gradients.keys() == answers["eager"][1].keys() and "embeddings.global_embeddings.weight" in gradients
        for key, gradient in gradients.items():
            torch.testing.assert_close(gradient, answers["eager"][1][key], rtol=1e-4, atol=1e-4)
    if sparsity_type != "bos_pooling":  # which sees padding, as in the published code
        alone = torch.cat([model(ids[:1]).last_hidden_state[0], model(ids[1:2, :19]).last_hidden_state[0]])
        torch.testing.assert_close(answers["sdpa"][0], alone.detach(), rtol=0, atol=1e-5)


@torch.no_grad()
def test_attentions_of_long_texts_sum_to_one(make, token_ids):
    outputs = make(implementation="eager")(token_ids(1, LONG), output_attentions=True, output_hidden_states=True)
    for weights in outputs.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(1, 4, LONG), rtol=0, atol=1e-5)
    assert all(states.shape == (1, LONG, 32) for states in outputs.hidden_states)


def test_the_encoder_alone_needs_no_global_states(make, token_ids):
    model = make()
    ids = token_ids(1, LONG)
    found = model.encoder(model.embeddings(ids)).last_hidden_state
    torch.testing.assert_close(found, model(ids).last_hidden_state)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_a_decoder_is_stock_within_two_blocks(make, token_ids, implementation):
    model = make(LSGXLMRobertaForCausalLM, implementation, is_decoder=True)
    ids = token_ids(2, 16)
    torch.testing.assert_close(
        model(ids).logits, stock_of(model, XLMRobertaForCausalLM)(ids).logits, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "windows"])
@pytest.mark.parametrize("pieces", [[20, 1, 30, 10], pytest.param([1] * 61, marks=pytest.mark.slow)], ids=len)
@pytest.mark.parametrize("is_padded", [False, True])
@torch.no_grad()
def test_a_decoder_in_pieces(make, token_ids, monkeypatch, implementation, pieces, is_padded):
    """Through a cache, with padding on the left, what is all at once the answer."""
    model = make(LSGXLMRobertaForCausalLM, is_decoder=True, sparsity_type="pooling", sparsity_factor=4)
    ids, position_ids = token_ids(2, 61), torch.arange(2, 63).expand(2, -1)
    mask = torch.ones_like(ids)
    mask[1, :29] = 0 if is_padded else 1
    expected = model(ids, attention_mask=mask, position_ids=position_ids).logits
    assert expected.isfinite().all()
    model.set_attn_implementation("eager" if implementation == "eager" else "sdpa")
    if implementation == "windows":
        monkeypatch.setattr(threads, "PIECEWISE_DEVICES", ())
    cache, found, stop = DynamicCache(), [], 0
    for piece in pieces:
        start, stop = stop, stop + piece
        inputs = {"attention_mask": mask[:, :stop], "position_ids": position_ids[:, start:stop], CACHE: cache}
        found.append(model(ids[:, start:stop], use_cache=True, **inputs).logits)
    torch.testing.assert_close(torch.cat(found, 1)[mask.bool()], expected[mask.bool()], rtol=0, atol=1e-4)


def test_an_encoder_decoder(tiny_config, token_ids):
    fields = {"num_global_tokens": 0, "sparsity_factor": 4}
    encoder = LSGXLMRobertaModel(tiny_config(**fields))
    decoder = LSGXLMRobertaForCausalLM(tiny_config(is_decoder=True, add_cross_attention=True, **fields))
    model = LSGEncoderDecoderModel(encoder=encoder, decoder=decoder).eval()
    model.config.decoder_start_token_id, model.config.pad_token_id = 0, 1
    batch = padded(token_ids(2, LONG), LONG, 20)
    loss = model(**batch, labels=token_ids(2, 30)).loss
    loss.backward()
    assert loss.isfinite()
    assert all(x.grad.isfinite().all() for x in model.parameters() if x.grad is not None)
    found = model.generate(**batch, max_new_tokens=25, do_sample=False)
    with torch.no_grad():
        logits = model(**batch, decoder_input_ids=found[:, :-1]).logits
    ended = (found[:, 1:] == model.generation_config.eos_token_id).cumsum(1) > 0
    assert torch.equal(logits.argmax(-1)[~ended], found[:, 1:][~ended])


@pytest.mark.parametrize("length", [11, LONG])
@torch.no_grad()
def test_a_prefix(make, token_ids, length):
    """Within two blocks as in stock; past them the same in all implementations."""
    model = make()
    prefix, ids = torch.randn(2, 2, 2, 4, 5, 8), token_ids(2, length)

    def answer(model):
        cache = DynamicCache()
        for i, (key, value) in enumerate(prefix):
            cache.update(key, value, i)
        return model(ids, **{CACHE: cache}).last_hidden_state

    found = answer(model)
    if length == 11:
        torch.testing.assert_close(found, answer(stock_of(model, XLMRobertaModel)), rtol=0, atol=1e-5)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(found, answer(model), rtol=0, atol=1e-5)


def test_what_needs_a_global_token_says_so(tiny_config, make):
    with pytest.raises(ValueError, match="`mask_first_token` needs a global token to stand for <s>, and num_global_"):
        tiny_config(num_global_tokens=0, mask_first_token=True)
    with pytest.raises(ValueError, match="no global tokens to train: load the model with num_global_tokens=1"):
        make().train_global_tokens_only()
    assert all(parameter.requires_grad for parameter in make().parameters())


@torch.no_grad()
def test_the_table_stays_in_the_checkpoint(tiny_config, token_ids, tmp_path):
    """Saved without, loaded with a global token, and the other way around."""
    model = LSGXLMRobertaModel(tiny_config(num_global_tokens=2)).eval()
    model.save_pretrained(tmp_path / "two")
    none = AutoModel.from_pretrained(tmp_path / "two", trust_remote_code=True, num_global_tokens=0)
    none.save_pretrained(tmp_path / "none")
    assert LSGConfig.from_pretrained(tmp_path / "none").num_global_tokens == 0
    again = AutoModel.from_pretrained(tmp_path / "none", trust_remote_code=True, num_global_tokens=2)
    ids = token_ids(2, LONG)
    torch.testing.assert_close(again(ids).last_hidden_state, model(ids).last_hidden_state, rtol=0, atol=1e-6)
    assert not torch.allclose(none(ids).last_hidden_state, model(ids).last_hidden_state, atol=1e-3)
    assert again.embeddings.global_embeddings.weight.equal(model.embeddings.global_embeddings.weight)
