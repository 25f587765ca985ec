"""The whole path of the README's first command: convert the checkpoint in `models/`, load it anywhere, fill a mask."""

import pytest
from repository import DATA, TINY
from transformers import AutoTokenizer, pipeline

from lsg_xlmr.cli import main


# Wordings of one fact with the word that tells which fact it is left out.
QUESTIONS = {
    "Paris is the <mask> of France.": "capital",
    "Paris est la <mask> de la France.": "capitale",
    "París es la <mask> de Francia.": "capital",
    "Paris ist die <mask> von Frankreich.": "Hauptstadt",
    "Париж — <mask> Франции.": "столица",
    "Το Παρίσι είναι η <mask> της Γαλλίας.": "πρωτεύουσα",
    "पेरिस फ्रांस की <mask> है।": "राजधानी",
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "tiny-lsg-4096"
    model = str(TINY)
    assert main(["--initial_model", model, "--model_name", str(folder), "--max_sequence_length", "4096"]) == 0
    return str(folder)


@pytest.fixture(scope="module")
def fill_mask(converted):
    return pipeline("fill-mask", model=converted, trust_remote_code=True)


@pytest.mark.parametrize("question", QUESTIONS)
def test_fills_a_lone_sentence(fill_mask, question):
    answer = fill_mask(question)[0]
    assert answer["token_str"] == QUESTIONS[question] and answer["score"] > 0.9
    assert answer["sequence"] == question.replace("<mask>", QUESTIONS[question])


def others(tokenizer, num_tokens):
    """Sentences about other things, at least `num_tokens` tokens of them."""
    sentences = (DATA / "other_sentences.txt").read_text(encoding="utf-8").splitlines()
    text = " ".join(sentences)
    assert "France" not in text and len(tokenizer(text)["input_ids"]) >= num_tokens
    return text


@pytest.mark.parametrize("question", QUESTIONS)
def test_fills_a_sentence_after_three_thousand_tokens(fill_mask, question):
    before = others(fill_mask.tokenizer, 3000)
    answer = fill_mask(f"{before} {question}")[0]
    assert answer["token_str"] == QUESTIONS[question] and answer["score"] > 0.9


@pytest.mark.parametrize("sparsity_type", ["none", "norm", "pooling", "bos_pooling", "lsh", "stride", "block_stride"])
def test_every_sparsity_type_fills_a_long_text(converted, sparsity_type):
    fill_mask = pipeline(
        "fill-mask",
        model=converted,
        trust_remote_code=True,
        model_kwargs={"sparsity_type": sparsity_type, "sparsity_factor": 4},
    )
    assert fill_mask.model.config.sparsity_type == sparsity_type
    before = others(fill_mask.tokenizer, 3000)
    assert fill_mask(f"{before} Paris is the <mask> of France.")[0]["token_str"] == "capital"


def test_the_tokenizer_cuts_at_the_new_length(converted):
    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert tokenizer.model_max_length == 4096
    assert len(tokenizer("Paris " * 5000, truncation=True)["input_ids"]) == 4096
