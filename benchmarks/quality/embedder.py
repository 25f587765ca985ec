"""
An embedder, fine-tuned on passages of 512 tokens of translated pages and converted: is a text's nearest neighbour
among those of other languages its translation?

One encoder is trained with both poolings, the mean and the first token, and each is measured alone.
"""

import random
from collections import defaultdict

import torch
from corpus import load
from heads import LENGTHS, fine_tune, read_texts, text_ways
from passages import SKIPPED, passage, random_starts
from torch.nn.functional import cosine_similarity, cross_entropy, normalize
from training import SEED
from transformers import AutoTokenizer, Trainer, XLMRobertaModel


POOLINGS = {
    "mean": lambda hidden_states: hidden_states.mean(1),
    "first token": lambda hidden_states: hidden_states[:, 0],
}
TEMPERATURE = 0.05
NUM_TEXTS = 150
MIN_LENGTH = 2048  # tokens of a test text
SHORT = (64, 128, 256, 512)  # tokens of the texts whose vectors should stay as they were


class PairTrainer(Trainer):
    """InfoNCE: the translation of a text against those of the others in the batch, for both poolings."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with self.accelerator.autocast():
            hidden_states = model(torch.cat([inputs["input_ids"], inputs["translation_ids"]])).last_hidden_state
        loss = 0.0
        for pool in POOLINGS.values():
            first, second = normalize(pool(hidden_states).float(), dim=-1).chunk(2)
            similarity = first @ second.T / TEMPERATURE
            labels = torch.arange(len(similarity), device=similarity.device)
            loss = loss + cross_entropy(similarity, labels) + cross_entropy(similarity.T, labels)
        return (loss, {}) if return_outputs else loss


def train(folder, source, name, tokenizer):
    """Folders of the embedder, and of the converted one after a little training."""
    documents = [document for document in load(folder) if not document.is_test]
    contents = tokenizer([document.text for document in documents], add_special_tokens=False)["input_ids"]
    edges = tokenizer.bos_token_id, tokenizer.eos_token_id

    def examples(length, count):
        translations = defaultdict(list)
        for i, document in enumerate(documents):
            if len(contents[i]) >= length:
                translations[document.name].append(i)
        rng = random.Random(SEED)
        translated = [i for group in translations.values() if len(group) > 1 for i in group]
        found = []
        for place, start in random_starts([contents[i] for i in translated], length, count // 2, SEED):
            i = translated[place]
            j = rng.choice([other for other in translations[documents[i].name] if other != i])
            # The same share of the way through both: languages take different numbers of tokens.
            shift = round(start / len(contents[i]) * len(contents[j]))
            shift = min(shift, len(contents[j]) - length + 2)
            rows = (passage(contents[i], start, length, edges), passage(contents[j], shift, length, edges))
            found.append(dict(zip(("input_ids", "translation_ids"), rows, strict=True)))
        return found

    return fine_tune(XLMRobertaModel, source, folder / f"embedder-{name}", examples, tokenizer, PairTrainer)


def long_texts(folder, tokenizer):
    """`(contents, names, languages)` of test texts that have a translation among them."""
    found = []
    for document in load(folder):
        if document.is_test:
            words = document.text.split(" ")
            found.append((document, " ".join(words[round(SKIPPED * len(words)) :])))
    ids = tokenizer([text for _, text in found], add_special_tokens=False)["input_ids"]
    groups = defaultdict(list)
    for (document, _), content in zip(found, ids, strict=True):
        if len(content) >= MIN_LENGTH:
            groups[document.name].append((content, document.name, document.language))
    chosen = [group for group in groups.values() if len(group) > 1]
    random.Random(SEED).shuffle(chosen)
    return zip(*[text for group in chosen for text in group][:NUM_TEXTS], strict=True)


def nearest_is_translation(queries, index, names, languages):
    """Share of texts whose nearest vector in `index` among those of other languages is of the same page."""
    similarity = normalize(queries, dim=-1) @ normalize(index, dim=-1).T
    same_language = torch.tensor([[a == b for b in languages] for a in languages])
    nearest = similarity.masked_fill(same_language, -2).argmax(-1).tolist()
    return round(sum(names[i] == names[j] for i, j in enumerate(nearest)) / len(names), 4)


def vectors(model, rows):
    """The vectors of both poolings, one after the other."""
    hidden_states = model(rows).last_hidden_state
    return torch.cat([normalize(pool(hidden_states), dim=-1) for pool in POOLINGS.values()], dim=-1)


def run(folder, source, results):
    """
    Adds every way that `results["embedder"]` lacks, for each pooling: the share of texts found at each length, the
    cosine of short texts' vectors with the source's, and the share found by new vectors of queries among the
    source's vectors of the first 512 tokens, an index made before the conversion.
    """
    tokenizer = AutoTokenizer.from_pretrained(source, model_max_length=LENGTHS[-1])
    output, further = train(folder, source, results.path.stem, tokenizer)
    contents, names, languages = long_texts(folder, tokenizer)
    before = None
    for way in text_ways(XLMRobertaModel, output, further, folder):
        model = way.load()
        short, _ = read_texts(model, way, vectors, contents, SHORT, tokenizer)
        before = before or short  # of the first way, which is the source
        if f"{way.name}, {next(iter(POOLINGS))}" in results["embedder"]:
            continue
        long, seconds = read_texts(model, way, vectors, contents, LENGTHS, tokenizer)
        for place, pooling in enumerate(POOLINGS):
            new, old, texts = (
                {n: x.chunk(len(POOLINGS), dim=-1)[place] for n, x in values.items()}
                for values in (short, before, long)
            )
            results["embedder"][f"{way.name}, {pooling}"] = {
                "texts": len(names),
                "found": {n: nearest_is_translation(x, x, names, languages) for n, x in texts.items()},
                "found_in_old_index": {
                    n: nearest_is_translation(x, old[512], names, languages) for n, x in texts.items()
                },
                "cosine": {n: round(cosine_similarity(x, old[n]).mean().item(), 4) for n, x in new.items()},
                "seconds": seconds,
            }
            print(f"{way.name}, {pooling}", results["embedder"][f"{way.name}, {pooling}"], flush=True)
        results.save()
