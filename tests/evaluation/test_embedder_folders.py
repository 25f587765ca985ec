"""`lsg-evaluate` of embedders as sentence-transformers keeps them: pooling, prompts, length."""

import json
import sys
from pathlib import Path

import pytest
import torch
from evaluated import SETTING, options
from folders import embedder, write

from lsg_xlmr import late_chunks
from lsg_xlmr.arguments import dictionary
from lsg_xlmr.evaluate import main
from lsg_xlmr.evaluation.documents import Document
from lsg_xlmr.evaluation.head import LongText
from lsg_xlmr.evaluation.subject import Subject
from lsg_xlmr.evaluation.vectors import Vectors, hold_out, unpacked
from lsg_xlmr.evaluation.ways import Way
from lsg_xlmr.late_chunking.texts import Text


OLD_MEAN = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
CLS = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}


@pytest.fixture
def folder(source):
    """A sentence-transformers folder in `model` for 48 tokens, whose encoder was a masked LM."""

    def make(pooling=None):
        source("XLMRobertaForMaskedLM")
        embedder("model", "source")
        write("model", "sentence_bert_config.json", {"max_seq_length": 48, "do_lower_case": False})
        if pooling:
            write("model", "1_Pooling/config.json", pooling)

    return make


@pytest.mark.parametrize(
    "pooling", [pytest.param(None, marks=pytest.mark.slow, id="mean"), pytest.param(CLS, id="cls")]
)
def test_what_the_folder_says_counts(pooling, folder, documents, capsys):
    folder(pooling)
    documents(3, 20)
    assert main(["model", *options()[1:]]) == 0
    told = capsys.readouterr().out
    assert "model as XLMRobertaModel: reads 48 tokens" in told
    pooled = f"Pooling by {'cls' if pooling else 'mean'}, normalized; similarity by cosine;"
    assert f"{pooled} before a question 'query: ' and before a document 'passage: '" in told
    one, several = json.loads(Path("out/results.json").read_text())["scores"].values()
    assert "source, truncated to 48" in one and "source, chunks of 48, best" in several
    assert any("late chunks of 12" in name for name in several) == (pooling is None)
    assert {row["questions"] for row in [*one.values(), *several.values()]} <= set(range(3, 10))


def test_what_it_does_not_know_it_refuses(folder, documents, capsys):
    folder({"pooling_mode": "max"})
    documents(3, 20)
    assert main(["model", *options()[1:]]) == 2
    assert "The pooling of 'model' is 'max', and what is known here are mean and cls" in capsys.readouterr().err
    modules = json.loads(Path("model/modules.json").read_text())
    modules[2]["type"] = "sentence_transformers.models.Dense"
    write("model", "modules.json", modules)
    assert main(["model", *options()[1:]]) == 2
    assert "the module Dense behind its encoder" in capsys.readouterr().err
    assert main(["model", *options("--pooling", "mean")[1:]]) == 0
    write("model", "config_sentence_transformers.json", {"similarity_fn_name": "euclidean"})
    assert main(["model", *options("--pooling", "mean")[1:]]) == 2
    assert "The similarity of 'model' is 'euclidean'" in capsys.readouterr().err


def test_what_is_missing_is_named(source, documents, capsys, monkeypatch):
    source("XLMRobertaForMaskedLM")
    documents()
    for name in ("matplotlib", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(options()) == 0
    assert "Without plots, for which matplotlib is missing: pip install matplotlib" in capsys.readouterr().out
    assert "![" not in Path("out/report.md").read_text()
    Path("documents.parquet").touch()
    assert main(["source", "documents.parquet", "--output", "other"]) == 2
    assert "documents.parquet needs pyarrow to be read: pip install pyarrow" in capsys.readouterr().err


@pytest.mark.ecosystem
def test_plots_and_parquet(source, documents, capsys):
    import pyarrow as pa
    import pyarrow.parquet as pq

    source("XLMRobertaForMaskedLM")
    pq.write_table(pa.Table.from_pylist(documents()), "documents.parquet")
    assert main(["source", "documents.parquet", *options()[2:]]) == 0
    assert "matplotlib" not in capsys.readouterr().out
    page = Path("out/report.md").read_text()
    for name in ("score-1.png", "score-2.png", "positions.png", "seconds.png"):
        assert f"]({name})" in page and Path("out", name).read_bytes().startswith(b"\x89PNG")
    Path("documents.parquet").write_bytes(b"PAR1")
    assert main(["source", "documents.parquet", "--output", "other"]) == 2
    assert "documents.parquet cannot be read as Parquet" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"pooling_mode": ["cls", "mean"]}, "'cls' and 'mean'"),
        ({**CLS, "pooling_mode_mean_tokens": True}, "'cls' and 'mean'"),
        ({**OLD_MEAN, "pooling_mode_max_tokens": True}, "'mean' and 'pooling_mode_max_tokens'"),
    ],
)
def test_poolings_joined_are_refused(settings, said, folder, documents, capsys):
    folder(settings)
    documents(1)
    assert main(["model", *options()[1:]]) == 2
    assert f"The pooling of 'model' is {said}, and what is known here are" in capsys.readouterr().err


