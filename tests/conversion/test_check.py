"""`--run_test`: every sound checkpoint passes, whatever its head; one with a weight out of its place does not."""

import json
import re
import shutil

import pytest
import torch
import transformers
from repository import TINY
from safetensors.torch import load_file, save_file
from transformers import AutoModel, XLMRobertaConfig

from lsg_xlmr import cli
from lsg_xlmr.conversion import Source
from lsg_xlmr.conversion.check import check_checkpoint


# A whole model of random weights that makes much of little: its answers move a lot with the global token.
SMALL = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "initializer_range": 0.3}
SAME = r"; without global tokens the outputs differ by \de[-+]\d\d$"
CLASSIFIER, TAGGER = "XLMRobertaForSequenceClassification", "XLMRobertaForTokenClassification"
CHOICE = "XLMRobertaForMultipleChoice"
NOT_IN_5_0 = pytest.mark.skipif(
    transformers.__version__.startswith("5.0."), reason="transformers 5.0 saves this head without the pooler it needs"
)
MASKED_LM, DECODER = "XLMRobertaForMaskedLM", "XLMRobertaForCausalLM"


@pytest.fixture
def source(tmp_path):
    """A function that writes a checkpoint of stock XLM-RoBERTa with random weights, and gives its folder."""

    def make(architecture, dtype=torch.float32, **fields):
        config = XLMRobertaConfig.from_pretrained(TINY, **{**SMALL, **fields})
        folder = tmp_path / "source"
        getattr(transformers, architecture)(config).to(dtype).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "sentencepiece.bpe.model"):
            shutil.copy(TINY / name, folder)
        return folder

    return make


@pytest.fixture
def convert(tmp_path, capsys):
    """A function that converts a folder with `--run_test`, and gives the exit code and the lines of the findings."""

    def call(folder, *options, name="out"):
        options = ["--initial_model", str(folder), "--model_name", str(tmp_path / name), *options]
        capsys.readouterr()
        code = cli.main([*options, "--run_test", "--max_sequence_length", "600"])
        return code, [line for line in capsys.readouterr().out.splitlines() if line.startswith(("ok    ", "FAILED"))]

    return call


@pytest.fixture
def damage(tmp_path):
    """A function that changes the weights of what was converted."""

    def call(change):
        path = tmp_path / "out" / "model.safetensors"
        weights = load_file(path)
        change(weights)
        save_file({name: x.contiguous() for name, x in weights.items()}, path, metadata={"format": "pt"})

    return call


@pytest.mark.parametrize(
    "architecture, fields, answer",
    [
        ("XLMRobertaModel", {}, r"mean vectors before and after have cosine -?0\.\d+"),
        (MASKED_LM, {}, r"Paris is the <mask> of France\.  '.*' \d\.\d+ before, \d\.\d+ after"),
        (MASKED_LM, {"vocab_size": 1600, "type_vocab_size": 2}, "Paris is the <mask> of France"),
        (DECODER, {"is_decoder": True}, r"Paris is the capital of France\. \.\.\.  '.*' \d\.\d+ before"),
        (CLASSIFIER, {"num_labels": 1}, r"France\.  score -?\d\.\d+ before, -?\d\.\d+ after"),
        (CLASSIFIER, {"num_labels": 2, "initializer_range": 0.001}, r"'LABEL_\d' 0\.500 before, 0\.500 after"),
        (CLASSIFIER, {"num_labels": 3}, r"'LABEL_\d' \d\.\d+ before, \d\.\d+ after"),
        (CLASSIFIER, {"num_labels": 28, "problem_type": "multi_label_classification"}, r"'LABEL_\d+' \d\.\d+ before"),
        (CLASSIFIER, {"num_labels": 3, "problem_type": "regression"}, r"'LABEL_\d' -?\d+\.\d+ before"),
        (TAGGER, {"num_labels": 1}, r"9 of 9 labels as before; 'Paris'  'LABEL_0' 1\.000 before, 1\.000 after"),
        (TAGGER, {"num_labels": 3}, r"\d of 9 labels as before; 'Paris'  'LABEL_\d' \d\.\d+ before"),
        (TAGGER, {"num_labels": 9}, r"\d of 9 labels as before; 'Paris'  'LABEL_\d' \d\.\d+ before"),
        ("XLMRobertaForQuestionAnswering", {}, r"What is the capital of France\?  '.*' before, '.*' after"),
        pytest.param(CHOICE, {}, r"France\?  choice \d 0\.\d+ before, 0\.\d+ after", marks=NOT_IN_5_0),
    ],
)
def test_a_sound_checkpoint_of_every_head_passes(source, convert, architecture, fields, answer):
    code, (ran, answered) = convert(source(architecture, **fields))
    assert code == 0
    assert re.match(r"ok     AutoModel\w* +\d+ tokens \d+\.\d+ s   600 tokens \d+\.\d+ s$", ran)
    assert re.search(answer, answered) and re.search(SAME, answered), answered


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_held_against_the_same_numbers(source, convert, dtype):
    assert convert(source(CLASSIFIER, getattr(torch, dtype)), name="as_it_is")[0] == 0
    assert convert(source(TAGGER, num_labels=5), "--dtype", dtype)[0] == 0


