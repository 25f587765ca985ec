"""Embedders and rerankers of sentence-transformers, converted; LoRA and offloading, which they meet in practice."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from family_folders import write_model, write_wordpiece, write_xlm_roberta_tokenizer
from folders import cut_at, embedder, old_embedder
from repository import TINY
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from lsg_xlmr.cli import main


pytestmark = pytest.mark.ecosystem

SOURCE = TINY
LENGTH = 4096
SENTENCES = ("The Seine flows through France. ", "In Japan, people speak Japanese. ", "Rome is the capital of Italy. ")
TEXTS = [sentence * 150 for sentence in SENTENCES] + ["Paris is the capital of France."]
PROMPTS = {"query": "query: ", "document": "passage: "}


def convert(source, target, *options):
    assert main(["--initial_model", str(source), "--model_name", str(target), *options]) == 0
    return str(target)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A function that gives the converted folder of an embedder with the given pooling."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    made = {}

    def make(pooling):
        if pooling not in made:
            folder = tmp_path_factory.mktemp(pooling)
            transformer = Transformer(str(SOURCE))
            modules = [transformer, Pooling(128, pooling_mode=pooling), Normalize()]
            source = SentenceTransformer(modules=modules, prompts=PROMPTS, device="cpu")
            source.save_pretrained(str(folder / "source"))
            made[pooling] = convert(folder / "source", folder / "converted")
        return made[pooling]

    return make


@pytest.fixture
def load(folders):
    from sentence_transformers import SentenceTransformer

    return lambda pooling, **fields: SentenceTransformer(
        folders(pooling), trust_remote_code=True, device="cpu", **fields
    )


def embed_by_hand(folder, text, pooling):
    """An embedding without sentence-transformers."""
    inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt", truncation=True)
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()(**inputs).last_hidden_state[0]
    vector = states.mean(0) if pooling == "mean" else states[0]
    return torch.nn.functional.normalize(vector, dim=0)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_dense_embedder(load, folders, pooling):
    model = load(pooling)
    assert model.get_max_seq_length() == LENGTH and model.prompts == PROMPTS
    batch = model.encode(TEXTS, convert_to_tensor=True)
    for text, vector in zip(TEXTS, batch, strict=True):
        torch.testing.assert_close(vector, embed_by_hand(folders(pooling), text, pooling), atol=1e-5, rtol=0)
        torch.testing.assert_close(vector, model.encode(text, convert_to_tensor=True), atol=1e-5, rtol=0)
    prompted = model.encode(TEXTS[0], prompt_name="query", convert_to_tensor=True)
    expected = embed_by_hand(folders(pooling), PROMPTS["query"] + TEXTS[0], pooling)
    torch.testing.assert_close(prompted, expected, atol=1e-5, rtol=0)


def test_several_processes(load):
    model = load("mean")
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    try:
        spread = model.encode(TEXTS, pool=pool, convert_to_tensor=True)
    finally:
        model.stop_multi_process_pool(pool)
    torch.testing.assert_close(spread, model.encode(TEXTS, convert_to_tensor=True), atol=1e-5, rtol=0)


def test_trained_on_long_pairs_saved_and_loaded_elsewhere(load, tmp_path):
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        losses,
    )

    model = load("mean")
    before = model.encode(TEXTS, convert_to_tensor=True)
    pairs = Dataset.from_dict({"anchor": TEXTS[:3] + TEXTS[:1], "positive": TEXTS[1:] + TEXTS[:1]})
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path / "steps"), max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True
    )
    loss = losses.MultipleNegativesRankingLoss(model)
    SentenceTransformerTrainer(model, arguments, train_dataset=pairs, loss=loss).train()
    after = model.encode(TEXTS, convert_to_tensor=True)
    assert not torch.allclose(before, after, atol=1e-5)
    model.save_pretrained(str(tmp_path / "trained"))
    torch.save(after, tmp_path / "after.pt")
    # A process that cannot see this project.
    script = """
import sys, torch
from sentence_transformers import SentenceTransformer
texts = torch.load("texts.pt")
model = SentenceTransformer("trained", trust_remote_code=True, device="cpu")
torch.testing.assert_close(model.encode(texts, convert_to_tensor=True), torch.load("after.pt"), atol=1e-5, rtol=0)
assert not any(name.startswith("lsg_xlmr") for name in sys.modules) and model.get_max_seq_length() == 4096
"""
    torch.save(TEXTS, tmp_path / "texts.pt")
    environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_long_source_keeps_its_length(tmp_path):
    """8,194 positions are the shape of widely used XLM-RoBERTa embedders."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import XLMRobertaConfig, XLMRobertaModel

    config = XLMRobertaConfig.from_pretrained(SOURCE, max_position_embeddings=8194, num_hidden_layers=1)
    XLMRobertaModel(config).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(SOURCE, model_max_length=8192).save_pretrained(tmp_path / "base")
    transformer = Transformer(str(tmp_path / "base"))
    SentenceTransformer(modules=[transformer, Pooling(128)], device="cpu").save_pretrained(str(tmp_path / "source"))
    folder = convert(tmp_path / "source", tmp_path / "converted")
    model = SentenceTransformer(folder, trust_remote_code=True, device="cpu")
    assert model.get_max_seq_length() == 8192
    assert model.encode("The Seine flows through France. " * 600).shape == (128,)


