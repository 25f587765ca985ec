"""Decoders: causal LSG attention in the model, its cache, and generation."""

from inspect import signature

import pytest
import torch
from attention_inputs import SPARSITY_TYPES
from repository import TINY
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DynamicCache,
    StaticCache,
    Trainer,
    TrainingArguments,
    XLMRobertaForCausalLM,
)
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaEncoder

from lsg_xlmr import LSGXLMRobertaForCausalLM
from lsg_xlmr.cli import main


# As transformers calls it from 5.24 on, and before.
CACHE = "cache" if "cache" in signature(XLMRobertaForCausalLM.forward).parameters else "past_key_values"

GREEDY = {"do_sample": False, "pad_token_id": 1, "output_logits": True, "return_dict_in_generate": True}

PIECES = {
    "token by token": [1] * 61,
    "at once": [61],
    "whole blocks": [16, 8, 8, 16, 13],
    "across borders": [20, 1, 30, 10],
    "long after short": [7, 1, 1, 40, 12],
}


@pytest.fixture
def decoder(tiny_config):
    """A function that makes a causal model of blocks of 8 with the given fields."""

    def make(model_class=LSGXLMRobertaForCausalLM, **fields):
        defaults = {"is_decoder": True, "eos_token_id": None, "sparsity_factor": 4, "num_global_tokens": 2}
        return model_class(tiny_config(**{**defaults, **fields})).eval()

    return make


