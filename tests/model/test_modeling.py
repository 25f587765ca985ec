"""The models behave as transformers' own, within two blocks (12 tokens) and past them (43, not a multiple of 8)."""

import logging
import warnings

import pytest
import torch
from transformers import AutoModel, XLMRobertaForMaskedLM, XLMRobertaModel

import lsg_xlmr
from lsg_xlmr import (
    LSGAttention,
    LSGXLMRobertaForCausalLM,
    LSGXLMRobertaForMaskedLM,
    LSGXLMRobertaForMultipleChoice,
    LSGXLMRobertaForQuestionAnswering,
    LSGXLMRobertaForSequenceClassification,
    LSGXLMRobertaForTokenClassification,
    LSGXLMRobertaModel,
)
from lsg_xlmr.cpu import threads


SHORT, LONG = 12, 43
LENGTHS = pytest.mark.parametrize("length", [SHORT, LONG])
HEADS = {
    LSGXLMRobertaForMaskedLM: lambda n, t: {"labels": torch.randint(5, 99, (n, t))},
    LSGXLMRobertaForCausalLM: lambda n, t: {"labels": torch.randint(5, 99, (n, t))},
    LSGXLMRobertaForSequenceClassification: lambda n, t: {"labels": torch.arange(n) % 2},
    LSGXLMRobertaForTokenClassification: lambda n, t: {"labels": torch.randint(0, 2, (n, t))},
    LSGXLMRobertaForQuestionAnswering: lambda n, t: {
        "start_positions": torch.arange(n),
        "end_positions": torch.arange(n) + 3,
    },
    LSGXLMRobertaForMultipleChoice: lambda n, t: {"labels": torch.arange(n) % 3},
}
ALL_CLASSES = [LSGXLMRobertaModel, *HEADS]
every_class = pytest.mark.parametrize("model_class", ALL_CLASSES, ids=lambda c: c.__name__)
every_head = pytest.mark.parametrize("model_class", HEADS, ids=lambda c: c.__name__)


