"""Encoder-decoders: put together from two folders, trained, generating, saved and loaded as what they are."""

import subprocess
import sys

import pytest
import torch
from repository import TINY
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    EncoderDecoderModel,
    GPT2Config,
    GPT2LMHeadModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    XLMRobertaConfig,
    XLMRobertaForCausalLM,
    XLMRobertaForMaskedLM,
)

from lsg_xlmr import (
    LSGConfig,
    LSGConverter,
    LSGEncoderDecoderModel,
    LSGXLMRobertaForCausalLM,
    LSGXLMRobertaForMaskedLM,
)


DECODERS = {"lsg": LSGXLMRobertaForCausalLM, "stock": XLMRobertaForCausalLM}
GREEDY = {"do_sample": False, "max_new_tokens": 30, "eos_token_id": None}

# What a user does who has torch and transformers, and nothing of ours.
IN_A_FRESH_PROCESS = """
import sys
sys.modules["lsg_xlmr"] = None  # whoever imports it here gets an ImportError
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSeq2SeqLM
folder, again = sys.argv[1:]
for _ in range(2):
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True).eval()
    assert type(model).__name__ == "LSGEncoderDecoderModel"
    assert AutoConfig.from_pretrained(folder, trust_remote_code=True).encoder.block_size == 8
    tokens = model.generate(**load_file(sys.argv[1] + "/inputs.safetensors"), do_sample=False, max_new_tokens=30)
    save_file({"tokens": tokens}, folder + "/tokens.safetensors")
    model.save_pretrained(again)
    folder = again
"""