def left_padded(ids, *lengths):
    """`ids` with padding before the last `lengths` tokens of each row, and their mask."""
    ids, mask = ids.clone(), torch.ones_like(ids)
    for row, row_mask, length in zip(ids, mask, lengths):
        row[: len(row) - length], row_mask[: len(row) - length] = 1, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("sparsity_type", SPARSITY_TYPES)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_no_logit_knows_a_later_token(decoder, token_ids, sparsity_type, implementation):
    model = decoder(sparsity_type=sparsity_type, attn_implementation=implementation)
    ids = token_ids(2, 61)
    before = model(ids).logits
    for first_changed in (1, 15, 16, 24, 47):
        changed = ids.clone()
        changed[:, first_changed:] = token_ids(2, 61 - first_changed)
        after = model(changed).logits
        assert torch.equal(before[:, :first_changed], after[:, :first_changed])
        assert (before[:, first_changed:] - after[:, first_changed:]).abs().max() > 0.1


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_within_two_blocks_it_is_stock_attention_with_a_prefix(decoder, token_ids, implementation):
    """One global token before the others is one more token to a causal model."""
    model = decoder(num_global_tokens=1, attn_implementation=implementation)
    stock = XLMRobertaEncoder(model.config).eval()
    stock.load_state_dict(model.roberta.encoder.state_dict())
    ids = token_ids(2, 16)
    mask = torch.zeros(17, 17).masked_fill(torch.ones(17, 17).triu(1).bool(), -torch.inf)
    embeddings = model.roberta.embeddings
    prefix = embeddings.LayerNorm(embeddings.global_embeddings.weight[:1]).expand(2, 1, -1)
    states = torch.cat([prefix, embeddings(ids)], 1)
    expected = stock(states, attention_mask=mask.expand(2, 1, -1, -1)).last_hidden_state[:, 1:]
    torch.testing.assert_close(model.roberta(ids).last_hidden_state, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sparsity_type", SPARSITY_TYPES)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
@pytest.mark.parametrize("padded", [False, True], ids=["full", "left-padded"])
@torch.no_grad()
def test_any_pieces_through_a_cache(decoder, token_ids, sparsity_type, implementation, pieces, padded):
    model = decoder(sparsity_type=sparsity_type, attn_implementation=implementation)
    ids = token_ids(2, 61)
    mask = left_padded(ids, 61, 50)["attention_mask"] if padded else None
    position_ids = torch.arange(2, 63).expand(2, -1)
    expected = model(ids, attention_mask=mask, position_ids=position_ids).logits
    cache, found, stop = DynamicCache(), [], 0
    for piece in pieces:
        start, stop = stop, stop + piece
        inputs = {
            "attention_mask": None if mask is None else mask[:, :stop],
            "position_ids": position_ids[:, start:stop],
        }
        found.append(model(ids[:, start:stop], **{CACHE: cache}, use_cache=True, **inputs).logits)
        assert cache.get_seq_length() == stop
    rows = torch.ones(2, 61, dtype=torch.bool) if mask is None else mask.bool()
    torch.testing.assert_close(torch.cat(found, 1)[rows], expected[rows], rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_cache_does_not_grow(decoder, token_ids):
    model = decoder(num_global_tokens=1, sparse_block_size=16)
    cache, sizes = DynamicCache(), []
    ids = token_ids(1, 120)
    for i in range(120):
        model(ids[:, i : i + 1], **{CACHE: cache}, use_cache=True)
        layer = cache.layers[0]
        sizes.append(sum(x.shape[2] for x in (layer.keys, layer.sparse[0])))
    assert max(sizes[40:]) == 1 + 2 * 8 - 1 + 16
    assert layer.keys.untyped_storage().nbytes() + layer.sparse[0].untyped_storage().nbytes() < 60 * 32 * 4


@pytest.mark.parametrize("sparsity_type", SPARSITY_TYPES)
@pytest.mark.parametrize("length", [3, 15, 16, 17, 45])
def test_generation_with_and_without_cache(decoder, token_ids, sparsity_type, length):
    model = decoder(sparsity_type=sparsity_type)
    ids = token_ids(2, length)
    found, expected = (model.generate(ids, max_new_tokens=30, use_cache=use, **GREEDY) for use in (True, False))
    assert torch.equal(found.sequences, expected.sequences)
    for one, other in zip(found.logits, expected.logits):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    logits = model(found.sequences).logits[:, length - 1 : -1]
    torch.testing.assert_close(torch.stack(found.logits, 1), logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 3}, {"do_sample": True}]
)
@pytest.mark.parametrize("padded", [False, True], ids=["full", "left-padded"])
def test_other_ways_to_generate(decoder, token_ids, options, padded):
    model = decoder()
    inputs = left_padded(token_ids(2, 21), 21, 11) if padded else {"input_ids": token_ids(2, 21)}
    results = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        options = {**GREEDY, "max_new_tokens": 30, **options}
        results.append(model.generate(**inputs, use_cache=use_cache, **options))
    found, expected = results
    assert torch.equal(found.sequences, expected.sequences)
    for one, other in zip(found.logits, expected.logits):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_left_padding_changes_nothing_within_two_blocks(decoder, token_ids):
    model = decoder(block_size=32, sparse_block_size=32)
    ids = token_ids(1, 9)
    padded = left_padded(torch.cat([token_ids(2, 11), ids.expand(2, -1)], 1), 20, 9)
    expected = model.generate(ids, max_new_tokens=20, **GREEDY)
    found = model.generate(**padded, max_new_tokens=20, **GREEDY)
    assert torch.equal(found.sequences[1, 11:], expected.sequences[0])
    for one, other in zip(found.logits, expected.logits):
        torch.testing.assert_close(one[1], other[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("padded", [False, True], ids=["full", "left-padded"])
def test_generation_from_embeddings(decoder, token_ids, use_cache, padded):
    model = decoder()
    inputs = left_padded(token_ids(2, 21), 21, 11) if padded else {"input_ids": token_ids(2, 21)}
    expected = model.generate(**inputs, max_new_tokens=20, **GREEDY).sequences[:, 21:]
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    found = model.generate(inputs_embeds=embeds, **inputs, max_new_tokens=20, use_cache=use_cache, **GREEDY)
    assert torch.equal(found.sequences, expected)


@pytest.mark.parametrize("sparsity_type", ["none", "norm"])
def test_the_first_token_alone_sees_the_globals_where_it_is_masked_as_a_key(decoder, token_ids, sparsity_type):
    ids = token_ids(2, 45)
    mask = torch.ones_like(ids)
    mask[1, 1:] = 0  # all that is left of the second text is hidden as a key
    logits = {}
    for implementation in ("sdpa", "eager"):
        torch.manual_seed(0)
        fields = {"mask_first_token": True, "sparsity_type": sparsity_type, "attn_implementation": implementation}
        model = decoder(**fields)
        with torch.no_grad():
            logits[implementation] = model(ids, attention_mask=mask).logits[:, 0]
            torch.testing.assert_close(model(ids[:, :1]).logits[:, 0], logits[implementation], rtol=0, atol=1e-5)
    torch.testing.assert_close(logits["sdpa"], logits["eager"], rtol=0, atol=1e-5)


def test_generation_goes_on_from_a_cache(decoder, token_ids):
    model = decoder()
    expected = model.generate(token_ids(1, 21), max_new_tokens=40, **GREEDY)
    first = model.generate(expected.sequences[:, :21], max_new_tokens=20, **GREEDY)
    found = model.generate(first.sequences, **{CACHE: first[CACHE]}, max_new_tokens=20, **GREEDY)
    assert torch.equal(found.sequences, expected.sequences)


def test_the_stock_decoder_at_a_switch(decoder, token_ids):
    model = decoder(dense_decoder=True)
    stock = XLMRobertaForCausalLM(model.config).eval()
    stock.load_state_dict(model.state_dict(), strict=False)
    ids = token_ids(2, 45)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, stock(ids).logits, rtol=0, atol=1e-5)
    expected = stock.generate(ids, max_new_tokens=5, **GREEDY)
    for use_cache in (True, False):
        found = model.generate(ids, max_new_tokens=5, use_cache=use_cache, **GREEDY)
        torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-5)
        assert torch.equal(found.sequences, expected.sequences)


