"""What is XLM-RoBERTa but for the names of things: RoBERTa, CamemBERT, data2vec-text and BERT, converted."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from family_folders import (
    hide_global_tokens,
    write_bpe,
    write_camembert_sentencepiece,
    write_model,
    write_settings,
    write_wordpiece,
    write_xlm_roberta_tokenizer,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from lsg_xlmr import LSGConverter
from lsg_xlmr.cli import main
from lsg_xlmr.conversion import Source


HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
TEXTS = (
    "Paris is the capital of France.",
    "ＦＵＬＬ ｗｉｄｔｈ, a ﬁne ①½  with   spaces ",
    "Le café, l'été; 12 œufs",
)


def convert(folder, architecture=None, **fields):
    return LSGConverter(max_sequence_length=600).convert_from_pretrained(folder, architecture, **fields)


def config_with(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def inputs_for(config, tokenizer):
    """Two texts of 40 tokens, one of them padded; of two types where there are two."""
    input_ids = torch.randint(7, config.vocab_size - 1, (2, 40))
    input_ids[:, 0] = tokenizer.cls_token_id
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 30:] = 0
    input_ids[attention_mask == 0] = tokenizer.pad_token_id
    token_type_ids = torch.zeros_like(input_ids)
    token_type_ids[:, 20:] = config.type_vocab_size - 1
    return {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}


@torch.no_grad()
def assert_same_answers(stock, model, inputs):
    expected, outputs = stock(**inputs), hide_global_tokens(model)(**inputs)
    names = [name for name in expected if name in outputs and isinstance(expected[name], torch.Tensor)]
    assert names
    for name in names:
        here, there = outputs[name], expected[name]
        if here.shape[:2] == inputs["input_ids"].shape:
            here, there = here[inputs["attention_mask"] == 1], there[inputs["attention_mask"] == 1]
        torch.testing.assert_close(here, there, rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", (*HEADS, "ForMultipleChoice"))
@pytest.mark.parametrize("family", ["Roberta", "Camembert", "Data2VecText", "Bert"])
def test_answers_are_the_sources(tmp_path, family, head):
    stock = write_model(tmp_path, f"{family}{head}")
    write_xlm_roberta_tokenizer(tmp_path)
    model, tokenizer = convert(tmp_path, pool_with_global=False)
    assert type(model).__name__ == f"LSGXLMRoberta{head}" and model.config.model_type == "xlm-roberta"
    inputs = inputs_for(model.config, tokenizer)
    if head == "ForMultipleChoice":
        if stock.base_model.pooler is None:
            pytest.skip("transformers 5.0 forgets the pooler of CamemBERT's multiple choice")
        inputs = {name: x[None] for name, x in inputs.items()}
        with torch.no_grad():
            answer = hide_global_tokens(model)(**inputs).logits
            torch.testing.assert_close(answer, stock(**inputs).logits, rtol=0, atol=1e-5)
    else:
        assert_same_answers(stock, model, inputs)


@pytest.mark.parametrize("settings", [{"pad_token_id": 0}, {"pad_token_id": 1}, {"pad_token_id": None}])
def test_a_berts_positions_do_not_depend_on_what_it_calls_padding(tmp_path, settings):
    """With an XLM-RoBERTa vocabulary BERT's padding, 0, is `<s>`: the tokenizer knows what padding is."""
    stock = write_model(tmp_path, "BertModel", **settings)
    write_xlm_roberta_tokenizer(tmp_path)
    model, tokenizer = convert(tmp_path, pool_with_global=False)
    assert model.config.pad_token_id == tokenizer.pad_token_id == 1 and tokenizer.cls_token_id == 0
    assert model.config.max_sequence_length == 600
    assert model.embeddings.position_embeddings.weight[2:66].equal(stock.embeddings.position_embeddings.weight)
    inputs = inputs_for(model.config, tokenizer)
    inputs["input_ids"][:, 15] = 0  # what is no padding has a position of its own
    assert_same_answers(stock, model, inputs)
    assert Source(tmp_path).config["max_position_embeddings"] == 66


