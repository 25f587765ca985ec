"""
Long-range use: a word that the training never saw stands in the first tokens of a document and is masked far later, as
is every other time it comes; at which rank does a model guess it?
"""

import time
from collections import defaultdict
from functools import partial

import torch
from corpus import load
from masked_lm import LENGTH, long_documents
from tqdm import tqdm
from transformers import AutoTokenizer, XLMRobertaForMaskedLM

from lsg_xlmr.conversion import ARCHITECTURES
from models import Way, stock, ways


FIRST = 256  # tokens: where the word stands first
DISTANCES = ((50, 200), (500, 1000), (1500, 2000), (3000, 3800))  # tokens from there to the mask
LSG_FIELDS = {
    "LSG norm /2": {},
    "LSG local only": {"sparsity_type": "none"},
    "LSG 16 globals": {"num_global_tokens": 16},
    "LSG 64 globals": {"num_global_tokens": 64},
}


def questions(folder, tokenizer):
    """
    `[(masked input_ids, [(place, token, distance)])]` of test documents: the first mask of each word asked for, the
    first token of the word, and which of `DISTANCES`.
    """
    known = {word for document in load(folder) if not document.is_test for word in document.text.split(" ")}
    found = []
    for document, input_ids in long_documents(folder, tokenizer, is_test=True):
        words = document.text.split(" ")
        # Tokens by word, as the whole text gives them: a word of its own begins with a piece of its own.
        encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=LENGTH)
        mentions = defaultdict(list)
        for place, word in enumerate(encoded.word_ids()):
            if word is not None and words[word] not in known and len(words[word]) > 3:
                spans = mentions[words[word]]
                if not spans or spans[-1][0] != word:
                    spans.append((word, []))
                spans[-1][1].append(place)
        masked, asked = torch.tensor(encoded["input_ids"]), []
        for spans in mentions.values():
            first, later = spans[0][1], [places for _, places in spans[1:]]
            if first[0] >= FIRST:
                continue
            for places in later:
                distance = [i for i, (low, high) in enumerate(DISTANCES) if low <= places[0] - first[0] < high]
                asked += [(places[0], encoded["input_ids"][places[0]], i) for i in distance]
            masked[[place for places in later for place in places]] = tokenizer.mask_token_id
        if asked:
            found.append((masked, asked))
    return found


@torch.no_grad()
def measure(way, rows):
    """`dict`: under each distance the ranks, 1 the best; and `"seconds"`."""
    model, start = way.load(), time.perf_counter()
    ranks = {f"{low}-{high}": [] for low, high in DISTANCES}
    for input_ids, asked in tqdm(rows, desc=way.name, leave=False):
        places, tokens, distances = (torch.tensor(column) for column in zip(*asked, strict=True))
        logits = model.lm_head(way.hidden_states(model, input_ids)[places])
        above = (logits > logits.gather(1, tokens[:, None])).sum(-1) + 1
        for rank, distance in zip(above.tolist(), distances.tolist(), strict=True):
            ranks["{}-{}".format(*DISTANCES[distance])].append(rank)
    return {"seconds": round(time.perf_counter() - start, 2), "ranks": ranks}


def run(folder, source, results):
    """Adds every way that `results["names"]` lacks, and what `further` has trained."""
    tokenizer = AutoTokenizer.from_pretrained(source, model_max_length=LENGTH)
    rows = questions(folder, tokenizer)
    compared = list(ways(XLMRobertaForMaskedLM, source, LENGTH, LSG_FIELDS))
    trained = folder / f"further-{results.path.stem}"
    model_class = ARCHITECTURES["LSGXLMRobertaForMaskedLM"][1]
    for name in ("LSG norm 2", "LSG local only"):
        if (trained / name).exists():
            compared.append(Way(f"{name} trained further", partial(stock, model_class, trained / name)))
    for way in compared:
        if way.name not in results["names"]:
            results["names"][way.name] = measure(way, rows)
            results.save()
        print(f"{way.name:30} {summary(results['names'][way.name])}", flush=True)


def summary(measured):
    """One line: for each distance the number of masks, the median rank and the share at rank 1."""
    parts = []
    for distance, ranks in measured["ranks"].items():
        if ranks:
            median = sorted(ranks)[len(ranks) // 2]
            share = sum(rank == 1 for rank in ranks) / len(ranks)
            parts.append(f"{distance}: {len(ranks)} masks, median rank {median}, {share:.1%} right")
    return "; ".join(parts)
