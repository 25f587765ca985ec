"""Masked-LM loss and accuracy on whole test documents of 4,096 tokens, per language and position, without training."""

import random
import time
import zlib
from collections import Counter

import torch
from corpus import load
from tqdm import tqdm
from transformers import AutoTokenizer, XLMRobertaForMaskedLM

from lsg_xlmr.evaluation.masked_words import BUCKET, by_position, fill, hide
from models import ways


LENGTH = 4096  # tokens
PER_LANGUAGE = 10  # documents at most
TYPES = ("norm", "pooling", "bos_pooling", "lsh", "stride", "block_stride")
LSG_FIELDS = {
    "LSG local only": {"sparsity_type": "none"},
    **{f"LSG {name} /{f}": {"sparsity_type": name, "sparsity_factor": f} for name in TYPES for f in (2, 4, 8)},
    "LSG 16 globals": {"num_global_tokens": 16},
    "LSG 64 globals": {"num_global_tokens": 64},
    "LSG blocks of 64": {"block_size": 64, "sparse_block_size": 64},
    "LSG blocks of 64, norm /4": {"block_size": 64, "sparse_block_size": 64, "sparsity_factor": 4},
    "LSG sparse blocks of 64, norm /4": {"sparse_block_size": 64, "sparsity_factor": 4},
    "LSG blocks of 256": {"block_size": 256, "sparse_block_size": 256},
    "LSG interpolated": {"positions": "interpolated"},
}


def long_documents(folder, tokenizer, is_test, length=LENGTH, per_language=None):
    """`(document, input_ids)`, `(1, length)` each: the beginnings of documents that have as many tokens."""
    documents = [document for document in load(folder) if document.is_test == is_test and len(document.text) > length]
    random.Random(0).shuffle(documents)
    found = Counter()
    for document in documents:
        if found[document.language] == per_language:
            continue
        input_ids = tokenizer(document.text, truncation=True, max_length=length, return_tensors="pt")["input_ids"]
        if input_ids.shape[1] == length:
            found[document.language] += 1
            yield document, input_ids


def mask(document, input_ids, tokenizer):
    """`(masked input_ids, masks)`: the same tokens of a document are masked for every model; `masks` is bool."""
    seed = zlib.crc32(f"{document.name} {document.language}".encode())
    return hide(input_ids, tokenizer.mask_token_id, seed)


@torch.no_grad()
def measure(model, way, rows, tokenizer):
    """
    Returns:
        `dict`: `"seconds"`, and under `"languages"` for each the number of masks, the sum of their losses in nats and
        the number filled right, in each bucket of positions.
    """
    buckets = -(-rows[0][1].shape[1] // BUCKET)
    seconds, languages = 0.0, {}
    for document, input_ids in tqdm(rows, leave=False):
        masked, masks = mask(document, input_ids, tokenizer)
        start = time.perf_counter()
        logits = fill(model, way, masked[0], masks[0])
        seconds += time.perf_counter() - start
        sums = languages.setdefault(document.language, {key: [0.0] * buckets for key in ("masks", "loss", "right")})
        for key, values in by_position(logits, input_ids[0], masks[0]).items():
            sums[key] = [round(a + b, 3) for a, b in zip(sums[key], values, strict=True)]
    return {"seconds": round(seconds, 2), "languages": languages}


def run(folder, source, results):
    """Adds every way that `results["masked_lm"]` lacks."""
    tokenizer = AutoTokenizer.from_pretrained(source, model_max_length=LENGTH)
    rows = list(long_documents(folder, tokenizer, is_test=True, per_language=PER_LANGUAGE))
    for way in ways(XLMRobertaForMaskedLM, source, LENGTH, LSG_FIELDS):
        if way.name not in results["masked_lm"]:
            results["masked_lm"][way.name] = measure(way.load(), way, rows, tokenizer)
            results.save()
            print(summary(way.name, results["masked_lm"][way.name]), flush=True)


def over_languages(measured, key):
    """One of the sums of `measure`, in each bucket, over all languages."""
    return [sum(column) for column in zip(*(sums[key] for sums in measured["languages"].values()), strict=True)]


def summary(name, measured):
    """One line: the loss in each bucket, the accuracy, the time."""
    masks, loss, right = (over_languages(measured, key) for key in ("masks", "loss", "right"))
    buckets = " ".join(f"{a / b:.3f}" for a, b in zip(loss, masks, strict=True))
    return (
        f"{name:24} {buckets} | {sum(loss) / sum(masks):.4f} {sum(right) / sum(masks):.2%} {measured['seconds']:.0f} s"
    )
