"""
A token classifier, fine-tuned on passages of 512 tokens and converted: which words did the page's markup make an
option or a command, an argument or a path, a heading? The text has lost that markup.
"""

import time

import torch
from corpus import load
from heads import LENGTHS, fine_tune, lsg_ways
from masked_lm import BUCKET, PER_LANGUAGE, long_documents
from passages import passage, random_starts
from tqdm import tqdm
from training import SEED
from transformers import AutoTokenizer, XLMRobertaForTokenClassification

from lsg_xlmr.evaluation.tags import micro_f1
from models import ways


TAGS = "OLAH"
OUTSIDE = -100  # the label of a word's other pieces


def tagged(documents, tokenizer):
    """`[(ids, labels)]`, lists: the tokens of each document, and the tag of a word at its first piece."""
    words = [document.text.split(" ") for document in documents]
    encoded = tokenizer(words, is_split_into_words=True, add_special_tokens=False)
    found = []
    for i, document in enumerate(documents):
        labels, before = [], None
        for word in encoded.word_ids(i):
            labels.append(OUTSIDE if word == before else TAGS.index(document.tags[word]))
            before = word
        found.append((encoded["input_ids"][i], labels))
    return found


def example(content, start, length, tokenizer):
    """A passage of one of `tagged` with the labels of its tokens."""
    ids, labels = content
    return {
        "input_ids": passage(ids, start, length, (tokenizer.bos_token_id, tokenizer.eos_token_id)),
        "labels": passage(labels, start, length, (OUTSIDE, OUTSIDE)),
    }


def train(folder, source, name, tokenizer):
    """Folders of the tagger, and of the converted one after a little training."""
    contents = tagged([document for document in load(folder) if not document.is_test], tokenizer)

    def examples(length, count):
        starts = random_starts([ids for ids, _ in contents], length, count, SEED)
        return [example(contents[i], start, length, tokenizer) for i, start in starts]

    model_class = XLMRobertaForTokenClassification
    return fine_tune(model_class, source, folder / f"tagger-{name}", examples, tokenizer, num_labels=len(TAGS))


@torch.no_grad()
def measure(way, rows):
    """
    Returns:
        `dict`: `"seconds"`, and for each bucket of positions how many words have a tag other than O (`"there"`), got
        one (`"given"`), and got theirs (`"right"`).
    """
    model, buckets = way.load(), LENGTHS[-1] // BUCKET
    counts = {key: torch.zeros(buckets) for key in ("there", "given", "right")}
    seconds = 0.0
    for row in tqdm(rows, desc=way.name, leave=False):
        start = time.perf_counter()
        found = model.classifier(way.hidden_states(model, row["input_ids"])).argmax(-1)
        seconds += time.perf_counter() - start
        labels = row["labels"]
        is_word, bucket = labels != OUTSIDE, torch.arange(len(labels)) // BUCKET
        for key, hits in (
            ("there", labels > 0),
            ("given", found > 0),
            ("right", (found == labels) & (labels > 0)),
        ):
            counts[key].index_add_(0, bucket, (hits & is_word).float())
    return {"seconds": round(seconds, 2), **{key: values.int().tolist() for key, values in counts.items()}}


def f1(measured):
    """Micro-averaged F1 of the tags other than O in each bucket, and over all."""
    columns = [[*measured[key], sum(measured[key])] for key in ("there", "given", "right")]
    return [micro_f1(*counts) for counts in zip(*columns, strict=True)]


def run(folder, source, results):
    """Adds every way that `results["tagger"]` lacks."""
    tokenizer = AutoTokenizer.from_pretrained(source, model_max_length=LENGTHS[-1])
    output, further = train(folder, source, results.path.stem, tokenizer)
    documents = [document for document, _ in long_documents(folder, tokenizer, True, per_language=PER_LANGUAGE)]
    rows = [example(content, 0, LENGTHS[-1], tokenizer) for content in tagged(documents, tokenizer)]
    model_class = XLMRobertaForTokenClassification
    for way in [*ways(model_class, output, LENGTHS[-1], {}), *lsg_ways(model_class, output, further, folder)]:
        if way.name not in results["tagger"]:
            results["tagger"][way.name] = measure(way, rows)
            results.save()
            scores = " ".join(f"{score:.4f}" for score in f1(results["tagger"][way.name]))
            print(f"{way.name:30} {scores} {results['tagger'][way.name]['seconds']} s", flush=True)
