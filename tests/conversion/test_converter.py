"""LSGConverter: what it makes of checkpoints as they are found in the wild, and what it refuses."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from repository import DATA
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, XLMRobertaConfig, XLMRobertaForMaskedLM, XLMRobertaForSequenceClassification

import lsg_xlmr
from lsg_xlmr import LSGConverter
from lsg_xlmr.conversion import ARCHITECTURES, draw_like, spread_positions, tile_positions


SOURCE = DATA / "parity_conversion" / "source"
BLOCKS = {"block_size": 16, "sparse_block_size": 16}


@pytest.fixture
def source(tmp_path):
    """A copy of the source checkpoint that a test may change."""
    return Path(shutil.copytree(SOURCE, tmp_path / "source"))


@pytest.fixture
def converted(tmp_path):
    """An LSG checkpoint of 300 tokens with 3 global tokens."""
    model, tokenizer = LSGConverter(300).convert_from_pretrained(SOURCE, num_global_tokens=3, **BLOCKS)
    model.save_pretrained(tmp_path / "converted")
    tokenizer.save_pretrained(tmp_path / "converted")
    return tmp_path / "converted"


def change_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def logits(model):
    with torch.no_grad():
        return model(torch.arange(5, 95).repeat(1, 3)).logits


def assert_same_model(found, expected):
    """Weights bit for bit; logits within a tolerance, as how a CPU sums may depend on where in memory weights lie."""
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(logits(found), logits(expected), rtol=0, atol=1e-5)


def convert(folder, length=600, **kwargs):
    return LSGConverter(length).convert_from_pretrained(folder, **{**BLOCKS, **kwargs})[0]


def test_model_takes_4000_tokens_at_once():
    model, tokenizer = LSGConverter().convert_from_pretrained(SOURCE, sparsity_type="pooling", sparsity_factor=4)
    inputs = tokenizer("Paris is the capital of France. " * 2000, truncation=True, return_tensors="pt")
    assert inputs.input_ids.shape == (1, 4096)
    assert not model.training
    assert model.config.sparsity_type == "pooling" and model.config.sparsity_factor == 4
    with torch.no_grad():
        assert model(**inputs).logits.shape == (1, 4096, 101)
        assert model(inputs_embeds=torch.randn(1, 4000, 16)).logits.shape == (1, 4000, 101)


def test_short_input_is_the_stock_models_plus_a_global_token():
    model, stock = convert(SOURCE), XLMRobertaForMaskedLM.from_pretrained(SOURCE).eval()
    token_ids = torch.arange(5, 35)[None]
    with torch.no_grad():
        global_token = stock.roberta.embeddings.LayerNorm(model.roberta.embeddings.global_embeddings.weight[:1])
        states = torch.cat([global_token[None], stock.roberta.embeddings(token_ids)], dim=1)
        states = stock.roberta.encoder(states).last_hidden_state
        expected = stock.lm_head(torch.cat([states[:, :1], states[:, 2:]], dim=1))
        torch.testing.assert_close(model(token_ids).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prefix", ["", "LSG"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_architecture_by_name(architecture, prefix):
    model = convert(SOURCE, architecture=prefix + architecture.removeprefix("LSG"))
    assert type(model) is getattr(lsg_xlmr, architecture)
    assert model.config.architectures == [architecture]


def test_architecture_of_the_config(source):
    assert type(convert(source)) is lsg_xlmr.LSGXLMRobertaForMaskedLM
    change_config(source, architectures=None)
    assert type(convert(source)) is lsg_xlmr.LSGXLMRobertaModel


def test_only_new_weights_are_warned_about(caplog):
    with caplog.at_level(logging.WARNING):
        convert(SOURCE)
        assert not caplog.records
        convert(SOURCE, architecture="XLMRobertaForTokenClassification")
    messages = [record.getMessage() for record in caplog.records]
    assert [message for message in messages if "newly initialized" in message] == [
        f"{SOURCE} lacks classifier.bias, classifier.weight: newly initialized, to be trained."
    ]
    assert not any("global_embeddings" in message for message in messages)


def test_a_source_that_is_long_already_keeps_its_length(tmp_path):
    model = XLMRobertaForMaskedLM.from_pretrained(SOURCE)
    table = torch.randn(8194, model.config.hidden_size)
    model.roberta.embeddings.position_embeddings = torch.nn.Embedding.from_pretrained(table, padding_idx=1)
    model.config.max_position_embeddings = len(table)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(SOURCE).save_pretrained(tmp_path)
    for folder, length in ((tmp_path, 8192), (SOURCE, 4096)):
        model, tokenizer = LSGConverter().convert_from_pretrained(folder)
        assert model.config.max_sequence_length == tokenizer.model_max_length == length
    model, _ = LSGConverter().convert_from_pretrained(tmp_path)
    assert torch.equal(model.base_model.embeddings.position_embeddings.weight, table)


@pytest.mark.parametrize(
    "fields, reach",
    [
        ({"sparsity_factor": 4}, 768),
        ({"block_size": 256}, 768),
        ({"sparsity_factor": 4, "sparse_block_size": 64}, None),
        ({"block_size": 256, "sparsity_type": "none"}, None),
    ],
)
def test_positions_that_come_twice_within_reach_are_warned_about(fields, reach, caplog):
    with caplog.at_level(logging.WARNING):
        LSGConverter(4096).convert_from_pretrained(SOURCE, **fields)
        messages = [record.getMessage() for record in caplog.records]
        assert [f"up to {reach} tokens away" in message for message in messages] == [True] * bool(reach)
        caplog.clear()
        LSGConverter(512).convert_from_pretrained(SOURCE, **fields)
    assert not any("tokens away" in record.getMessage() for record in caplog.records)


def test_seed_decides_all_that_is_drawn_and_leaves_the_callers_generator_alone():
    def tables(seed):
        converter = LSGConverter(600, random_global_init=True, seed=seed)
        model, _ = converter.convert_from_pretrained(SOURCE, "XLMRobertaForTokenClassification")
        return model.roberta.embeddings.global_embeddings.weight, model.classifier.weight

    state = torch.random.get_rng_state()
    first, again, other = tables(1), tables(1), tables(2)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.testing.assert_close(first, again, rtol=0, atol=1e-5)  # matrix products follow the draw
    assert torch.equal(first[0][0], other[0][0])  # <s> and position 0
    assert all((a - b).abs().max() > 0.01 for a, b in zip(first, other))


@pytest.mark.parametrize("rows", [5, 2000])
def test_draw_has_the_distribution_of_the_rows(rows):
    table = torch.randn(rows, 8) @ torch.randn(8, 8) + torch.arange(8.0)  # 5 rows: a singular covariance
    draw = draw_like(table, 100_000, seed=0)
    torch.testing.assert_close(draw.mean(0), table.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(torch.cov(draw.T), torch.cov(table.T), atol=0.5, rtol=0)


def test_random_global_tokens_carry_positions():
    model, _ = LSGConverter(600, random_global_init=True, seed=7).convert_from_pretrained(SOURCE)
    weights = load_file(SOURCE / "model.safetensors")
    words = weights["roberta.embeddings.word_embeddings.weight"]
    expected = draw_like(words, 512, 7)
    expected[0] = words[0]
    expected += weights["roberta.embeddings.position_embeddings.weight"][2:][spread_positions(512, 64)]
    torch.testing.assert_close(model.roberta.embeddings.global_embeddings.weight.data, expected)


def test_spread_positions():
    assert spread_positions(512, 64)[:10].tolist() == [0, 64, 128, 192, 256, 320, 384, 448, 1, 65]
    assert spread_positions(4096, 64)[:3].tolist() == [0, 64, 128]
    for num_positions in (512, 1000, 4096):
        for stride in (1, 3, 64, 100, 5000):
            assert len(set(spread_positions(num_positions, stride).tolist())) == 512
    assert spread_positions(100, 64).max() < 100


def test_tile_positions():
    table = torch.arange(7)[:, None]
    assert tile_positions(table, 14, 2).flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 2, 3, 4, 5, 6, 2, 3]
    assert tile_positions(table, 4, 2).flatten().tolist() == [0, 1, 2, 3]


def test_lsg_checkpoint_is_resized_to_any_length(converted):
    before = load_file(converted / "model.safetensors")["roberta.embeddings.global_embeddings.weight"] + 1
    weights = {**load_file(converted / "model.safetensors"), "roberta.embeddings.global_embeddings.weight": before}
    save_file(weights, converted / "model.safetensors", {"format": "pt"})
    for length in (100, 1000):
        model, tokenizer = LSGConverter(length, resize_lsg=True).convert_from_pretrained(converted)
        assert torch.equal(model.roberta.embeddings.global_embeddings.weight, before)
        assert model.config.num_global_tokens == 3 and model.config.block_size == 16
        assert model.config.max_sequence_length == tokenizer.model_max_length == length
        assert logits(model).shape == (1, 270, 101) if length == 1000 else True
    model, _ = LSGConverter(keep_first_global_token=True).convert_from_pretrained(converted, sparsity_type="lsh")
    after = model.roberta.embeddings.global_embeddings.weight
    assert torch.equal(after[0], before[0]) and (after[1:] - before[1:]).abs().amax(1).min() > 0.5
    assert model.config.sparsity_type == "lsh"


def as_bin(folder, weights):
    torch.save(weights, folder / "pytorch_model.bin")


def as_shards(folder, weights, name, save):
    """Two files and the index that says which tensor is where."""
    index, keys = {}, sorted(weights)
    for number, part in enumerate((keys[::2], keys[1::2]), 1):
        shard = name.replace(".", f"-0000{number}-of-00002.", 1)
        save({key: weights[key] for key in part}, folder / shard)
        index.update(dict.fromkeys(part, shard))
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": index}))


WAYS_TO_STORE = {
    "bin": as_bin,
    "sharded bin": lambda folder, weights: as_shards(folder, weights, "pytorch_model.bin", torch.save),
    "sharded safetensors": lambda folder, weights: as_shards(
        folder, weights, "model.safetensors", lambda part, path: save_file(part, path, {"format": "pt"})
    ),
}


@pytest.mark.parametrize("store", WAYS_TO_STORE)
def test_weights_as_they_are_found(source, store, caplog):
    expected = convert(SOURCE)
    weights = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    word_embeddings = weights["roberta.embeddings.word_embeddings.weight"]
    weights["roberta.embeddings.position_ids"] = torch.arange(514)[None]
    weights["lm_head.decoder.weight"] = word_embeddings.clone()
    weights["lm_head.decoder.bias"] = weights["lm_head.bias"].clone()
    WAYS_TO_STORE[store](source, weights)
    model = convert(source)
    assert_same_model(model, expected)
    assert model.lm_head.decoder.weight is model.roberta.embeddings.word_embeddings.weight
    assert not caplog.records
    model.save_pretrained(source / "saved")
    assert not [key for key in load_file(source / "saved" / "model.safetensors") if "decoder" in key]


def test_pooler(source, caplog):
    weights = load_file(source / "model.safetensors")
    pooler = {"roberta.pooler.dense.weight": torch.randn(16, 16), "roberta.pooler.dense.bias": torch.randn(16)}
    save_file({**weights, **pooler}, source / "model.safetensors", {"format": "pt"})
    assert_same_model(convert(source), convert(SOURCE))
    base = convert(source, architecture="XLMRobertaModel")
    assert torch.equal(base.pooler.dense.weight, pooler["roberta.pooler.dense.weight"])
    assert not any("newly initialized" in record.getMessage() for record in caplog.records)
    convert(SOURCE, architecture="XLMRobertaModel")
    assert "lacks pooler.dense.bias, pooler.dense.weight: newly initialized" in caplog.text


def test_old_and_published_configs(source):
    change_config(
        source, output_past=True, _name_or_path="somewhere", torch_dtype="float32", gradient_checkpointing=False
    )
    expected = convert(SOURCE, block_size=256, sparse_block_size=0, sparsity_type="none", mask_first_token=True)
    change_config(
        source,
        architectures=["LSGXLMRobertaForMaskedLM"],
        auto_map={"AutoConfig": "modeling_lsg_xlm_roberta.LSGXLMRobertaConfig"},
        base_model_prefix="lsg",
        adaptive=True,
        block_size=256,
        lsh_num_pre_rounds=1,
        mask_first_token=True,
        num_global_tokens=1,
        pool_with_global=True,
        sparse_block_size=0,
        sparsity_factor=4,
        sparsity_type="none",
    )
    weights = load_file(source / "model.safetensors")
    weights["roberta.embeddings.global_embeddings.weight"] = expected.roberta.embeddings.global_embeddings.weight.data
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    model, _ = LSGConverter(600, resize_lsg=True).convert_from_pretrained(source)
    assert_same_model(model, expected)


def test_weights_keep_their_type_whatever_the_config_says(source):
    weights = {key: weight.half() for key, weight in load_file(source / "model.safetensors").items()}
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    model = convert(source)
    assert {weight.dtype for weight in model.state_dict().values()} == {torch.float16}
    assert model.config.dtype == torch.float16
    positions = model.roberta.embeddings.position_embeddings.weight
    assert torch.equal(positions[:514], weights["roberta.embeddings.position_embeddings.weight"])


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_dtype_asked_for(dtype):
    model, _ = LSGConverter(600, dtype=dtype).convert_from_pretrained(SOURCE)
    assert {weight.dtype for weight in model.state_dict().values()} == {torch.bfloat16}


def test_head_of_the_source_is_kept(tmp_path):
    config = XLMRobertaConfig.from_pretrained(SOURCE, num_labels=3, id2label={0: "a", 1: "b", 2: "c"})
    stock = XLMRobertaForSequenceClassification(config)
    stock.save_pretrained(tmp_path)
    for path in SOURCE.glob("*token*"):
        shutil.copy(path, tmp_path)
    model = convert(tmp_path)
    assert type(model) is lsg_xlmr.LSGXLMRobertaForSequenceClassification
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert torch.equal(model.classifier.out_proj.weight, stock.classifier.out_proj.weight)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"max_sequence_length": 2}, "max_sequence_length"),
        ({"max_sequence_length": "4096"}, "max_sequence_length"),
        ({"global_positional_stride": 0}, "global_positional_stride"),
        ({"seed": -1}, "seed"),
        ({"dtype": "int8"}, "dtype"),
    ],
)
def test_wrong_options(options, words):
    with pytest.raises(ValueError, match=words):
        LSGConverter(**options)


@pytest.mark.parametrize(
    "kwargs, words",
    [
        ({"block_size": 0}, "block_size"),
        ({"blok_size": 8}, "no field 'blok_size'"),
        ({"architecture": "BertModel"}, "LSGXLMRobertaForMaskedLM"),
        ({"hidden_size": 32}, "do not fit"),
    ],
)
def test_wrong_arguments(kwargs, words):
    with pytest.raises(ValueError, match=words):
        convert(SOURCE, **kwargs)


def remove(*patterns):
    def change(folder):
        for pattern in patterns:
            for path in folder.glob(pattern):
                path.unlink()

    return change


def drop_a_layer(folder):
    weights = load_file(folder / "model.safetensors")
    weights = {key: weight for key, weight in weights.items() if ".layer.1." not in key}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    "change, words",
    [
        (remove("*"), "no config.json"),
        (remove("model.safetensors"), "cannot be read"),
        (remove("*token*", "sentencepiece*"), "has no tokenizer"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"not weights"), "cannot be read"),
        (lambda folder: (folder / "tokenizer.json").write_bytes(b"{"), "cannot be read"),
        (lambda folder: (folder / "config.json").write_bytes(b"{"), "config.json"),
        (lambda folder: change_config(folder, model_type="mpnet"), "not an XLM-RoBERTa checkpoint"),
        (lambda folder: change_config(folder, vocab_size=99), "the tokenizer has 101 words and the model 99"),
        (drop_a_layer, "not there"),
    ],
)
def test_wrong_sources(source, change, words):
    change(source)
    with pytest.raises(ValueError, match=words) as caught:
        convert(source)
    assert str(source) in str(caught.value)


def test_weights_that_are_not_finite_are_named(source, caplog):
    weights = load_file(source / "model.safetensors")
    weights["roberta.encoder.layer.0.output.dense.weight"][0, 0] = float("nan")
    weights["lm_head.dense.bias"][1] = float("inf")
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    LSGConverter(max_sequence_length=600).convert_from_pretrained(source)
    assert "are not all finite: lm_head.dense.bias, roberta.encoder.layer.0.output.dense.weight" in caplog.text


def test_pickle_that_runs_code_is_refused(source, tmp_path):
    class Touch:
        def __reduce__(self):
            return Path.touch, (tmp_path / "touched",)

    (source / "model.safetensors").unlink()
    torch.save({"roberta.pooler.dense.bias": Touch()}, source / "pytorch_model.bin")
    with pytest.raises(ValueError, match="a pickle that holds more than tensors.*refused"):
        LSGConverter().convert_from_pretrained(source)
    assert not (tmp_path / "touched").exists()
