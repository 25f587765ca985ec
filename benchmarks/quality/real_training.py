"""
A little training of the real embedder on other manual pages than those it is measured on: the source on chunks, the
converted one on whole documents. A question is to be nearer to its own text than to the others in the batch.
"""

import random
from functools import partial

import reading
import torch
from questions import SEED, choose, pages_of
from torch.nn.functional import cross_entropy, normalize
from training import fit
from transformers import Trainer, XLMRobertaModel

from lsg_xlmr.conversion import ARCHITECTURES
from models import lsg, stock


SOURCE, CONVERTED = "chunks of 512", "LSG"  # the readers that are trained
STEPS = 24
BATCH = 8  # questions, each with its text
TEMPERATURE = 0.02
FIELDS = {
    **{"learning_rate": 2e-5, "per_device_train_batch_size": BATCH},
    **{"gradient_checkpointing": True, "save_steps": 4, "logging_steps": 1},
}
CHUNK = 512


class QuestionTrainer(Trainer):
    """InfoNCE of questions and texts, each read alone, since their lengths differ."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with self.accelerator.autocast():
            sides = [
                torch.stack([model(ids[None]).last_hidden_state[0].float().mean(0) for ids in inputs[side]])
                for side in ("questions", "texts")
            ]
        questions, texts = (normalize(side, dim=-1) for side in sides)
        similarity = questions @ texts.T / TEMPERATURE
        labels = torch.arange(len(similarity), device=similarity.device)
        loss = cross_entropy(similarity, labels)
        return (loss, {}) if return_outputs else loss


def collate(rows):
    """The examples of a batch as lists of tensors."""
    return {side: [torch.tensor(row[side]) for row in rows] for side in ("questions", "texts")}


def pairs(pages, documents, prompted):
    """
    At most `STEPS * BATCH` of `(question, text, share)` of `pages` that are not among `documents`: `share` is how far
    into the page the question stands.
    """
    left_out = {document["name"] for document in documents}
    pages = {name: versions for name, versions in pages.items() if name not in left_out}
    texts, questions = choose(pages, prompted.tokenizer, False, len(pages))
    found = []
    for question in questions:
        text = texts[question["document"]]
        asked = pages[text["name"]][question["language"]]
        found.append((question["text"], text["text"], asked.index(question["text"]) / len(asked)))
    return random.Random(SEED).sample(found, min(len(found), STEPS * BATCH))


def examples(found, prompted, length):
    """Token ids of `pairs`; of the text those `length` around the question's place."""
    head, tail = prompted.heads["passage"], prompted.tail
    size, rows = length - len(head) - len(tail), []
    for question, text, share in found:
        content = prompted.content(text)
        start = max(0, min(round(share * len(content)) - size // 2, len(content) - size))
        texts = [*head, *content[start : start + size], *tail]
        rows.append({"questions": prompted.whole("query", question), "texts": texts})
    return rows


def readers(folder, source, documents, prompted):
    """
    The `Reader`s of the source and of the converted model, trained unless they are in `folder`, that of the corpus;
    `documents` are those of the manuals that are left out.
    """
    found, trained = None, []
    for name, load, length, model_class in (
        (SOURCE, partial(stock, XLMRobertaModel, source), CHUNK, XLMRobertaModel),
        (
            CONVERTED,
            partial(lsg, XLMRobertaModel, source, reading.LENGTH),
            reading.LENGTH,
            ARCHITECTURES["LSGXLMRobertaModel"][1],
        ),
    ):
        output = _folder_of(name, folder)
        if not output.exists():
            found = found or pairs(pages_of("manuals", folder, prompted.tokenizer), documents, prompted)
            model, rows = load(), examples(found, prompted, length)
            # Four fifths of the weights, and few of the words are seen.
            model.embeddings.word_embeddings.requires_grad_(False)
            fit(model, prompted.tokenizer, rows, collate, output, QuestionTrainer, **FIELDS)
        window = CHUNK if name == SOURCE else None
        trained.append(reading.Reader(f"{name}, trained", partial(stock, model_class, output), window))
    return trained


def is_done(folder):
    """Whether both are trained."""
    return all(_folder_of(name, folder).exists() for name in (SOURCE, CONVERTED))


def _folder_of(name, folder):
    return folder / "real" / f"trained {name}"
