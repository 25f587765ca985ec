# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
Searches among passages of some 3,000 tokens by sentence-transformers: a source as it is, converted, and converted and
trained on long pairs for some steps.

    python examples/search_passages.py --output dense-4096
    python examples/search_passages.py --window 128 --output chunks-4096
    python examples/search_passages.py --kind sparse --output sparse-4096
    python examples/search_passages.py --kind reranker --output reranker-4096

`--model` is a folder or a hub name: a model of sentence-transformers of that kind, or any XLM-RoBERTa, around which
sentence-transformers puts its usual modules. A passage tells of one country, in a stretch that stands anywhere among
sentences about others; the query is a sentence about that country which is not in the passage. Both
models are written to `--output`. With `--window` the converted models give several vectors of a passage, late chunks
of about so many tokens, of which the one nearest to the query counts; training is as without.
"""

import argparse
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from extras import ecosystem
from train_tiny_xlm_roberta import load_facts, write_sentences
from transformers import set_seed

from lsg_xlmr import late_chunks
from lsg_xlmr.cli import main as convert


with ecosystem():
    from datasets import Dataset
    from sentence_transformers import (
        CrossEncoder,
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        SparseEncoder,
        SparseEncoderTrainer,
        SparseEncoderTrainingArguments,
    )
    from sentence_transformers.cross_encoder import losses as reranker_losses
    from sentence_transformers.sentence_transformer import losses as dense_losses
    from sentence_transformers.sentence_transformer.modules import Pooling
    from sentence_transformers.sparse_encoder import losses as sparse_losses


TINY = Path(__file__).parents[1] / "models" / "tiny-xlm-roberta"
TOKENS, STRETCH = 3000, 600  # of a passage, and of the part of it that tells of its country; about


@dataclass
class Kind:
    """What differs from kind to kind."""

    model: type
    trainer: type
    arguments: type
    loss: type  # called with the model


def reranker_loss(model):
    return reranker_losses.MultipleNegativesRankingLoss(model, num_negatives=1)  # each costs a passage


def splade_loss(model):
    ranking = sparse_losses.SparseMultipleNegativesRankingLoss(model)
    return sparse_losses.SpladeLoss(model, ranking, document_regularizer_weight=3e-5, query_regularizer_weight=5e-5)


KINDS = {
    "dense": Kind(
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        dense_losses.MultipleNegativesRankingLoss,
    ),
    "sparse": Kind(SparseEncoder, SparseEncoderTrainer, SparseEncoderTrainingArguments, splade_loss),
    "reranker": Kind(
        CrossEncoder,
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
        reranker_loss,
    ),
}


def queries_and_passages(tokenizer, count, seed):
    """`count` queries and the passage of each, the countries in turn; same seed, same."""
    rng, about = random.Random(seed), {}
    for sentence in write_sentences(load_facts()):
        about.setdefault(sentence.country, []).append(sentence.text)
    countries = rng.sample(sorted(about), len(about))
    queries, passages = [], []
    for i in range(count):
        country = countries[i % len(countries)]
        query, *told = rng.sample(about[country], len(about[country]))
        others = [text for name in countries if name != country for text in about[name]]
        before = rng.randrange(TOKENS - STRETCH)
        parts = [(others, before), (told, STRETCH), (others, TOKENS - STRETCH - before)]
        queries.append(query)
        passages.append(" ".join(text for texts, tokens in parts for text in drawn(texts, tokens, tokenizer, rng)))
    return queries, passages


def drawn(texts, tokens, tokenizer, rng):
    """Some of `texts`, the last of which goes beyond `tokens` tokens."""
    while tokens > 0:
        text = rng.choice(texts)
        tokens -= len(tokenizer.tokenize(text))
        yield text


def found_first(model, queries, passages, window=None):
    """The share of queries whose own passage is the first answer, by its nearest late chunk if there is a `window`."""
    if isinstance(model, CrossEncoder):
        pairs = [(query, passage) for query in queries for passage in passages]
        scores = model.predict(pairs, batch_size=4, convert_to_tensor=True).view(len(queries), len(passages))
    elif window:
        chunks = [vectors for vectors, _ in late_chunks(model, passages, window=window)]
        found = model.encode_query(queries, convert_to_tensor=True).cpu()
        scores = torch.stack([model.similarity(found, vectors).amax(1) for vectors in chunks], dim=1)
    else:
        fields = {"batch_size": 4, "convert_to_tensor": True}
        scores = model.similarity(model.encode_query(queries, **fields), model.encode_document(passages, **fields))
    return sum(int(row.argmax()) == i for i, row in enumerate(scores)) / len(queries)


def train(kind, model, pairs, args):
    columns = dict(zip(("query", "document"), pairs, strict=True))
    # An embedder is trained with the prompts it is asked with; a reranker has none.
    prompts = {} if kind.model is CrossEncoder else {name: model.prompts.get(name) or "" for name in columns}
    with tempfile.TemporaryDirectory() as folder:
        arguments = kind.arguments(
            folder,
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            warmup_steps=args.steps // 10,
            prompts=prompts or None,
            seed=args.seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        kind.trainer(model, arguments, train_dataset=Dataset.from_dict(columns), loss=kind.loss(model)).train()


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n\n")[0])
    parser.add_argument("--kind", choices=KINDS, default="dense", help="default: %(default)s")
    parser.add_argument("--model", default=str(TINY), help="folder or hub name (default: the small checkpoint)")
    parser.add_argument("--pooling", choices=("mean", "cls"), help="of a dense embedder; by default the model's own")
    parser.add_argument(
        "--window",
        type=int,
        help="tokens in a late chunk at most, but for those that share a character (if not given: one vector)",
    )
    parser.add_argument("--output", type=Path, required=True, help="new folder for the two models")
    parser.add_argument("--tested", type=int, default=28, help="passages to search among (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="default: %(default)s")
    parser.add_argument("--batch_size", type=int, default=8, help="pairs in a step (default: %(default)s)")
    parser.add_argument("--learning_rate", type=float, default=3e-4, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args()
    if args.output.exists():
        parser.error(f"--output {args.output} is there already: name a new folder")
    if args.window is not None and (args.window < 1 or args.kind != "dense" or args.pooling == "cls"):
        parser.error("--window takes 1 or more tokens, and goes with --kind dense and pooling by the mean")
    set_seed(args.seed)  # a reranker's head may be new
    kind = KINDS[args.kind]
    model = kind.model(args.model)
    if args.pooling and args.kind == "dense":
        model = SentenceTransformer(modules=[model[0], Pooling(model.get_embedding_dimension(), args.pooling)])
    if args.window:
        try:
            late_chunks(model, ["Rome"], window=args.window)
        except ValueError as error:  # its pooling, before any work is done
            parser.error(f"--window: {error}")
    tested = queries_and_passages(model.tokenizer, args.tested, args.seed)
    print(
        f"source, first {model.get_max_seq_length()} tokens: {found_first(model, *tested):.1%} found first", flush=True
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        if convert(["--initial_model", folder, "--model_name", str(args.output / "converted")]):
            parser.exit(1)
    model = kind.model(str(args.output / "converted"), trust_remote_code=True)
    how = f", late chunks of {args.window}" if args.window else ""
    found = found_first(model, *tested, args.window)
    print(f"converted, {model.get_max_seq_length()} tokens{how}: {found:.1%} found first", flush=True)
    train(kind, model, queries_and_passages(model.tokenizer, args.steps * args.batch_size, args.seed + 1), args)
    model.save_pretrained(str(args.output / "trained"))
    model = kind.model(str(args.output / "trained"), trust_remote_code=True)
    print(f"converted, trained{how}: {found_first(model, *tested, args.window):.1%} found first")


if __name__ == "__main__":
    main()