def test_what_is_no_decoder_does_not_generate(decoder, token_ids):
    with pytest.raises(ValueError, match="load it with is_decoder=True"):
        decoder(is_decoder=False).generate(token_ids(1, 5), max_new_tokens=2)


def test_positions_are_not_given_to_generate(decoder, token_ids):
    with pytest.raises(ValueError, match="counts positions itself, by the attention_mask: leave `position_ids` out"):
        decoder().generate(token_ids(1, 5), position_ids=torch.arange(5)[None], max_new_tokens=2)


def test_what_keeps_no_tokens_is_no_assistant(decoder, token_ids):
    options = {"max_new_tokens": 8, "do_sample": False}
    ids, stock, lsg = token_ids(1, 12), decoder(dense_decoder=True), decoder()
    with pytest.raises(ValueError, match="cannot be an `assistant_model`: .*dense_decoder=True"):
        stock.generate(ids, assistant_model=lsg, **options)
    found = stock.generate(ids, assistant_model=decoder(dense_decoder=True), **options)
    assert torch.equal(found, stock.generate(ids, **options))


def test_caches_that_are_of_no_use(decoder, token_ids):
    model, ids = decoder(), token_ids(1, 20)
    with pytest.raises(ValueError, match="in a DynamicCache, not in a tuple"):
        model(ids, **{CACHE: ((ids, ids),)})
    with pytest.raises(ValueError, match="in a DynamicCache, not in a StaticCache"):
        model.generate(ids, cache_implementation="static", max_new_tokens=2)
    with pytest.raises(ValueError, match="in a DynamicCache, not in a StaticCache"):
        model(ids, **{CACHE: StaticCache(config=model.config, max_cache_len=64)}, use_cache=True)
    cache = decoder(dense_decoder=True)(ids, use_cache=True)[CACHE]
    with pytest.raises(ValueError, match="filled by another attention"):
        model(ids, **{CACHE: cache}, attention_mask=torch.ones(1, 40), use_cache=True)
    cache = model(ids, use_cache=True)[CACHE]
    with pytest.raises(ValueError, match="dense_decoder=True"):
        cache.crop(-3)
    with pytest.raises(ValueError, match=r"shape \(1, 20\).*those in the cache included: \(1, 40\)"):
        model(ids, **{CACHE: cache}, attention_mask=torch.ones(1, 20), use_cache=True)
    with pytest.raises(ValueError, match="use_cache=False"):
        model(ids, **{CACHE: cache}, output_attentions=True)


