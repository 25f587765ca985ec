"""Late chunks of a `SentenceTransformer`: one chunk is what `encode_document` gives, and several mean the same."""

import pytest
import torch
from repository import TINY

from lsg_xlmr import late_chunks
from lsg_xlmr.cli import main


pytestmark = pytest.mark.ecosystem

TEXTS = ["The Seine flows through France. " * 150, "Paris is the capital of France.", "In Japan, people speak. " * 90]
PROMPTS = {"query": "query: ", "document": "passage: "}
TOLERANCE = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(scope="module")
def source():
    """A function that makes a `SentenceTransformer` of the small checkpoint with the given modules behind it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    def make(pooling="mean", *others, include_prompt=True, prompts=PROMPTS, **fields):
        modules = [Transformer(str(TINY)), Pooling(128, pooling, include_prompt=include_prompt), *others]
        return SentenceTransformer(modules=modules, prompts=prompts, device="cpu", **fields)

    return make


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    """A converted embedder, whose vectors are normalized."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize

    folder = tmp_path_factory.mktemp("embedder")
    source("mean", Normalize()).save_pretrained(str(folder / "source"))
    assert main(["--initial_model", str(folder / "source"), "--model_name", str(folder / "converted")]) == 0
    return SentenceTransformer(str(folder / "converted"), trust_remote_code=True, device="cpu")


def test_one_chunk_is_what_encode_document_gives(converted):
    expected = converted.encode_document(TEXTS, convert_to_tensor=True)
    found = late_chunks(converted, TEXTS, window=4096)
    torch.testing.assert_close(torch.cat([vectors for vectors, _ in found]), expected, **TOLERANCE)
    assert [spans for _, spans in found] == [[(0, len(text.strip()))] for text in TEXTS]
    unlike = converted.encode(TEXTS, convert_to_tensor=True)
    assert not torch.allclose(unlike, expected, **TOLERANCE)
    found = late_chunks(converted, TEXTS, window=4096, prompt="")
    torch.testing.assert_close(torch.cat([vectors for vectors, _ in found]), unlike, **TOLERANCE)


def test_chunks_know_of_the_text_around_them_and_are_normalized(converted):
    ((vectors, spans), *_) = late_chunks(converted, TEXTS, window=128)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(spans)), **TOLERANCE)
    start, end = spans[2]
    alone = converted.encode_document([TEXTS[0][start:end]], convert_to_tensor=True)
    assert not torch.allclose(vectors[2], alone[0], atol=1e-3, rtol=0)
    scores = converted.similarity(converted.encode_query("Which river?"), vectors)
    assert scores.shape == (1, len(spans))
    found = late_chunks(converted, TEXTS[:1], spans=[spans])
    torch.testing.assert_close(found[0].vectors, vectors, **TOLERANCE)


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("prompts", [PROMPTS, {"document": "passage: Rome: "}, {"corpus": "old "}, {}])
def test_prompts_of_the_source_and_modules_behind_the_pooling(source, prompts, include_prompt):
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize

    model = source("mean", Dense(128, 24), Normalize(), include_prompt=include_prompt, prompts=prompts, truncate_dim=9)
    short = [text[:600] for text in TEXTS]
    expected = model.encode_document(short, convert_to_tensor=True)
    found = torch.cat([vectors for vectors, _ in late_chunks(model, short, window=999)])
    assert found.shape == (3, 9)
    torch.testing.assert_close(found, expected, **TOLERANCE)


def test_a_default_prompt_stands_where_no_documents_is(source):
    model = source(prompts={"short": "Rome: "}, default_prompt_name="short")
    for name in ("document", "query"):  # put there by sentence-transformers itself
        model.prompts.pop(name, None)
    expected = model.encode_document(TEXTS[1:2], convert_to_tensor=True)
    torch.testing.assert_close(late_chunks(model, TEXTS[1:2], window=99)[0].vectors, expected, **TOLERANCE)


@pytest.mark.parametrize("pooling", ["cls", "max", "lasttoken", "weightedmean", ("mean", "max")])
def test_other_poolings_are_refused(source, pooling):
    with pytest.raises(ValueError, match="Late chunks are means of tokens.*pooling_mode .*: its vectors are no means"):
        late_chunks(source(pooling), TEXTS, window=128)


def test_other_modules_are_refused(source):
    from sentence_transformers import CrossEncoder, SparseEncoder

    for model in (SparseEncoder(str(TINY), device="cpu"), CrossEncoder(str(TINY), device="cpu")):
        with pytest.raises(ValueError, match="this model is Transformer.* with pooling_mode"):
            late_chunks(model, TEXTS, window=128)


def test_the_length_that_a_user_sets_is_that_of_a_pass(source):
    model = source()
    model.max_seq_length = 64
    (found,) = late_chunks(model, TEXTS[:1], window=128)
    (expected,) = late_chunks(source(), TEXTS[:1], window=128, max_length=64)
    torch.testing.assert_close(found.vectors, expected.vectors, **TOLERANCE)
    assert len(found.spans) > 9
