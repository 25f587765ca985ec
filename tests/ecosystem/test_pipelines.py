"""Transformers' pipelines on texts of thousands of tokens, against the model called by hand."""

import pytest
import torch
from repository import TINY
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)
from transformers.pipelines import PIPELINE_REGISTRY

from lsg_xlmr import LSGConverter


SOURCE = TINY
LENGTH = 4096
SENTENCE = "The Seine flows through France. "  # 18 tokens of the tiny vocabulary
TEXT = SENTENCE * 90 + "Paris is the capital of France. " + SENTENCE * 60
TOO_LONG = SENTENCE * 400
LABELS = {
    "Model": {},
    "ForMaskedLM": {},
    "ForSequenceClassification": {"id2label": {0: "contradiction", 1: "neutral", 2: "entailment"}},
    "ForTokenClassification": {"id2label": {0: "O", 1: "B-LOC", 2: "I-LOC"}},
    "ForQuestionAnswering": {},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A function that gives the folder of the tiny checkpoint, converted, with another head; heads are random."""
    made = {}

    def make(head):
        if head not in made:
            made[head] = str(tmp_path_factory.mktemp("models") / head)
            labels = LABELS[head]
            if labels:
                labels = {**labels, "label2id": {label: number for number, label in labels["id2label"].items()}}
            model, tokenizer = LSGConverter().convert_from_pretrained(SOURCE, f"LSGXLMRoberta{head}", **labels)
            if head == "ForSequenceClassification":
                torch.manual_seed(0)
                torch.nn.init.normal_(model.classifier.out_proj.weight, std=1.0)  # so that labels differ clearly
            model.save_pretrained(made[head])
            tokenizer.save_pretrained(made[head])
        return made[head]

    return make


@torch.no_grad()
def by_hand(auto_class, folder, *texts, **fields):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(*texts, return_tensors="pt", **fields)
    return inputs, auto_class.from_pretrained(folder, trust_remote_code=True).eval()(**inputs)


def test_fill_mask(folders):
    folder = folders("ForMaskedLM")
    fill_mask = pipeline("fill-mask", model=folder, trust_remote_code=True)
    text = TEXT.replace("the capital", "the <mask>", 1)
    inputs, outputs = by_hand(AutoModelForMaskedLM, folder, text)
    assert inputs["input_ids"].shape[1] > 2000
    place = (inputs["input_ids"][0] == fill_mask.tokenizer.mask_token_id).nonzero().item()
    best = outputs.logits[0, place].softmax(-1).max(-1)
    found = fill_mask(text)[0]
    assert (found["token"], found["token_str"]) == (best.indices.item(), "capital")
    assert found["score"] == pytest.approx(best.values.item(), abs=1e-4)
    cut = fill_mask("Paris is the <mask> of France. " + TOO_LONG, tokenizer_kwargs={"truncation": True})
    assert cut[0]["token_str"] == "capital"


def test_text_classification(folders):
    folder = folders("ForSequenceClassification")
    classify = pipeline("text-classification", model=folder, trust_remote_code=True)
    _, outputs = by_hand(AutoModelForSequenceClassification, folder, TEXT)
    found = {row["label"]: row["score"] for row in classify(TEXT, top_k=None)}
    expected = outputs.logits.softmax(-1)[0]
    for number, label in LABELS["ForSequenceClassification"]["id2label"].items():
        assert found[label] == pytest.approx(expected[number].item(), abs=1e-4)
    inputs, outputs = by_hand(AutoModelForSequenceClassification, folder, TOO_LONG, truncation=True)
    assert inputs["input_ids"].shape[1] == LENGTH
    cut = classify(TOO_LONG, truncation=True)[0]
    assert cut["score"] == pytest.approx(outputs.logits.softmax(-1).max().item(), abs=1e-4)


def test_token_classification(folders):
    """Entities are found and put together wherever they stand; `stride` reads a text over the maximum in parts."""
    folder = folders("ForTokenClassification")
    tag = pipeline("token-classification", model=folder, trust_remote_code=True)
    _, outputs = by_hand(AutoModelForTokenClassification, folder, TEXT)
    names = LABELS["ForTokenClassification"]["id2label"]
    expected = {i: names[label] for i, label in enumerate(outputs.logits[0].argmax(-1).tolist()) if label}
    found = {row["index"]: row["entity"] for row in tag(TEXT)}
    assert found == {i: label for i, label in expected.items() if 0 < i < outputs.logits.shape[1] - 1}
    groups = tag(TEXT, aggregation_strategy="simple")
    assert 0 < len(groups) < len(found) and max(group["end"] for group in groups) > len(TEXT) * 3 // 4
    parts = tag(TOO_LONG, aggregation_strategy="simple", stride=256)
    assert max(group["end"] for group in parts) > len(TOO_LONG) * 3 // 4


def test_feature_extraction(folders):
    folder = folders("Model")
    extract = pipeline("feature-extraction", model=folder, trust_remote_code=True)
    _, outputs = by_hand(AutoModel, folder, TEXT)
    torch.testing.assert_close(
        torch.tensor(extract(TEXT)), outputs.last_hidden_state, atol=1e-4, rtol=0, check_dtype=False
    )
    cut = extract(TOO_LONG, truncation=True, return_tensors=True)
    assert cut.shape[1] == LENGTH


def test_zero_shot_classification(folders):
    folder = folders("ForSequenceClassification")
    classify = pipeline("zero-shot-classification", model=folder, trust_remote_code=True)
    names = ["France", "Japan"]
    scores = [
        by_hand(AutoModelForSequenceClassification, folder, TEXT, f"This example is {name}.")[1].logits[0, 2]
        for name in names
    ]
    found = classify(TEXT, names)
    expected = torch.stack(scores).softmax(0)
    for name, score in zip(found["labels"], found["scores"], strict=True):
        assert score == pytest.approx(expected[names.index(name)].item(), abs=1e-4)
    assert sorted(classify(TOO_LONG, names)["labels"]) == names  # cut by the pipeline itself


@pytest.mark.skipif(
    "question-answering" not in PIPELINE_REGISTRY.get_supported_tasks(), reason="no such pipeline in this transformers"
)
def test_question_answering(folders):
    """With `max_seq_len` of the model the long context is one window; the default of the pipeline is 384."""
    answer = pipeline("question-answering", model=folders("ForQuestionAnswering"), trust_remote_code=True)
    windows, question = [], "What is the capital of France?"
    answer.model.register_forward_hook(lambda model, args, outputs: windows.append(outputs.start_logits.shape[1]))
    found = answer(question=question, context=TEXT, max_seq_len=LENGTH)
    assert windows == [len(answer.tokenizer(question, TEXT)["input_ids"])]
    assert found["answer"] == TEXT[found["start"] : found["end"]]
    answer(question=question, context=TEXT)
    assert len(windows) > 5


def test_too_long_a_text_is_an_error(folders):
    classify = pipeline("text-classification", model=folders("ForSequenceClassification"), trust_remote_code=True)
    with pytest.raises(ValueError, match="has positions for 4096.*truncation=True"):
        classify(TOO_LONG)
