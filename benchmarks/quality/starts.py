"""Other starts of the first global token than the published one, `<s>` with its position."""

import torch
from corpus import load
from passages import passage, random_starts
from torch.nn.functional import mse_loss
from training import SEED
from transformers import AutoTokenizer

from models import lsg, stock


SHORT = (64, 128, 256, 512)  # tokens of the texts that a start is fitted to
STEPS = 80  # each of BATCH texts
BATCH = 8
LEARNING_RATE = 3e-3


@torch.no_grad()
def with_type(model_class, source, length):
    """The converted model whose first global token has the token type that every token has: a copy of `<s>`."""
    model = lsg(model_class, source, length)
    embeddings = model.base_model.embeddings
    embeddings.global_embeddings.weight[0] += embeddings.token_type_embeddings.weight[0]
    return model


def fitted(model_class, source, length, folder):
    """
    The converted model whose first global token is fitted: on short texts of the training documents, what the
    converted model pools is to be what the source pools.
    """
    model, teacher = lsg(model_class, source, length), stock(model_class, source)
    start = model.base_model.embeddings.global_embeddings.weight
    model.requires_grad_(False)
    start.requires_grad_(True)
    optimizer = torch.optim.Adam([start], lr=LEARNING_RATE)
    for rows in _texts(folder, AutoTokenizer.from_pretrained(source)):
        with torch.no_grad():
            target = teacher.base_model(rows).last_hidden_state[:, 0]
        loss = mse_loss(model.base_model(rows).last_hidden_state[:, 0], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def _texts(folder, tokenizer):
    """`STEPS` batches of one of the `SHORT` lengths in turn."""
    documents = [document.text for document in load(folder) if not document.is_test][: STEPS * BATCH]
    contents = tokenizer(documents, add_special_tokens=False)["input_ids"]
    edges = tokenizer.bos_token_id, tokenizer.eos_token_id
    for step in range(STEPS):
        length = SHORT[step % len(SHORT)]
        starts = random_starts(contents, length, BATCH, SEED + step)
        yield torch.stack([passage(contents[i], start, length, edges) for i, start in starts])