def test_a_bert_without_the_fields_that_bert_has_by_default(tmp_path):
    fields = {"max_position_embeddings": 512, "vocab_size": 1456}
    stock = write_model(tmp_path, "BertForMaskedLM", **fields)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("pad_token_id", "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "hidden_act"):
        del config[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_xlm_roberta_tokenizer(tmp_path)
    model, tokenizer = convert(tmp_path, pool_with_global=False)
    assert_same_answers(stock, model, inputs_for(model.config, tokenizer))


@pytest.mark.parametrize("architecture", ["RobertaModel", "CamembertModel", "BertModel", "Data2VecTextModel"])
@pytest.mark.parametrize("head", HEADS[1:])
def test_another_head_on_the_same_encoder(tmp_path, architecture, head, caplog):
    """The new head is the one that the source's own class would make."""
    encoder = write_model(tmp_path, architecture)
    write_xlm_roberta_tokenizer(tmp_path)
    model, tokenizer = convert(tmp_path, f"XLMRoberta{head}", pool_with_global=False)
    assert type(model).__name__ == f"LSGXLMRoberta{head}" and "to be trained" in caplog.text
    inputs = inputs_for(model.config, tokenizer)
    assert_same_answers(encoder, model.base_model, inputs)
    if (architecture, head) == ("BertModel", "ForSequenceClassification"):  # whose class keeps the pooler
        assert model.classifier.dense.weight.equal(encoder.pooler.dense.weight)


def test_a_decoder_is_one_still(tmp_path):
    stock = write_model(tmp_path, "BertLMHeadModel", is_decoder=True)
    write_xlm_roberta_tokenizer(tmp_path)
    model, tokenizer = convert(tmp_path, dense_decoder=True)
    assert type(model).__name__ == "LSGXLMRobertaForCausalLM"
    inputs = {name: x[:1] for name, x in inputs_for(model.config, tokenizer).items()}
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, stock(**inputs).logits, rtol=0, atol=1e-5)


def test_the_names_of_a_berts_classes_are_understood(tmp_path):
    write_model(tmp_path, "BertModel")
    write_xlm_roberta_tokenizer(tmp_path)
    assert type(convert(tmp_path, "BertForTokenClassification")[0]).__name__ == "LSGXLMRobertaForTokenClassification"
    with pytest.raises(ValueError, match="no LSG version of architecture 'RobertaModel'"):
        convert(tmp_path, "RobertaModel")


def test_of_a_pretraining_head_the_masked_lm_is_taken(tmp_path, caplog):
    stock = write_model(tmp_path, "BertForPreTraining")
    write_xlm_roberta_tokenizer(tmp_path)
    model, tokenizer = convert(tmp_path, pool_with_global=False)
    assert "LSGXLMRobertaForMaskedLM has no place for" in caplog.text and "cls.seq_relationship" in caplog.text
    inputs = inputs_for(model.config, tokenizer)
    with torch.no_grad():
        here, there = hide_global_tokens(model)(**inputs).logits, stock(**inputs).prediction_logits
    seen = inputs["attention_mask"] == 1
    torch.testing.assert_close(here[seen], there[seen], rtol=0, atol=1e-5)


def test_the_global_tokens_of_a_bert_have_the_type_that_all_its_words_have(tmp_path):
    stock = write_model(tmp_path, "BertModel").embeddings
    write_xlm_roberta_tokenizer(tmp_path)
    model, tokenizer = convert(tmp_path)
    words, positions = stock.word_embeddings.weight, stock.position_embeddings.weight
    first = words[tokenizer.cls_token_id] + positions[0] + stock.token_type_embeddings.weight[0]
    torch.testing.assert_close(model.embeddings.global_embeddings.weight[0], first, rtol=0, atol=1e-6)
    assert model.embeddings.token_type_embeddings.weight.equal(stock.token_type_embeddings.weight)


TOKENIZERS = {
    "BertModel": write_wordpiece,
    "RobertaModel": write_bpe,
    "CamembertModel": write_camembert_sentencepiece,
}


@pytest.mark.parametrize("with_json", [False, True], ids=["old files", "tokenizer.json"])
@pytest.mark.parametrize("architecture", TOKENIZERS)
def test_the_result_reads_the_same_tokens(tmp_path, architecture, with_json):
    """By the libraries that the tokenizers were made with; RoBERTa's alone of the three knows no unknown letters."""
    source, target = tmp_path / "source", tmp_path / "target"
    write_model(source, architecture, vocab_size=700)
    ids = TOKENIZERS[architecture](source)
    if with_json:
        AutoTokenizer.from_pretrained(convert_to(source, tmp_path / "first")).save_pretrained(source)
        for path in source.iterdir():
            if path.name in ("vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model"):
                path.unlink()
    tokenizer = AutoTokenizer.from_pretrained(convert_to(source, target))
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == ids(text)
    assert tokenizer(*TEXTS[:2])["input_ids"] == ids(*TEXTS[:2])
    assert tokenizer.model_max_length == 600
    assert ("token_type_ids" in tokenizer("a", "b")) == (architecture == "BertModel")
    mask = tokenizer.mask_token_id
    assert mask is not None and tokenizer(f"Paris {tokenizer.mask_token}.")["input_ids"].count(mask) == 1
    model = AutoModel.from_pretrained(target, trust_remote_code=True)
    batch = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    assert model(**batch).last_hidden_state.isfinite().all()


def convert_to(source, target, *options):
    command = ["--initial_model", str(source), "--model_name", str(target), "--max_sequence_length", "600", *options]
    assert main(command) == 0
    return target


def test_how_the_source_cut_its_texts_is_not_handed_on(tmp_path):
    write_model(tmp_path, "BertModel")
    write_xlm_roberta_tokenizer(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    write_settings(tmp_path, **settings, max_length=16, stride=2, pad_to_multiple_of=8)
    cut = AutoTokenizer.from_pretrained(tmp_path).backend_tokenizer
    cut.enable_truncation(16)
    cut.enable_padding(length=16)
    cut.save(str(tmp_path / "tokenizer.json"))
    _, tokenizer = convert(tmp_path)
    assert len(tokenizer("Paris " * 100)["input_ids"]) > 100 and len(tokenizer("Paris")["input_ids"]) < 16
    tokenizer.save_pretrained(tmp_path / "again")
    assert "max_length" not in json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
    assert json.loads((tmp_path / "again" / "tokenizer.json").read_text())["truncation"] is None


def test_the_tokens_of_a_sentencepiece_model_alone(tmp_path):
    import sentencepiece

    for name, files in (("alone", ["sentencepiece.bpe.model"]), ("both", ["tokenizer.json"])):
        write_model(tmp_path / name, "XLMRobertaModel")
        write_xlm_roberta_tokenizer(tmp_path / name, files)
        convert_to(tmp_path / name, tmp_path / f"{name}-lsg")
    alone, both = (AutoTokenizer.from_pretrained(tmp_path / f"{name}-lsg") for name in ("alone", "both"))
    processor = sentencepiece.SentencePieceProcessor(str(tmp_path / "alone" / "sentencepiece.bpe.model"))
    for text in TEXTS:
        pieces = [3 if piece == 0 else piece + 1 for piece in processor.encode(text)]  # 0 is the unknown one there
        assert alone(text)["input_ids"] == both(text)["input_ids"] == [0, *pieces, 2]
    pair = alone(*TEXTS[:2])["input_ids"]
    assert pair == both(*TEXTS[:2])["input_ids"] and pair.count(2) == 3  # </s></s> between


@pytest.mark.parametrize(
    "architecture", [pytest.param("RobertaForMaskedLM", marks=pytest.mark.slow), "BertForMaskedLM"]
)
def test_the_command_line_converts_and_tries(tmp_path, architecture, capsys):
    source, target = tmp_path / "source", tmp_path / "target"
    write_model(source, architecture, vocab_size=700)
    (write_wordpiece if architecture == "BertForMaskedLM" else write_bpe)(source)
    convert_to(source, target, "--run_test")
    assert "Paris is the " in capsys.readouterr().out  # a filled mask, before and after
    config = json.loads((target / "config.json").read_text())
    assert config["model_type"] == "xlm-roberta" and config["architectures"] == [
        architecture.replace("Roberta", "LSGXLMRoberta").replace("Bert", "LSGXLMRoberta")
    ]
    # The result stands alone, and is saved again by transformers as it is.
    code = """
import sys
assert "lsg_xlmr" not in sys.modules
from transformers import AutoModel, AutoTokenizer
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model.save_pretrained(sys.argv[2]); tokenizer.save_pretrained(sys.argv[2])
again = AutoModel.from_pretrained(sys.argv[2], trust_remote_code=True)
inputs = AutoTokenizer.from_pretrained(sys.argv[2])("Paris is in France. " * 60, return_tensors="pt", truncation=True)
assert inputs.input_ids.shape[1] > 300 and again(**inputs)[0].equal(model(**inputs)[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, target, tmp_path / "again"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_what_python_saves_is_what_the_command_line_writes(tmp_path):
    source = tmp_path / "source"
    write_model(source, "BertForSequenceClassification", vocab_size=700)
    write_wordpiece(source)
    convert_to(source, tmp_path / "target")
    model, tokenizer = convert(source)
    model.save_pretrained(tmp_path / "python")
    tokenizer.save_pretrained(tmp_path / "python")
    inputs = AutoTokenizer.from_pretrained(tmp_path / "python")("Paris", "France", return_tensors="pt")
    here, there = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / name, trust_remote_code=True)(**inputs).logits
        for name in ("python", "target")
    )
    assert inputs.token_type_ids.max() == 1 and here.equal(there)


def test_an_embedder_with_a_bert_inside(tmp_path):
    """The shape of paraphrase-multilingual-MiniLM-L12-v2: a BERT that reads XLM-RoBERTa's tokens, mean pooling."""
    source, target = tmp_path / "source", tmp_path / "target"
    stock = write_model(source, "BertModel", max_position_embeddings=512, pad_token_id=0, initializer_range=0.05)
    write_xlm_roberta_tokenizer(source)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (source / "modules.json").write_text(json.dumps(modules))
    (source / "sentence_bert_config.json").write_text('{"max_seq_length": 128, "do_lower_case": false}')
    (source / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (source / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    convert_to(source, target)
    assert json.loads((target / "1_Pooling" / "config.json").read_text()) == pooling
    tokenizer = AutoTokenizer.from_pretrained(target)
    inputs = tokenizer(["Paris is the capital of France.", "Rome."], padding=True, return_tensors="pt")
    assert "token_type_ids" not in inputs
    weights = inputs.attention_mask[..., None]
    vectors = []
    for model in (stock, AutoModel.from_pretrained(target, trust_remote_code=True)):
        with torch.no_grad():
            vectors.append((model(**inputs).last_hidden_state * weights).sum(1) / weights.sum(1))
    assert torch.cosine_similarity(*vectors).min() > 0.99


def test_old_weights_of_a_bert_are_read(tmp_path):
    """A pickle in half precision with the LayerNorms' first names, as BERT's files of 2018 have them."""
    stock = write_model(tmp_path, "BertForTokenClassification").bfloat16()
    weights = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): weight
        for name, weight in stock.state_dict().items()
    }
    weights["bert.embeddings.position_ids"] = torch.arange(64)[None]
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    write_xlm_roberta_tokenizer(tmp_path)
    model, tokenizer = convert(tmp_path, pool_with_global=False)
    assert model.dtype == torch.bfloat16
    inputs = inputs_for(model.config, tokenizer)
    assert_same_answers(stock.float(), model.float(), inputs)


def test_code_that_a_checkpoint_names_is_not_run_and_named(tmp_path, caplog):
    stock = write_model(tmp_path, "BertModel")
    write_xlm_roberta_tokenizer(tmp_path)
    config_with(tmp_path, auto_map={"AutoModel": "modeling_other.OtherModel"})
    model, tokenizer = convert(tmp_path, pool_with_global=False)
    assert "auto_map" in caplog.text
    assert_same_answers(stock, model, inputs_for(model.config, tokenizer))


def test_a_published_lsg_checkpoint_of_another_name_keeps_its_global_tokens(tmp_path, caplog):
    write_model(tmp_path, "CamembertForMaskedLM")
    write_xlm_roberta_tokenizer(tmp_path)
    model, tokenizer = convert(tmp_path, block_size=16, sparse_block_size=16)
    model.save_pretrained(tmp_path / "lsg")
    tokenizer.save_pretrained(tmp_path / "lsg")
    config_with(tmp_path / "lsg", model_type="camembert", architectures=["LSGCamembertForMaskedLM"])
    source = Source(tmp_path / "lsg")
    assert source.is_lsg and source.architecture == "LSGXLMRobertaForMaskedLM"
    again, _ = LSGConverter(max_sequence_length=700, resize_lsg=True).convert_from_pretrained(source)
    assert again.config.block_size == 16 and "auto_map" not in caplog.text
    expected, table = (x.roberta.embeddings.global_embeddings.weight for x in (model, again))
    assert table.equal(expected)


OTHERS = ["distilbert", "mpnet", "electra", "deberta-v2", "xlm-roberta-xl", "xmod", "roberta-prelayernorm", "ernie"]
OTHERS += ["longformer", "albert", "megatron-bert", "ibert", "modernbert", "new", None, ["bert"]]


@pytest.mark.parametrize(
    "architecture, fields, words",
    [
        *(("XLMRobertaModel", {"model_type": other}, f"its model_type is {other!r}") for other in OTHERS),
        ("XLMRobertaModel", {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ("BertModel", {"position_embedding_type": "alibi"}, "position_embedding_type is 'alibi'"),
        ("BertModel", {"max_position_embeddings": "512"}, "max_position_embeddings"),
        ("BertForMaskedLM", {"hidden_act": "gelu_new"}, "its activation is 'gelu_new'"),
        ("BertForNextSentencePrediction", {}, "no LSG version of architecture 'BertForNextSentencePrediction'"),
        ("BertModel", {"model_type": "roberta"}, "no LSG version of architecture 'BertModel'"),
        ("RobertaModel", {"model_type": "bert"}, "no LSG version of architecture 'RobertaModel'"),
    ],
)
def test_what_is_another_function_is_refused_in_one_line(tmp_path, architecture, fields, words, capsys):
    source, target = tmp_path / "source", tmp_path / "target"
    write_model(source, architecture)
    write_xlm_roberta_tokenizer(source)
    config_with(source, **fields)
    capsys.readouterr()
    assert main(["--initial_model", str(source), "--model_name", str(target)]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and "\n" not in error and not target.exists()


def test_an_encoder_whose_lm_head_is_another_is_converted(tmp_path):
    stock = write_model(tmp_path, "BertForMaskedLM", hidden_act="relu")
    write_xlm_roberta_tokenizer(tmp_path)
    model, tokenizer = convert(tmp_path, "XLMRobertaModel", pool_with_global=False)
    assert_same_answers(stock.bert, model, inputs_for(model.config, tokenizer))


@pytest.mark.parametrize("tie", [True, False], ids=["tied by config", "untied by config"])
@pytest.mark.parametrize("with_bias", [False, True], ids=["decoder", "decoder and its bias"])
@pytest.mark.parametrize("architecture", ["XLMRobertaForMaskedLM", "RobertaForMaskedLM", "BertForMaskedLM"])
def test_a_decoder_of_its_own_is_kept(tmp_path, architecture, with_bias, tie):
    """Stock transformers keeps what differs from the word embeddings, whatever the configuration says."""
    source, target = tmp_path / "source", tmp_path / "target"
    write_model(source, architecture, tie_word_embeddings=tie)
    write_xlm_roberta_tokenizer(source)
    weights = load_file(source / "model.safetensors")
    head = "cls.predictions" if architecture.startswith("Bert") else "lm_head"
    weights[f"{head}.decoder.weight"] = torch.randn(1456, 32)
    weights[f"{head}.bias"] = torch.randn(1456)
    weights.pop(f"{head}.decoder.bias", None)
    if with_bias or not tie:
        weights[f"{head}.decoder.bias"] = torch.randn(1456)
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    stock = getattr(transformers, architecture).from_pretrained(source)
    convert_to(source, target, "--model_kwargs", "{'pool_with_global': False}")
    model = AutoModelForMaskedLM.from_pretrained(target, trust_remote_code=True)
    inputs = inputs_for(model.config, AutoTokenizer.from_pretrained(target))
    assert_same_answers(stock, model, inputs)
    model.tie_weights()
    assert_same_answers(stock, model, inputs)
    model.save_pretrained(tmp_path / "again")
    assert_same_answers(
        stock, AutoModelForMaskedLM.from_pretrained(tmp_path / "again", trust_remote_code=True), inputs
    )


def test_a_decoder_that_is_stored_twice_is_one(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    write_model(source, "XLMRobertaForMaskedLM")
    write_xlm_roberta_tokenizer(source)
    weights = load_file(source / "model.safetensors")
    weights["lm_head.decoder.weight"] = weights["roberta.embeddings.word_embeddings.weight"].clone()
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    convert_to(source, target)
    assert "lm_head.decoder.weight" not in load_file(target / "model.safetensors")
    model = AutoModelForMaskedLM.from_pretrained(target, trust_remote_code=True)
    assert model.lm_head.decoder.weight is model.roberta.embeddings.word_embeddings.weight
