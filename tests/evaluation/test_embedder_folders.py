"""`lsg-evaluate` of embedders as sentence-transformers keeps them: pooling, prompts, length."""

import json
import sys
from pathlib import Path

import pytest
import torch
from evaluated import SETTING, options
from folders import embedder, write

from lsg_xlmr.arguments import dictionary
from lsg_xlmr.evaluate import main
from lsg_xlmr.evaluation.documents import Document
from lsg_xlmr.evaluation.subject import Subject
from lsg_xlmr.evaluation.vectors import Vectors, hold_out, unpacked


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
    assert f"Pooling by {'cls' if pooling else 'mean'}, similarity by cosine, before a question 'query: '" in told
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


@pytest.mark.ecosystem
@pytest.mark.parametrize("pooling", [None, CLS], ids=["mean", "cls"])
def test_vectors_are_those_of_sentence_transformers(pooling, folder, documents):
    from sentence_transformers import SentenceTransformer

    folder(pooling)
    text = documents(1, 20)[0]["text"]
    head = Vectors(Subject("model", {"small": dictionary(SETTING)}, 256), [])
    item = head.item(Document("a", text))
    truncated = list(head.source_ways())[1]
    rest, questions = hold_out(Document("a", text))
    model = SentenceTransformer("model", device="cpu")
    loaded = truncated.load()
    with torch.no_grad():
        found = unpacked(head.read(loaded, truncated, item)["one"])
        asked = unpacked(head.beside(loaded, item)["questions"])
    for ours, theirs in (
        (found, model.encode_document([rest], convert_to_tensor=True)),
        (asked, model.encode_query(questions, convert_to_tensor=True)),
    ):
        torch.testing.assert_close(head._scaled(ours), theirs, atol=1e-5, rtol=0)