@pytest.mark.parametrize(
    "architecture, fields",
    [
        (CLASSIFIER, {"mask_first_token": True, "num_global_tokens": 7}),
        (CLASSIFIER, {"pool_with_global": False, "sparsity_type": "lsh", "block_size": 64}),
        (CLASSIFIER, {"num_global_tokens": 0}),
        (DECODER, {"is_decoder": True, "num_global_tokens": 0, "block_size": 4, "sparse_block_size": 4}),
        (MASKED_LM, {"sparse_prediction": True, "sparse_block_size": 1, "sparsity_factor": 1, "block_size": 1}),
        (DECODER, {"is_decoder": True, "block_size": 4, "sparse_block_size": 4}),
        (DECODER, {"is_decoder": True, "dense_decoder": True}),
        (DECODER, {"is_decoder": True, "num_hidden_layers": 2}),
    ],
)
def test_whatever_the_settings(source, convert, architecture, fields):
    code, lines = convert(source(architecture), "--model_kwargs", str(fields))
    assert code == 0 and re.search(SAME, lines[1])


@torch.no_grad()
def test_without_global_tokens_short_texts_have_the_sources_vectors(source, convert, tmp_path):
    fields = {"num_global_tokens": 0, "block_size": 32, "sparse_block_size": 32}
    folder = source("XLMRobertaModel")
    code, lines = convert(folder, "--model_kwargs", str(fields))
    assert code == 0 and re.search(SAME, lines[1]) and "have cosine 1.000" in lines[1]
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        "- None of them is in use (`num_global_tokens=0`): texts of up to 64 tokens are read as by the source." in card
    )
    stock = AutoModel.from_pretrained(folder)
    model = AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True)
    for length in (5, 64):
        ids = torch.arange(5, 5 + length)[None]
        torch.testing.assert_close(model(ids).last_hidden_state, stock(ids).last_hidden_state, rtol=0, atol=1e-5)
    assert model(torch.arange(5, 90)[None]).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("architecture", [CLASSIFIER, CHOICE, "XLMRobertaModel"])
def test_of_a_new_head_the_hidden_states_are_compared(source, convert, damage, tmp_path, architecture):
    folder = source(MASKED_LM)
    code, lines = convert(folder, "--architecture", architecture)
    assert code == 0 and "; without global tokens the hidden states differ by" in lines[1]
    prefix = "" if architecture == "XLMRobertaModel" else "roberta."
    damage(add_noise(f"{prefix}encoder.layer.2.output.dense.weight"))
    assert not all(well for _, well in check_checkpoint(str(tmp_path / "out"), Source(folder)))


def test_a_source_that_is_lsg_already(source, convert, tmp_path):
    first = "{'block_size': 32, 'sparse_block_size': 32, 'mask_first_token': True, 'num_global_tokens': 5}"
    assert convert(source(CLASSIFIER, num_labels=3), "--model_kwargs", first, name="lsg")[0] == 0
    for options in ([], ["--resize_lsg"], ["--model_kwargs", "{'block_size': 16, 'sparse_block_size': 16}"]):
        code, lines = convert(tmp_path / "lsg", *options, "--overwrite")
        assert code == 0 and re.search(SAME, lines[1])


@pytest.fixture
def embedder(source):
    """The folder of a sentence-transformers model."""
    folder = source("XLMRobertaModel")
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def test_an_embedder_is_tried_as_what_it_is(embedder, convert, monkeypatch):
    monkeypatch.setattr("lsg_xlmr.conversion.check.find_spec", lambda name: None)  # sentence-transformers
    code, lines = convert(embedder)
    assert code == 0 and len(lines) == 2
    assert lines[0].startswith("ok     AutoModel  ") and "first tokens before and after have cosine" in lines[1]