@pytest.mark.parametrize("settings", [{"pooling_mode": ["mean"]}, {"pooling_mode_cls_token": False}, {}])
def test_one_pooling_however_it_is_said(settings, folder):
    folder({"word_embedding_dimension": 32, **settings})
    assert Vectors(Subject("model", {}, 256), []).embedding.pooling == "mean"


PROMPTS = {"query": "query: ", "document": "Of it: "}
FOLDERS = {
    "mean": {},
    "cls": {"pooling": CLS},
    "normalized, dot": {"config": {"similarity_fn_name": "dot"}},
    "not normalized": {"modules": 2},
    "without the prompt": {"pooling": {**OLD_MEAN, "include_prompt": False}},
    "cls without the prompt": {"pooling": {**CLS, "include_prompt": False}},
    "cut": {"config": {"truncate_dim": 8, "similarity_fn_name": "dot"}},
    "passage": {"config": {"prompts": {"query": "query: ", "passage": "passage: "}}},
    "default": {"config": {"prompts": {"query": "query: ", "old": "old: "}, "default_prompt_name": "old"}},
    "no prompts": {"config": {"prompts": {"query": None}}},
}


@pytest.mark.ecosystem
@torch.no_grad()
@pytest.mark.parametrize("name", FOLDERS)
def test_vectors_are_those_of_sentence_transformers(name, folder, documents):
    from sentence_transformers import SentenceTransformer

    said = FOLDERS[name]
    folder(said.get("pooling"))
    config = {"prompts": PROMPTS, "similarity_fn_name": "cosine", **said.get("config", {})}
    write("model", "config_sentence_transformers.json", config)
    write("model", "modules.json", json.loads(Path("model/modules.json").read_text())[: said.get("modules", 3)])
    document = Document("a", documents(1, 20)[0]["text"])
    head = Vectors(Subject("model", {"small": dictionary(SETTING)}, 256), [])
    item = head.item(document)
    chunks, truncated = list(head.source_ways())[:2]
    rest, questions = hold_out(document)
    model, loaded = SentenceTransformer("model", device="cpu"), truncated.load()
    found = unpacked(head.read(loaded, truncated, item)["one"])
    exact = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(found, model.encode_document([rest], convert_to_tensor=True), **exact)
    asked = unpacked(head.beside(loaded, item)["questions"])
    torch.testing.assert_close(asked, model.encode_query(questions, convert_to_tensor=True), **exact)
    read = {key: unpacked(vectors) for key, vectors in head.read(loaded, chunks, item).items()}
    torch.testing.assert_close(read["chunks"][:1], found, **exact)
    if said.get("config", {}).get("truncate_dim") is None:
        mean = read["chunks"].mean(0, keepdim=True)
        mean = torch.nn.functional.normalize(mean, dim=-1) if said.get("modules", 3) == 3 else mean
        torch.testing.assert_close(read["one"], mean, **exact)
    if head.embedding.pooling == "mean":
        text = Text(rest[:150], head.subject.tokenizer, head.prompt)
        windows = {size: text.windows(size) for size in (head.subject.short, head.window)}
        item = LongText("a", torch.tensor(text.ids), text.head, {"windows": windows})
        (late,) = late_chunks(model, [rest[:150]], window=head.window)
        found = unpacked(head.read(loaded, Way("whole", None), item)[f"late {head.window}"])
        assert len(found) > 1
        torch.testing.assert_close(found, late.vectors, **exact)