def test_a_cache_is_used_again(decoder, token_ids):
    model, ids = decoder(), token_ids(2, 30)
    with torch.no_grad():
        expected = model(ids).logits
        cache = DynamicCache()
        model(token_ids(2, 33), **{CACHE: cache})
        cache.reset()
        torch.testing.assert_close(model(ids, **{CACHE: cache}).logits, expected, rtol=0, atol=1e-5)
        cache.batch_select_indices(torch.tensor([1]))
        cache.batch_repeat_interleave(2)
        found = model(ids[1:, :5].expand(2, -1), **{CACHE: cache}).logits
        expected = model(torch.cat([ids, ids[:, :5]], 1)).logits[1:, 30:].expand(2, -1, -1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": False}, {"use_reentrant": True}])
def test_training(decoder, token_ids, checkpointing):
    """The loss's gradients with eager attention, the definition, are those without."""
    ids = token_ids(2, 45)

    def gradients(implementation, checkpointing=None):
        torch.manual_seed(0)
        model = decoder(attn_implementation=implementation).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
        loss = model(ids, labels=ids).loss
        loss.backward()
        return loss.item(), {name: x.grad for name, x in model.named_parameters() if x.grad is not None}

    (loss, found), (expected_loss, expected) = gradients("sdpa", checkpointing), gradients("eager")
    assert abs(loss - expected_loss) < 1e-5 and found.keys() == expected.keys()
    assert found["roberta.embeddings.global_embeddings.weight"][:2].abs().max() > 0
    for name, grad in found.items():
        torch.testing.assert_close(grad, expected[name], rtol=0, atol=1e-5, msg=lambda text: f"{name}: {text}")


def test_attention_weights_and_hidden_states(decoder, token_ids):
    outputs = decoder()(token_ids(2, 45), output_attentions=True, output_hidden_states=True, use_cache=False)
    assert [x.shape for x in outputs.attentions] == [(2, 4, 45, 45)] * 2
    for weights in outputs.attentions:
        assert weights.triu(1).abs().max() == 0
        assert 0 < weights.sum(-1).min() and weights.sum(-1).max() < 1  # the rest is the globals'
    assert [x.shape for x in outputs.hidden_states] == [(2, 45, 32)] * 3


def test_a_longer_text_than_positions(decoder, token_ids):
    model = decoder()
    cache = model(token_ids(1, 120), use_cache=True)[CACHE]
    with pytest.raises(ValueError, match="has 130 tokens, but the model has positions for 128"):
        model(token_ids(1, 10), **{CACHE: cache})


def test_converted_trained_by_trainer_at_4096_tokens_and_generating(tmp_path):
    fields = "{'is_decoder': True, 'num_hidden_layers': 1}"
    options = ["--architecture", "LSGXLMRobertaForCausalLM", "--model_kwargs", fields, "--run_test"]
    assert main(["--initial_model", str(TINY), "--model_name", str(tmp_path / "decoder"), *options]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "decoder")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "decoder", trust_remote_code=True)
    assert model.config.is_decoder and model.config.max_sequence_length == 4096
    text = "Paris is the capital of France. The Seine flows through France. " * 300
    data = [{"input_ids": tokenizer(text, truncation=True, max_length=4096)["input_ids"]}] * 8
    assert len(data[0]["input_ids"]) == 4096
    arguments = TrainingArguments(
        str(tmp_path / "run"),
        max_steps=8,
        learning_rate=3e-3,
        per_device_train_batch_size=1,
        gradient_checkpointing=True,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=data,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] / 2
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-8", trust_remote_code=True).eval()
    ids = torch.tensor([data[0]["input_ids"][:4000]])
    found = again.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
    assert found.shape == (1, 4020) and len(found[0, 4000:].unique()) > 1
