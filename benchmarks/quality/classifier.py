"""
A document classifier, fine-tuned on passages of 512 tokens and converted: of which section of the manual is it?

A passage starts anywhere in its document and has lost its headings, its paths and the names of pages.
"""

import random

import torch
from corpus import load
from heads import LENGTHS, fine_tune, read_texts, text_ways
from passages import body, passage, random_starts
from torch.nn.functional import softmax
from training import SEED
from transformers import AutoTokenizer, XLMRobertaForSequenceClassification


NUM_LABELS = 9  # the sections of the manual, and 0 for the Debian reference
SHORT = (64, 128, 256, 512)  # tokens of the texts whose answers should stay as they were


def documents(folder, tokenizer, is_test):
    """`(contents, labels)` of the documents: lists of token ids, and sections."""
    found = [document for document in load(folder) if document.is_test == is_test]
    contents = tokenizer([body(document) for document in found], add_special_tokens=False)["input_ids"]
    return contents, [int(document.section) for document in found]


def long_passages(folder, tokenizer):
    """`(contents, labels)` of the test documents that have 4,096 tokens, each from a random place on."""
    rng = random.Random(SEED)
    found = [
        (ids[rng.randrange(len(ids) - LENGTHS[-1] + 1) :], label)
        for ids, label in zip(*documents(folder, tokenizer, is_test=True), strict=True)
        if len(ids) >= LENGTHS[-1]
    ]
    return [ids for ids, _ in found], torch.tensor([label for _, label in found])


def train(folder, source, name, tokenizer):
    """Folders of the classifier, and of the converted one after a little training."""
    contents, labels = documents(folder, tokenizer, is_test=False)
    edges = tokenizer.bos_token_id, tokenizer.eos_token_id

    def examples(length, count):
        starts = random_starts(contents, length, count, SEED)
        return [{"input_ids": passage(contents[i], start, length, edges), "labels": labels[i]} for i, start in starts]

    model_class = XLMRobertaForSequenceClassification
    return fine_tune(model_class, source, folder / f"classifier-{name}", examples, tokenizer, num_labels=NUM_LABELS)


def answer(model, rows):
    """Probabilities of the labels."""
    return softmax(model(rows).logits, dim=-1)


def run(folder, source, results):
    """
    Adds every way that `results["classifier"]` lacks: the share of documents that are right at each length, and for
    short texts the share that gets the source's label and the mean distance of the probabilities from the source's.
    """
    tokenizer = AutoTokenizer.from_pretrained(source, model_max_length=LENGTHS[-1])
    output, further = train(folder, source, results.path.stem, tokenizer)
    contents, labels = long_passages(folder, tokenizer)
    before = None
    for way in text_ways(XLMRobertaForSequenceClassification, output, further, folder):
        model = way.load()
        short, _ = read_texts(model, way, answer, contents, SHORT, tokenizer)
        before = before or short  # of the first way, which is the source
        if way.name in results["classifier"]:
            continue
        answers, seconds = read_texts(model, way, answer, contents, LENGTHS, tokenizer)
        results["classifier"][way.name] = {
            "documents": len(labels),
            "right": {length: _share(x.argmax(-1) == labels) for length, x in answers.items()},
            "same_label": {n: _share(x.argmax(-1) == before[n].argmax(-1)) for n, x in short.items()},
            "distance": {n: round((x - before[n]).abs().sum(-1).mean().item() / 2, 4) for n, x in short.items()},
            "seconds": seconds,
        }
        results.save()
        print(way.name, results["classifier"][way.name], flush=True)


def _share(hits):
    return round(hits.float().mean().item(), 4)