def test_an_older_folder_gives_what_it_gave(tmp_path):
    from sentence_transformers import SentenceTransformer

    before = SentenceTransformer(str(old_embedder(tmp_path / "old", TINY)), device="cpu")
    # Within two blocks only the global token makes a difference.
    folder = convert(tmp_path / "old", tmp_path / "converted")
    after = SentenceTransformer(folder, trust_remote_code=True, device="cpu")
    modern = SentenceTransformer(str(embedder(tmp_path / "modern", TINY)), device="cpu")
    old, new, same = (model.encode(TEXTS[-1], convert_to_tensor=True) for model in (before, after, modern))
    torch.testing.assert_close(old, same, atol=1e-5, rtol=0)
    assert torch.cosine_similarity(old, new, dim=0) > 0.99
    assert [type(module).__name__ for module in after] == ["Transformer", "Pooling", "Normalize"]
    assert after.get_max_seq_length() == LENGTH


def test_every_reader_sees_the_same_tokens(tmp_path):
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

    cut_at(embedder(tmp_path / "source", TINY), 128)
    folder = convert(tmp_path / "source", tmp_path / "converted")
    here, alone = AutoTokenizer.from_pretrained(folder), Tokenizer.from_file(f"{folder}/tokenizer.json")
    model = SentenceTransformer(folder, trust_remote_code=True, device="cpu")
    readers = [
        lambda texts: here(texts, truncation=True, padding=True).input_ids,
        lambda texts: [x.ids for x in alone.encode_batch(texts)],
        lambda texts: model.preprocess(texts)["input_ids"].tolist(),
    ]
    if find_spec("fastembed"):
        from fastembed.common.preprocessor_utils import load_tokenizer

        theirs, _ = load_tokenizer(Path(folder))
        readers.append(lambda texts: [x.ids for x in theirs.encode_batch(texts)])
    for texts in ([TEXTS[0]], [TEXTS[-1]], [TEXTS[0], TEXTS[-1]], [TEXTS[0] * 5, TEXTS[-1]]):
        expected, *others = (reader(texts) for reader in readers)
        assert all(ids == expected for ids in others)
    assert len(expected[0]) == LENGTH


