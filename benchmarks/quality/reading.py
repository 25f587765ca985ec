"""
Ways in which a real embedder reads a document. Each reads it once and keeps the mean of every 16 hidden states,
of which all vectors of the document are made, one or several.
"""

import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoTokenizer, XLMRobertaModel

from models import dense, lsg, stock


LENGTH = 4096
BLOCK = 16  # tokens
LSG_FIELDS = {
    "LSG": {},
    "LSG 64/64": {"block_size": 64, "sparse_block_size": 64},
    "LSG local only": {"sparsity_type": "none"},
    "LSG no globals": {"num_global_tokens": 0},
    "LSG 64/64 factor 4": {"block_size": 64, "sparse_block_size": 64, "sparsity_factor": 4},
    "LSG 64 local only": {"block_size": 64, "sparsity_type": "none"},
    "LSG pooling": {"sparsity_type": "pooling"},
    "LSG 64/64 no globals": {"block_size": 64, "sparse_block_size": 64, "num_global_tokens": 0},
    "LSG 16 globals": {"num_global_tokens": 16},
}


@dataclass(frozen=True)
class Reader:
    """How a document is read: by the model that `load()` gives, whole or in rows of `length` tokens."""

    name: str
    load: partial
    length: int | None = None
    share: int = 1  # rows begin every `length / share` tokens
    documents: int | None = None  # the first so many alone

    def rows(self, content, head, tail):
        """The rows that are read of the list `content`, each with `head` and `tail` (lists of token ids)."""
        size = (self.length or LENGTH) - len(head) - len(tail)
        step = size // self.share
        return [[*head, *content[i : i + size], *tail] for i in range(0, max(len(content) - size + step, 1), step)]


def readers(source):
    """Every `Reader`, the most telling first."""
    original, whole = partial(stock, XLMRobertaModel, source), partial(lsg, XLMRobertaModel, source, LENGTH)
    settings = [Reader(name, partial(whole, **fields)) for name, fields in LSG_FIELDS.items()]
    yield Reader("chunks of 512", original, 512)
    yield from settings[:2]
    yield Reader("chunks of 128", original, 128)
    yield from settings[2:4]
    yield Reader("sliding windows", original, 512, share=2)
    yield Reader("dense tiled", partial(dense, XLMRobertaModel, source, LENGTH), documents=60)
    yield from settings[4:]


class Prompted:
    """The token ids of texts with e5's prompts."""

    def __init__(self, source):
        self.tokenizer = AutoTokenizer.from_pretrained(source, model_max_length=10**6)
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        self.tail = [eos]
        self.heads = {prompt: [bos, *self.content(f"{prompt}:")] for prompt in ("query", "passage")}

    def content(self, text):
        """The ids of `text` alone."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def whole(self, prompt, text, length=LENGTH):
        """The ids of the prompt and `text`, `length` at most."""
        head = self.heads[prompt]
        return [*head, *self.content(text)[: length - len(head) - len(self.tail)], *self.tail]


def in_best_dtype(model):
    """`model` in bfloat16 where the CPU multiplies in it: twice as fast, and a cosine of 0.9999 to float32."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return model.bfloat16() if capabilities.get("avx512_bf16", False) else model


@torch.no_grad()
def hidden_states(model, rows, batch=8):
    """Yields `(tokens, hidden_size)` float32 of each of `rows` (lists of ids), those of one length together."""
    for i in range(0, len(rows), batch):
        part = rows[i : i + batch]
        same = [row for row in part if len(row) == len(part[0])]
        yield from model(torch.tensor(same)).last_hidden_state.float()
        for row in part[len(same) :]:
            yield model(torch.tensor([row])).last_hidden_state[0].float()


def read_document(model, rows, num_head, num_tail):
    """
    The means of the head, of every `BLOCK` tokens of the content and of the tail of each row.

    Returns:
        `{"means": (n, hidden_size) float16, "tokens": (n,) of each mean, "row": (n,)}`.
    """
    means, tokens, row = [], [], []
    for i, states in enumerate(hidden_states(model, rows)):
        content = len(states) - num_head - num_tail
        sizes = [num_head, *[BLOCK] * (content // BLOCK), *([content % BLOCK] if content % BLOCK else []), num_tail]
        means += [part.mean(0) for part in states.split(sizes)]
        tokens += sizes
        row += [i] * len(sizes)
    return {"means": torch.stack(means).half().numpy(), "tokens": np.array(tokens), "row": np.array(row)}


def seconds(readers, documents, prompted, rounds=3):
    """`{name: seconds a document}` in float32: medians over `documents` of the median of `rounds` in turns."""
    head, tail = prompted.heads["passage"], prompted.tail
    contents = [prompted.content(document["text"]) for document in documents]
    models = [reader.load() for reader in readers]
    taken = np.empty((rounds, len(contents), len(readers)))
    for place in tqdm(list(np.ndindex(taken.shape)), desc="seconds", leave=False):
        _, i, j = place
        rows = readers[j].rows(contents[i], head, tail)
        start = time.perf_counter()
        read_document(models[j], rows, len(head), len(tail))
        taken[place] = time.perf_counter() - start
    found = np.median(np.median(taken, 0), 0)
    return {reader.name: round(float(x), 3) for reader, x in zip(readers, found, strict=True)}


def folder_of(reader, folder):
    """Where `read` puts what it reads."""
    return folder / reader.name.replace("/", "-")


def read(reader, folder, documents, prompted, questions=()):
    """
    Reads what is not in `folder / reader.name` yet: one file for each document, `read_document` of it, and
    `questions.npy`, the questions' vectors, if any are asked.
    """
    output = folder_of(reader, folder)
    output.mkdir(parents=True, exist_ok=True)
    chosen = documents[: reader.documents]
    missing = [i for i in range(len(chosen)) if not (output / f"{i}.npz").exists()]
    unasked = len(questions) and not (output / "questions.npy").exists()
    if not missing and not unasked:
        return
    model = in_best_dtype(reader.load())
    if unasked:
        vectors = [row_vector(model, prompted.whole("query", question["text"])) for question in questions]
        save(output / "questions.npy", partial(np.save, arr=np.stack(vectors)))
    head, tail = prompted.heads["passage"], prompted.tail
    for i in tqdm(missing, desc=reader.name, leave=False):
        rows = reader.rows(prompted.content(chosen[i]["text"]), head, tail)
        save(
            output / f"{i}.npz",
            lambda file, rows=rows: np.savez(file, **read_document(model, rows, len(head), len(tail))),
        )


def row_vector(model, ids):
    """The mean of the tokens' hidden states, of length 1: `(hidden_size,)` float32."""
    mean = next(hidden_states(model, [ids])).mean(0).numpy()
    return mean / np.linalg.norm(mean)


def save(path, write):
    """A file that is whole or not there."""
    partial_path = path.with_name(f"{path.name}.partial")
    with open(partial_path, "wb") as file:
        write(file)
    partial_path.replace(path)