@pytest.mark.ecosystem
def test_an_embedder_is_tried_by_sentence_transformers(embedder, convert, tmp_path):
    code, lines = convert(embedder)
    assert code == 0 and len(lines) == 3
    assert re.match(r"ok     SentenceTransformer +short text \d+\.\d+ s   long text \d+\.\d+ s$", lines[1])
    (tmp_path / "out" / "1_Pooling" / "config.json").write_text("{")
    findings = list(check_checkpoint(str(tmp_path / "out"), Source(embedder)))
    assert [well for _, well in findings] == [True, False] and findings[1][0].startswith("SentenceTransformer ")


def swap_layers(weights):
    for name in [name for name in weights if ".layer.0." in name]:
        other = name.replace(".layer.0.", ".layer.1.")
        weights[name], weights[other] = weights[other], weights[name]


def add_noise(name, size=0.01):
    def change(weights):
        weights[name] += size * weights[name].std() * torch.randn_like(weights[name])

    return change


POSITIONS, WORDS = (f"roberta.embeddings.{table}_embeddings.weight" for table in ("position", "word"))
LAYER = "roberta.encoder.layer.1"
DAMAGES = {
    "zeroed": lambda weights: weights[f"{LAYER}.attention.self.value.weight"].zero_(),
    "NaN": lambda weights: weights[f"{LAYER}.output.dense.weight"][0].fill_(torch.nan),
    "NaN in a global token": lambda weights: weights["roberta.embeddings.global_embeddings.weight"][0].fill_(
        torch.nan
    ),
    "swapped": swap_layers,
    "noise": add_noise(f"{LAYER}.intermediate.dense.weight"),
    "norm": lambda weights: weights[f"{LAYER}.attention.output.LayerNorm.bias"].add_(0.01),
    "positions shifted": lambda weights: weights.update({POSITIONS: weights[POSITIONS].roll(1, 0)}),
    "positions after the source's": lambda weights: weights[POSITIONS][514:].zero_(),
    "words shifted": lambda weights: weights.update({WORDS: weights[WORDS].roll(1, 0)}),
    "types": lambda weights: weights["roberta.embeddings.token_type_embeddings.weight"].add_(0.1 * torch.randn(32)),
}


@pytest.mark.parametrize("architecture", [CLASSIFIER, MASKED_LM])
def test_a_broken_checkpoint_fails(source, convert, damage, tmp_path, architecture):
    folder, out = source(architecture), tmp_path / "out"
    assert convert(folder)[0] == 0
    whole = (out / "model.safetensors").read_bytes()
    for kind, change in DAMAGES.items():
        (out / "model.safetensors").write_bytes(whole)
        damage(change)
        assert not all(well for _, well in check_checkpoint(str(out), Source(folder))), kind
    (out / "model.safetensors").write_bytes(whole)
    assert all(well for _, well in check_checkpoint(str(out), Source(folder)))


@pytest.mark.parametrize(
    "architecture, fields, head",
    [
        (CLASSIFIER, {"num_labels": 1}, "classifier.out_proj.bias"),
        (CLASSIFIER, {"num_labels": 3}, "classifier.dense.weight"),
        (TAGGER, {"num_labels": 9}, "classifier.weight"),
        (MASKED_LM, {}, "lm_head.dense.weight"),
        (DECODER, {"is_decoder": True}, "lm_head.bias"),
        ("XLMRobertaForQuestionAnswering", {}, "qa_outputs.weight"),
        pytest.param(CHOICE, {}, "classifier.weight", marks=NOT_IN_5_0),
        ("XLMRobertaModel", {}, "pooler.dense.weight"),
    ],
)
def test_a_broken_head_fails(source, convert, damage, tmp_path, architecture, fields, head):
    folder = source(architecture, **fields)
    assert convert(folder)[0] == 0
    damage(lambda weights: weights[head].add_(0.01 * torch.randn_like(weights[head])))
    (_, ran), (line, is_same) = check_checkpoint(str(tmp_path / "out"), Source(folder))
    assert ran and not is_same and line.endswith("where 1e-05 is allowed")


def test_labels_that_do_not_fit_the_head_fail(source, convert, tmp_path):
    folder = source(CLASSIFIER, num_labels=3)
    convert(folder)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["id2label"] = {"0": "a", "1": "b"}
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    ((line, is_well),) = check_checkpoint(str(tmp_path / "out"), Source(folder))
    assert not is_well and line.startswith("AutoModelForSequenceClassification  failed: ")