def test_a_router_of_converted_parts(tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    parts = [[Transformer(str(SOURCE)), Pooling(128, pooling_mode="mean")] for _ in range(2)]
    source = SentenceTransformer(modules=[Router.for_query_document(*parts)], device="cpu")
    source.save_pretrained(str(tmp_path / "router"))
    assert main(["--initial_model", str(tmp_path / "router"), "--model_name", str(tmp_path / "out")]) == 2
    for part in ("query_0_Transformer", "document_0_Transformer"):
        folder = convert(tmp_path / "router" / part, tmp_path / part)
        shutil.rmtree(tmp_path / "router" / part)
        shutil.move(folder, tmp_path / "router" / part)
    for name in ("configuration_lsg.py", "modeling_lsg_xlm_roberta.py"):
        shutil.copy(tmp_path / "router" / part / name, tmp_path / "router")
    model = SentenceTransformer(str(tmp_path / "router"), trust_remote_code=True, device="cpu")
    assert model.get_max_seq_length() == LENGTH
    for encode in (type(model).encode_query, type(model).encode_document):
        near, far = (encode(x, TEXTS[-1], convert_to_tensor=True) for x in (model, source))
        assert torch.cosine_similarity(near, far, dim=0) > 0.99


def test_settings_that_go_into_the_configuration(load):
    assert load("mean", config_kwargs={"sparsity_type": "pooling"})[0].auto_model.config.sparsity_type == "pooling"
    with pytest.raises(TypeError, match="^'sparsity_type' is a field of LSGConfig, .*into `config_kwargs`, not"):
        load("mean", model_kwargs={"sparsity_type": "pooling"})
    with pytest.raises(TypeError, match="Neither from_pretrained nor LSGConfig knows 'sparsity'"):
        load("mean", model_kwargs={"sparsity": "pooling"})


def test_the_snippets_of_the_card_run(folders):
    for block in re.findall(r"```python\n(.*?)```", Path(folders("mean"), "README.md").read_text(), re.DOTALL):
        assert "SentenceTransformer" in block
        exec(block, {})


def test_cross_encoder(tmp_path):
    from sentence_transformers import CrossEncoder

    source = CrossEncoder(str(SOURCE), num_labels=1, device="cpu")
    source.save_pretrained(str(tmp_path / "source"))
    folder = convert(tmp_path / "source", tmp_path / "converted")
    model = CrossEncoder(folder, trust_remote_code=True, device="cpu")
    pairs = [("Which river flows through France?", text) for text in TEXTS]
    scores = model.predict(pairs, convert_to_tensor=True)
    by_hand = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for pair, score in zip(pairs, scores, strict=True):
        with torch.no_grad():
            logit = by_hand(**tokenizer(*pair, return_tensors="pt")).logits[0, 0]
        torch.testing.assert_close(score, logit.sigmoid(), atol=1e-5, rtol=0)
    assert [row["corpus_id"] for row in model.rank(pairs[0][0], TEXTS)] == scores.argsort(descending=True).tolist()


def test_sparse_encoder(tmp_path):
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling

    modules = [MLMTransformer(str(SOURCE)), SpladePooling(pooling_strategy="max")]
    SparseEncoder(modules=modules, device="cpu").save_pretrained(str(tmp_path / "source"))
    folder = convert(tmp_path / "source", tmp_path / "converted")
    model = SparseEncoder(folder, trust_remote_code=True, device="cpu")
    found = model.encode(TEXTS[0], convert_to_tensor=True).to_dense()
    inputs = AutoTokenizer.from_pretrained(folder)(TEXTS[0], return_tensors="pt", truncation=True)
    with torch.no_grad():
        logits = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()(**inputs).logits[0]
    torch.testing.assert_close(found, logits.relu().log1p().amax(0), atol=1e-4, rtol=0)


def test_lora(tmp_path):
    from peft import AutoPeftModelForSequenceClassification, LoraConfig, get_peft_model

    folder = convert(SOURCE, tmp_path / "converted", "--architecture", "LSGXLMRobertaForSequenceClassification")
    base = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], init_lora_weights=False)
    model = get_peft_model(base, config).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(TEXTS[0], return_tensors="pt", truncation=True)
    model(**inputs, labels=torch.tensor([1])).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained and all("lora" in name or "classifier" in name for name in trained)
    with torch.no_grad():
        expected = model(**inputs).logits
        model.save_pretrained(tmp_path / "adapter")
        again = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter", trust_remote_code=True)
        torch.testing.assert_close(again.eval()(**inputs).logits, expected, atol=1e-5, rtol=0)
        merged = again.merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged", trust_remote_code=True)
        torch.testing.assert_close(loaded.eval()(**inputs).logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("place", ["auto", "disk"])
def test_device_map_and_offload(tmp_path, place):
    folder = convert(SOURCE, tmp_path / "converted")
    inputs = AutoTokenizer.from_pretrained(folder)(TEXTS[0], return_tensors="pt", truncation=True)
    parts = {"roberta.embeddings": "cpu", "roberta.encoder": "disk", "lm_head": "cpu"}
    fields = {"device_map": parts if place == "disk" else place, "offload_folder": str(tmp_path / "offload")}
    with torch.no_grad():
        expected = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()(**inputs).logits
        spread = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True, **fields).eval()(**inputs).logits
    # Layers that are fetched from elsewhere are hooked, and torch multiplies by its own library.
    torch.testing.assert_close(spread, expected, atol=1e-4, rtol=0)


def test_an_embedder_with_a_bert_inside(tmp_path):
    """As paraphrase-multilingual-MiniLM-L12-v2 and multilingual-e5-small are: BERT, with XLM-RoBERTa's tokenizer."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    write_model(tmp_path / "encoder", "BertModel", max_position_embeddings=512, initializer_range=0.05)
    write_xlm_roberta_tokenizer(tmp_path / "encoder")
    modules = [Transformer(str(tmp_path / "encoder")), Pooling(32, pooling_mode="mean"), Normalize()]
    source = SentenceTransformer(modules=modules, device="cpu")
    source.max_seq_length = 128
    source.save_pretrained(str(tmp_path / "source"))
    target = convert(tmp_path / "source", tmp_path / "target")
    model = SentenceTransformer(target, trust_remote_code=True, device="cpu")
    texts = ["Paris is the capital of France.", "Rome"]
    before, after = source.encode(texts), model.encode(texts)
    assert (before * after).sum(1).min() > 0.99
    assert model.max_seq_length == LENGTH


def test_a_reranker_that_was_bert_reads_pairs(tmp_path):
    from sentence_transformers import CrossEncoder

    write_model(tmp_path / "source", "BertForSequenceClassification", vocab_size=700, num_labels=1)
    write_wordpiece(tmp_path / "source")
    target = convert(tmp_path / "source", tmp_path / "target", "--model_kwargs", "{'pool_with_global': False}")
    pairs = [("Paris", "Paris is in France."), ("Rome", "Tokyo is in Japan.")]
    before = CrossEncoder(str(tmp_path / "source"), device="cpu").predict(pairs)
    after = CrossEncoder(target, trust_remote_code=True, device="cpu").predict(pairs)
    assert abs(before - after).max() < 0.02  # the global token is seen