def make_inputs(model_class, length, n=2, padded=False):
    shape = (n, 3, length) if model_class is LSGXLMRobertaForMultipleChoice else (n, length)
    inputs = {"input_ids": torch.randint(5, 99, shape), "attention_mask": torch.ones(shape, dtype=torch.long)}
    if padded:
        inputs["attention_mask"][-1, ..., length // 2 :] = 0
        inputs["input_ids"][-1, ..., length // 2 :] = 1
    return inputs


def tensors(outputs):
    return [x for x in outputs.to_tuple() if isinstance(x, torch.Tensor)]


@LENGTHS
@every_class
def test_saved_and_loaded(tiny_config, model_class, length, tmp_path):
    model = model_class(tiny_config()).eval()
    inputs = make_inputs(model_class, length)
    for options in ({}, {"max_shard_size": "10KB"}):
        model.save_pretrained(tmp_path / "saved", **options)
        loaded, info = model_class.from_pretrained(tmp_path / "saved", output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
        with torch.no_grad():
            found, expected = tensors(loaded.eval()(**inputs)), tensors(model(**inputs))
        # Not bit for bit: how a CPU sums may depend on where in memory the weights lie.
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@every_head
def test_a_head_is_new_and_the_encoder_carried_over(tiny_config, model_class, tmp_path):
    base = LSGXLMRobertaModel(tiny_config())
    base.save_pretrained(tmp_path)
    model, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    missing = {key.split(".")[0] for key in info["missing_keys"]}
    assert missing <= {"classifier", "qa_outputs", "lm_head"} and missing
    for name, parameter in model.roberta.named_parameters():
        assert torch.equal(parameter, base.get_parameter(name))


def test_new_weights_are_drawn_as_transformers_draws_them(tiny_config, tmp_path):
    XLMRobertaModel(tiny_config()).save_pretrained(tmp_path)
    model, info = LSGXLMRobertaModel.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {"embeddings.global_embeddings.weight"}
    assert 0.15 < model.embeddings.global_embeddings.weight.std() < 0.25  # initializer_range=0.2


def test_word_embeddings_are_tied_and_resized(tiny_config, token_ids, tmp_path):
    model = LSGXLMRobertaForMaskedLM(tiny_config())
    assert model.lm_head.decoder.weight is model.get_input_embeddings().weight
    assert model.lm_head.decoder.bias is model.lm_head.bias
    model.resize_token_embeddings(105)
    assert model(token_ids(1, LONG)).logits.shape == (1, LONG, 105)
    assert model.lm_head.decoder.weight is model.get_input_embeddings().weight
    new = torch.nn.Embedding(105, 32)
    model.set_input_embeddings(new)
    assert model.get_input_embeddings() is new and model.roberta.embeddings.word_embeddings is new


@LENGTHS
@every_class
def test_padding_and_batching_change_nothing(tiny_config, model_class, length):
    model = model_class(tiny_config()).eval()
    inputs = make_inputs(model_class, length, padded=True)
    with torch.no_grad():
        batch = model(**inputs)
        for i, kept in enumerate((length, length // 2)):
            single = model(**{name: x[i : i + 1, ..., :kept] for name, x in inputs.items()})
            for found, expected in zip(tensors(batch), tensors(single), strict=True):
                found = found[i : i + 1]
                if found.shape != expected.shape:
                    found = found[:, :kept]
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@LENGTHS
@every_class
def test_the_same_twice_and_as_a_tuple(tiny_config, model_class, length):
    model = model_class(tiny_config()).eval()
    inputs = make_inputs(model_class, length, padded=True)
    first, second = model(**inputs), model(**inputs)
    as_tuple = model(**inputs, return_dict=False)
    assert isinstance(as_tuple, tuple)
    for a, b, c in zip(first.to_tuple(), second.to_tuple(), as_tuple, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@LENGTHS
@every_head
def test_training(tiny_config, model_class, length):
    model = model_class(tiny_config(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)).train()
    loss = model(**make_inputs(model_class, length, padded=True), **HEADS[model_class](2, length)).loss
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    global_rows = model.roberta.embeddings.global_embeddings.weight.grad.abs().sum(1)
    assert global_rows[0] > 0 and not global_rows[1:].any()


@LENGTHS
@pytest.mark.parametrize("positions", [3, 20, 1000])
def test_without_gradients_the_numbers_are_the_same(tiny_config, length, positions, monkeypatch):
    """What follows attention then runs some positions at a time."""
    monkeypatch.setattr(threads, "POSITIONS", positions)
    monkeypatch.setattr(threads, "POSITIONS_SHARED", positions)
    model = LSGXLMRobertaModel(tiny_config()).eval()
    inputs = make_inputs(type(model), length, padded=True)
    expected = model(**inputs)
    with torch.no_grad():
        found = model(**inputs)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=1e-5)


@pytest.mark.parametrize("probability", [0.0, 1e-9, 0.1, 1 / 3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_hidden_dropout(tiny_config, probability, dtype):
    dropout = LSGXLMRobertaModel(tiny_config(hidden_dropout_prob=probability)).embeddings.dropout
    hidden_states = torch.ones(101, 103, 7, dtype=dtype, requires_grad=True)  # not a multiple of four elements
    assert torch.equal(dropout.eval()(hidden_states), hidden_states)
    dropout.train()
    torch.manual_seed(1)
    first = dropout(hidden_states)
    torch.manual_seed(1)
    assert torch.equal(dropout(hidden_states), first)
    dropped = first == 0
    assert dropped.float().mean().item() == pytest.approx(probability, abs=0.005)
    kept = torch.full_like(first[~dropped], 1 / (1 - probability) if probability < 1 else 0.0)
    torch.testing.assert_close(first[~dropped], kept, rtol=0.005, atol=0)
    first.sum().backward()
    assert torch.equal(hidden_states.grad, first)


def test_hidden_dropout_whatever_the_default_device_and_dtype(tiny_config):
    dropout = LSGXLMRobertaModel(tiny_config(hidden_dropout_prob=0.1)).embeddings.dropout.train()
    hidden_states = torch.ones(100, 100, 8)
    torch.manual_seed(1)
    expected = dropout(hidden_states)
    torch.manual_seed(1)
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("meta"):
            found = dropout(hidden_states)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


@LENGTHS
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(tiny_config, length, use_reentrant):
    model = LSGXLMRobertaForMaskedLM(tiny_config(attention_probs_dropout_prob=0.1)).train()
    inputs = {**make_inputs(type(model), length, padded=True), **HEADS[type(model)](2, length)}

    def gradients():
        torch.manual_seed(0)
        model.zero_grad()
        model(**inputs).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = gradients()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    for a, b in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@LENGTHS
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_hidden_states_and_attentions(tiny_config, length, implementation):
    config = tiny_config(num_global_tokens=3)
    model = LSGXLMRobertaModel._from_config(config, attn_implementation=implementation)
    inputs = make_inputs(type(model), length)
    outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert [x.shape for x in outputs.hidden_states] == [(2, length, 32)] * 3
    assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
    assert [x.shape for x in outputs.attentions] == [(2, 4, length, length)] * 2
    # The rest is the globals'.
    assert 0 < outputs.attentions[0].sum(-1).min() and outputs.attentions[0].sum(-1).max() < 1
    kept = outputs.hidden_states[0], outputs.attentions[0]
    for x in kept:
        x.retain_grad()
    outputs.last_hidden_state.flatten()[40].backward()
    assert all(x.grad is not None and x.grad.any() for x in kept)


def test_hidden_states_do_not_change_the_answer(tiny_config, token_ids):
    model = LSGXLMRobertaModel(tiny_config()).eval()
    ids = token_ids(2, LONG)
    plain, verbose = model(ids), model(ids, output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(plain.last_hidden_state, verbose.last_hidden_state, rtol=0, atol=1e-5)


@LENGTHS
def test_input_forms(tiny_config, token_ids, length):
    model = LSGXLMRobertaModel(tiny_config(type_vocab_size=2)).eval()
    ids = token_ids(2, length)
    expected = model(ids).last_hidden_state
    for inputs in (
        {"inputs_embeds": model.get_input_embeddings()(ids)},
        {"input_ids": ids, "position_ids": torch.arange(2, length + 2).expand(2, -1)},
        {"input_ids": ids, "token_type_ids": torch.zeros_like(ids)},
        {"input_ids": ids, "attention_mask": torch.ones(2, length)},
        {"input_ids": ids, "attention_mask": torch.ones(2, length).bool()},
    ):
        torch.testing.assert_close(model(**inputs).last_hidden_state, expected, rtol=0, atol=1e-5)
    other = model(ids, token_type_ids=torch.ones_like(ids)).last_hidden_state
    assert (other - expected).abs().max() > 0.01
    with pytest.raises(ValueError, match="input_ids"):
        model()


@pytest.mark.parametrize("shape", [(1, 0), (2, 0), (0, SHORT), (0, LONG)])
def test_no_tokens_and_no_texts_are_refused(tiny_config, shape):
    model = LSGXLMRobertaModel(tiny_config())
    for inputs in ({"input_ids": torch.zeros(shape, dtype=torch.long)}, {"inputs_embeds": torch.zeros(*shape, 32)}):
        with pytest.raises(ValueError, match=f"{shape[0]} texts of {shape[1]} tokens"):
            model(**inputs)


def test_a_head_is_built_once(tiny_config):
    """The stock encoder that its parent builds must not be drawn at random, which takes longer than all else."""
    drawn = []
    normal = torch.Tensor.normal_

    def counted(self, *args, **kwargs):
        drawn.append(self.numel())
        return normal(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "normal_", counted)
        model = LSGXLMRobertaForTokenClassification(tiny_config())
    assert 0 < sum(drawn) <= model.num_parameters()


def test_too_long_an_input_is_refused(tiny_config, token_ids):
    model = LSGXLMRobertaModel(tiny_config())
    assert model(token_ids(1, 128)).last_hidden_state.shape == (1, 128, 32)
    for inputs in (
        {"input_ids": token_ids(1, 129)},
        {"inputs_embeds": torch.randn(1, 129, 32)},
        {"input_ids": token_ids(1, 129), "position_ids": torch.arange(2, 131)[None]},
    ):
        with pytest.raises(ValueError, match=r"129 tokens.*positions for 128"):
            model(**inputs)
    padded = torch.cat([token_ids(1, 128), torch.ones(1, 22, dtype=torch.long)], 1)  # padding takes no position
    assert model(padded, attention_mask=(padded != 1).long()).last_hidden_state.shape == (1, 150, 32)


def test_a_mask_of_another_shape_is_refused(tiny_config, token_ids):
    model = LSGXLMRobertaModel(tiny_config())
    for shape in ((2, LONG - 1), (2, LONG, LONG), (2, 1, LONG, LONG)):
        with pytest.raises(ValueError, match="attention_mask"):
            model(token_ids(2, LONG), attention_mask=torch.ones(shape))


def test_without_adaptive_a_length_must_be_whole_blocks(tiny_config, token_ids):
    model = LSGXLMRobertaModel(tiny_config(adaptive=False)).eval()
    for length in (5, 16, 40):
        assert model(token_ids(1, length)).last_hidden_state.shape == (1, length, 32)
    with pytest.raises(ValueError, match="43 tokens.*40 or 48 would do.*adaptive=True"):
        model(token_ids(1, LONG))


@LENGTHS
def test_a_masked_first_token_is_no_key(tiny_config, token_ids, length):
    model = LSGXLMRobertaModel(tiny_config(mask_first_token=True)).eval()
    ids = token_ids(1, length)
    other = torch.cat([ids[:, :1] % 90 + 7, ids[:, 1:]], 1)
    assert not torch.equal(ids, other)
    expected = model(ids).last_hidden_state
    torch.testing.assert_close(model(other).last_hidden_state, expected, rtol=0, atol=1e-5)
    model.config.mask_first_token = False
    assert (model(other).last_hidden_state - model(ids).last_hidden_state).abs().max() > 0.01


def test_pooling_with_the_global_token(tiny_config, token_ids):
    config = tiny_config()
    model = LSGXLMRobertaModel(config).eval()
    ids = token_ids(1, LONG)
    pooled = model(ids).last_hidden_state
    config.pool_with_global = False
    plain = model(ids).last_hidden_state
    assert torch.equal(pooled[:, 1:], plain[:, 1:])
    assert (pooled[:, 0] - plain[:, 0]).abs().max() > 0.01


def test_implementations_agree_and_can_be_changed(tiny_config, token_ids, tmp_path):
    model = LSGXLMRobertaForMaskedLM(tiny_config()).eval()
    model.save_pretrained(tmp_path)
    ids = token_ids(1, LONG)
    assert model.config._attn_implementation == ("flex_attention" if torch.cuda.is_available() else "sdpa")
    with torch.no_grad():
        expected = model(ids).logits
        for name in ("eager", "flex_attention", "sdpa"):
            model.set_attn_implementation(name)
            assert model.roberta.config._attn_implementation == name
            torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-4)
            loaded = LSGXLMRobertaForMaskedLM.from_pretrained(tmp_path, attn_implementation=name).eval()
            assert loaded.config._attn_implementation == name
            torch.testing.assert_close(loaded(ids).logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3", "paged|eager", "fast"])
def test_implementations_it_does_not_have_are_refused(tiny_config, name, tmp_path):
    model = LSGXLMRobertaModel(tiny_config())
    model.save_pretrained(tmp_path)
    for route in (
        lambda: model.set_attn_implementation(name),
        lambda: LSGXLMRobertaModel.from_pretrained(tmp_path, attn_implementation=name),
        lambda: AutoModel.from_pretrained(tmp_path, attn_implementation=name, trust_remote_code=True),
    ):
        with pytest.raises(ValueError, match="is not supported.*'eager', 'sdpa', 'flex_attention'"):
            route()
    assert model.config._attn_implementation != name


def test_asking_for_attentions_warns_that_eager_takes_over(tiny_config, token_ids, caplog):
    model = LSGXLMRobertaModel(tiny_config()).eval()
    logger = logging.getLogger("transformers")
    logger.propagate = True
    from transformers.utils.logging import warning_once

    warning_once.cache_clear()
    with caplog.at_level("WARNING"):
        assert model(token_ids(1, LONG), output_attentions=True).attentions[0].shape == (1, 4, LONG, LONG)
    assert any("eager" in record.message for record in caplog.records)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sparsity_type", ["norm", "pooling", "bos_pooling", "lsh", "stride", "block_stride"])
def test_half_precision_models(tiny_config, token_ids, dtype, sparsity_type):
    model = LSGXLMRobertaForMaskedLM(tiny_config(sparsity_type=sparsity_type)).to(dtype)
    output = model(token_ids(2, LONG), labels=token_ids(2, LONG))
    assert output.logits.dtype == dtype and output.logits.isfinite().all()
    output.loss.backward()


def test_autocast(tiny_config, token_ids):
    model = LSGXLMRobertaForMaskedLM(tiny_config())
    ids = token_ids(2, LONG)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(ids, labels=ids).loss
    loss.backward()
    assert loss.isfinite() and model.roberta.encoder.layer[0].attention.self.query.weight.grad.isfinite().all()


def test_one_hidden_size_of_odd_lengths(tiny_config, token_ids):
    """Every length from one token to past several blocks, against the eager implementation."""
    model = LSGXLMRobertaModel(tiny_config(num_global_tokens=2, sparsity_type="pooling")).eval()
    with torch.no_grad():
        for length in range(1, 60):
            ids = token_ids(1, length)
            model.set_attn_implementation("sdpa")
            found = model(ids).last_hidden_state
            model.set_attn_implementation("eager")
            torch.testing.assert_close(found, model(ids).last_hidden_state, rtol=0, atol=1e-5)


def test_lsh_answers_the_same_every_time(tiny_config, token_ids, tmp_path):
    model = LSGXLMRobertaModel(tiny_config(sparsity_type="lsh", lsh_seed=4)).eval()
    ids = token_ids(1, LONG)
    expected = model(ids).last_hidden_state
    torch.manual_seed(77)
    assert torch.equal(model(ids).last_hidden_state, expected)
    model.save_pretrained(tmp_path)
    loaded = LSGXLMRobertaModel.from_pretrained(tmp_path)(ids).last_hidden_state
    torch.testing.assert_close(loaded, expected, rtol=0, atol=1e-5)
    other = LSGXLMRobertaModel.from_pretrained(tmp_path, lsh_seed=5)(ids).last_hidden_state
    assert (other - expected).abs().max() > 0.01


def test_the_attention_module_and_names(tiny_config):
    model = LSGXLMRobertaForMaskedLM(tiny_config())
    stock = XLMRobertaForMaskedLM(tiny_config())
    assert isinstance(model.roberta.encoder.layer[0].attention.self, LSGAttention)
    assert set(model.state_dict()) - set(stock.state_dict()) == {"roberta.embeddings.global_embeddings.weight"}
    assert set(stock.state_dict()) <= set(model.state_dict())
    assert all(hasattr(lsg_xlmr, name) for name in lsg_xlmr.__all__)


def test_an_old_config_switches_gradient_checkpointing_on(tiny_config):
    config = tiny_config()
    config.gradient_checkpointing = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # transformers' of its older name for it
        model = LSGXLMRobertaForMaskedLM(config)
    assert all(layer.gradient_checkpointing for layer in model.roberta.encoder.layer)
    assert not hasattr(model.config, "gradient_checkpointing")


@LENGTHS
def test_weights_can_be_offloaded(tiny_config, token_ids, length):
    from accelerate import cpu_offload

    model = LSGXLMRobertaModel(tiny_config()).eval()
    ids = token_ids(1, length)
    with torch.no_grad():
        expected = model(ids).last_hidden_state
        found = cpu_offload(model, torch.device("cpu"))(ids).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@LENGTHS
def test_double_precision(tiny_config, token_ids, length):
    model = LSGXLMRobertaModel(tiny_config()).eval()
    ids = token_ids(1, length)
    expected = model(ids).last_hidden_state
    torch.testing.assert_close(model.double()(ids).last_hidden_state.float(), expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # that a trace is of one length
@LENGTHS
def test_exported_and_traced(tiny_config, length):
    """What is recorded with one mask must hold for another."""
    model = LSGXLMRobertaModel(tiny_config()).eval().requires_grad_(False)
    inputs = make_inputs(LSGXLMRobertaModel, length)
    padded = {**inputs, "attention_mask": inputs["attention_mask"].clone()}
    padded["attention_mask"][1, length // 2 :] = 0
    expected = model(**padded).last_hidden_state
    kept = padded["attention_mask"].bool()
    exported = torch.export.export(model, (), inputs, strict=False).module()
    torch.testing.assert_close(exported(**padded).last_hidden_state[kept], expected[kept], rtol=0, atol=1e-5)
    traced = torch.jit.trace(lambda i, m: model(i, m, return_dict=False)[0], tuple(inputs.values()), check_trace=False)
    torch.testing.assert_close(traced(*padded.values())[kept], expected[kept], rtol=0, atol=1e-5)