@pytest.fixture(autouse=True)
def one_thread():
    """Two threads wait for each other at steps this small, and take three times as long."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)


@pytest.fixture
def folders(tiny_config, tmp_path):
    """Checkpoints of masked LMs, of LSG attention and of the stock one: `{"lsg": folder, "stock": folder}`."""
    config = tiny_config(num_global_tokens=2, sparsity_factor=4)
    stock = {name: value for name, value in config.to_dict().items() if name not in (*config.lsg_fields(), "auto_map")}
    for name, model_class in {"lsg": LSGXLMRobertaForMaskedLM, "stock": XLMRobertaForMaskedLM}.items():
        model = model_class(config if name == "lsg" else XLMRobertaConfig(**stock))
        model.save_pretrained(tmp_path / name)
    return {name: tmp_path / name for name in ("lsg", "stock")}


@pytest.fixture
def put_together(folders):
    """A function that makes the model of an LSG encoder and the decoder `name`."""

    def make(name="lsg", **kwargs):
        return LSGEncoderDecoderModel.from_encoder_decoder_pretrained(folders["lsg"], folders[name], **kwargs).eval()

    return make


@pytest.fixture
def inputs(token_ids):
    """Two texts of 61 and 40 tokens, padded on the right."""
    mask = torch.ones(2, 61, dtype=torch.long)
    mask[1, 40:] = 0
    return {"input_ids": token_ids(2, 61).where(mask == 1, 1), "attention_mask": mask}


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_it_is_its_two_parts(put_together, folders, inputs, token_ids, name):
    model = put_together(name)
    encoder = LSGXLMRobertaForMaskedLM.from_pretrained(folders["lsg"]).roberta.eval()
    decoder = DECODERS[name].from_pretrained(folders[name], is_decoder=True, add_cross_attention=True).eval()
    own = {key: value for key, value in model.decoder.state_dict().items() if "crossattention" in key}
    decoder.load_state_dict(own, strict=False)  # new, and drawn anew
    assert type(model.decoder) is DECODERS[name] and len(own) == 20
    ids = token_ids(2, 37)
    states = encoder(**inputs).last_hidden_state
    expected = decoder(ids, encoder_hidden_states=states, encoder_attention_mask=inputs["attention_mask"]).logits
    found = model(**inputs, decoder_input_ids=ids)
    torch.testing.assert_close(found.logits, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.encoder_last_hidden_state, states, rtol=0, atol=1e-5)


def test_two_stock_parts_are_the_stock_model(folders, inputs, token_ids):
    model = LSGEncoderDecoderModel.from_encoder_decoder_pretrained(folders["stock"], folders["stock"]).eval()
    stock = EncoderDecoderModel.from_encoder_decoder_pretrained(folders["stock"], folders["stock"]).eval()
    stock.load_state_dict(model.state_dict(), strict=False)  # a pooler more, that nothing asks
    stock.config.pad_token_id, stock.config.decoder_start_token_id = 1, 0
    labels = token_ids(2, 37)
    labels[1, 20:] = -100
    found, expected = (x(**inputs, labels=labels) for x in (model, stock))
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.loss, expected.loss, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_with_and_without_cache(put_together, inputs, name, num_beams):
    model = put_together(name)
    found, expected = (model.generate(**inputs, num_beams=num_beams, use_cache=x, **GREEDY) for x in (True, False))
    assert torch.equal(found, expected) and found.shape == (2, 31)
    assert len(found.unique()) > 3


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("masked", [True, False])
def test_generation_after_prompts_padded_on_the_left(put_together, inputs, token_ids, name, masked):
    model = put_together(name)
    prompts = token_ids(2, 9)
    prompts[1, :4] = 1
    mask = {"decoder_attention_mask": (prompts != 1).long()} if masked else {}
    settings = {**GREEDY, **mask, "output_logits": True, "return_dict_in_generate": True}
    found, expected = (
        torch.stack(model.generate(**inputs, decoder_input_ids=prompts, use_cache=x, **settings).logits)
        for x in (True, False)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_text_generates_the_same_alone_and_in_a_batch(put_together, inputs):
    model = put_together()
    found = model.generate(**inputs, **GREEDY)
    assert torch.equal(found[1:], model.generate(inputs["input_ids"][1:, :40], **GREEDY))


@pytest.mark.parametrize("name", ["lsg", pytest.param("stock", marks=pytest.mark.slow)])
def test_saved_and_loaded_in_a_fresh_process(put_together, inputs, tmp_path, stored_weights, name):
    model = put_together(name)
    folder, again = tmp_path / "saved", tmp_path / "again"
    model.save_pretrained(folder)
    save_file(inputs, folder / "inputs.safetensors")
    command = [sys.executable, "-c", IN_A_FRESH_PROCESS, str(folder), str(again)]
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PATH": "", "PYTHONSAFEPATH": "1"}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    expected = model.generate(**inputs, do_sample=False, max_new_tokens=30)
    for path in (folder, again):
        assert torch.equal(load_file(path / "tokens.safetensors")["tokens"], expected)
        weights = stored_weights(path)
        torch.testing.assert_close(weights, {key: model.state_dict()[key] for key in weights}, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("eager", ("eager", "eager", "eager")),
        ({"encoder": "eager"}, ("sdpa", "eager", "sdpa")),
        ({"encoder": "sdpa", "decoder": "eager"}, ("sdpa", "sdpa", "eager")),
    ],
)
def test_attention_by_the_auto_class(put_together, tmp_path, asked, expected):
    put_together().save_pretrained(tmp_path / "saved")
    model = AutoModelForSeq2SeqLM.from_pretrained(
        tmp_path / "saved", trust_remote_code=True, attn_implementation=asked
    )
    assert tuple(part.config._attn_implementation for part in (model, model.encoder, model.decoder)) == expected


def test_put_together_by_hand(put_together, inputs, token_ids, tmp_path):
    parts = put_together()
    model = LSGEncoderDecoderModel(encoder=parts.encoder, decoder=parts.decoder)
    labels = token_ids(2, 7)
    torch.testing.assert_close(model(**inputs, labels=labels).loss, parts(**inputs, labels=labels).loss)
    assert model.generation_config.to_dict() == parts.generation_config.to_dict()
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "saved", trust_remote_code=True).eval()
    assert again.config.encoder.num_global_tokens == again.config.decoder.num_global_tokens == 2
    with torch.no_grad():
        found, expected = (x(**inputs, decoder_input_ids=inputs["input_ids"]).logits for x in (again, model))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_fields_of_either_part(put_together):
    model = put_together(encoder_block_size=16, decoder_sparsity_type="none", encoder_attn_implementation="eager")
    assert (model.config.encoder.block_size, model.config.decoder.block_size) == (16, 8)
    assert (model.config.encoder.sparsity_type, model.config.decoder.sparsity_type) == ("norm", "none")
    assert model.encoder.config._attn_implementation == "eager"
    with pytest.raises(ValueError, match="LSGConfig: `block_size` must be an int of at least 1, got 0"):
        put_together(encoder_block_size=0)


def test_parts_by_their_configurations(put_together, folders):
    own = LSGConfig.from_pretrained(folders["lsg"], block_size=16)
    model = put_together(encoder_config=own, decoder_config=own)
    assert (model.encoder.config.block_size, model.decoder.config.block_size) == (16, 16)
    assert (model.encoder.config.is_decoder, model.decoder.config.is_decoder) == (False, True)
    assert not own.is_decoder


def test_parts_that_are_loaded(put_together):
    parts = put_together()
    model = LSGEncoderDecoderModel.from_encoder_decoder_pretrained(
        encoder_model=parts.encoder, decoder_model=parts.decoder
    )
    assert model.encoder is parts.encoder and model.decoder is parts.decoder
    with pytest.raises(ValueError, match="There is no decoder: give .* as `decoder_model`"):
        LSGEncoderDecoderModel.from_encoder_decoder_pretrained(encoder_model=parts.encoder)


@pytest.mark.parametrize("encoder", ["lsg", "stock"])
def test_a_decoder_of_another_kind(folders, inputs, token_ids, tmp_path, encoder):
    config = GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=3, eos_token_id=4)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    load = LSGEncoderDecoderModel.from_encoder_decoder_pretrained
    model = load(folders[encoder], tmp_path / "gpt2", pad_token_id=1)
    assert type(model.decoder) is GPT2LMHeadModel and model.decoder.config.is_decoder
    assert (model.config.decoder_start_token_id, model.config.eos_token_id, model.config.pad_token_id) == (3, 4, 1)
    model(**inputs, labels=token_ids(2, 7)).loss.backward()
    assert all(part.grad.abs().sum() > 0 for name, part in model.named_parameters() if "crossattention.q" in name)


def test_special_tokens_of_the_configuration(put_together):
    model = put_together(decoder_start_token_id=5, eos_token_id=6)
    for config in (model.config, model.generation_config):
        assert (config.decoder_start_token_id, config.eos_token_id, config.pad_token_id) == (5, 6, 1)
    again = LSGEncoderDecoderModel(model.config, model.encoder, model.decoder)
    assert again.config.decoder_start_token_id == 5


@pytest.mark.parametrize("dtype", ["auto", torch.bfloat16])
def test_dtype_of_a_part(put_together, dtype):
    model = put_together(decoder_dtype=dtype)
    assert model.encoder.dtype == torch.float32
    assert model.decoder.dtype == (torch.float32 if dtype == "auto" else dtype)


@torch.no_grad()
def test_inputs_by_position(put_together, inputs, token_ids):
    model = put_together()
    ids, labels = token_ids(2, 7), token_ids(2, 7)
    expected = model(**inputs, decoder_input_ids=ids, labels=labels)
    given = (*inputs.values(), ids)
    for found in (model(*given, labels=labels), model(*given, *[None] * 5, labels)):
        torch.testing.assert_close((found.loss, found.logits), (expected.loss, expected.logits), rtol=0, atol=0)
    with pytest.raises(TypeError, match="multiple values for argument 'input_ids'"):
        model(*given, input_ids=ids)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.full((2, 7), 197), r"`labels` holds 197, and must be from 0 to 98, or -100"),
        (torch.tensor([[5, 197]] * 2), r"`labels` holds 197, and must be from 0 to 98, or -100"),
        (torch.full((2, 7), -1), r"`labels` holds -1, and must be from 0 to 98, or -100"),
        (torch.full((1, 7), 5), r"`labels` must be of shape \(2, 7\), got \(1, 7\)"),
        (torch.full((7,), 5), r"`labels` must be of shape \(2, length\), got \(7,\)"),
        (torch.full((2, 7, 1), 5), r"`labels` must be of shape \(2, length\), got \(2, 7, 1\)"),
        (torch.full((2, 7), 5.0), r"`labels` must be int64, got torch.float32"),
        ([[5] * 7] * 2, r"`labels` must be a torch.Tensor, got list"),
    ],
)
@pytest.mark.parametrize("name", DECODERS)
def test_what_is_wrong_with_labels(put_together, inputs, name, labels, message):
    with pytest.raises(ValueError, match=message):
        put_together(name)(**inputs, labels=labels)


def test_the_parts_of_a_batch_give_the_gradients_of_the_whole(put_together, inputs, token_ids):
    model = put_together()
    labels = token_ids(2, 37)
    labels[1, 20:] = -100
    model(**inputs, labels=labels).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for row in range(2):
        part = {name: x[row : row + 1] for name, x in inputs.items()}
        model(**part, labels=labels[row : row + 1], num_items_in_batch=torch.tensor(57)).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=1e-5)


@pytest.mark.ecosystem
def test_trained_with_seq2seq_trainer(tmp_path):
    """The tiny checkpoint learns to say what the one sentence of a text says that has a number in it."""
    converter = LSGConverter(max_sequence_length=4096)
    encoder, tokenizer = converter.convert_from_pretrained(str(TINY), block_size=16, sparse_block_size=16)
    encoder.save_pretrained(tmp_path / "encoder")
    model = LSGEncoderDecoderModel.from_encoder_decoder_pretrained(tmp_path / "encoder", tmp_path / "encoder")
    assert model.config.encoder.max_sequence_length == 4096
    cities = ["Paris", "Berlin", "Rome", "Madrid", "Vienna", "Warsaw"]
    generator = torch.Generator().manual_seed(0)

    def example():
        city, place = torch.randint(0, 6, (2,), generator=generator).tolist()
        sentences = ["The Seine flows through France."] * 5
        sentences.insert(place, f"{cities[city]} is a city in Europe.")
        features = tokenizer(" ".join(sentences))
        return {**features, "labels": tokenizer(f"{cities[city]} is a city.")["input_ids"][1:]}

    data, held_out = [example() for _ in range(320)], [example() for _ in range(8)]
    arguments = Seq2SeqTrainingArguments(
        str(tmp_path / "run"),
        max_steps=40,
        learning_rate=1e-3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        per_device_eval_batch_size=4,
        gradient_checkpointing=True,
        predict_with_generate=True,
        generation_max_length=12,
        logging_steps=10,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Seq2SeqTrainer(
        model,
        arguments,
        train_dataset=data,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] / 2
    predicted = trainer.predict(held_out).predictions
    texts = tokenizer.batch_decode(predicted, skip_special_tokens=True)
    assert all(text.endswith("is a city.") for text in texts)
    checkpoint = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run" / "checkpoint-40", trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "checkpoint-40")
    again = checkpoint.eval().generate(torch.tensor([held_out[0]["input_ids"]]), max_length=12, do_sample=False)
    assert tokenizer.decode(again[0], skip_special_tokens=True) == texts[0]
