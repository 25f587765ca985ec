# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
Embeds a corpus of long documents by Ray Data, on the cores of one machine or of a cluster.

    python examples/embed_corpus.py --model my-embedder-4096 --corpus corpus --output vectors
    python examples/embed_corpus.py --model my-embedder-4096 --corpus corpus --output vectors --address auto

`--corpus` is a folder of Parquet or JSONL files with the columns `id` and `text`; each file becomes one Parquet file
of `--output` with `id` and `embedding`, written whole or not at all. Killed and run again, the same command embeds
the files that are missing. On a cluster all three folders must be seen by every machine.

With `--window 128` a document has several rows, `id`, `start`, `end` and `embedding`: late chunks of at most so many
tokens (more where a character is of several), with where they begin and end in characters. A document longer than
what the model takes is read to its end, in passes; without `--window` it is cut.
"""

import argparse
import glob
import time
from pathlib import Path
from uuid import uuid4

import torch
from extras import ecosystem
from transformers import AutoModel, AutoTokenizer


with ecosystem():
    import pyarrow as pa
    import pyarrow.parquet as pq
    import ray
    from ray.data import ActorPoolStrategy, DataContext

from lsg_xlmr import late_chunks
from lsg_xlmr.evaluation.documents import read_rows


def read_jsonl(path):
    """The columns `id`, as it stands there, and `text` (`pyarrow.Table`)."""
    # Arrow's own reader would take ids such as 2024-01-02 for times, and no line longer than its blocks.
    rows = [row for _, row in read_rows(path, ("id", "text"))]
    ids = pa.array([row["id"] for row in rows]) if rows else pa.array([], pa.string())
    return pa.table({"id": ids, "text": pa.array([row["text"] for row in rows], pa.string())})


READERS = {".parquet": pq.read_table, ".jsonl": read_jsonl}


class Embedder:
    """Loads the model once in each process; embeds one file of the corpus at a call."""

    def __init__(self, model, output, pooling, window, batch_size, threads):
        torch.set_num_threads(threads)
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.model = AutoModel.from_pretrained(model, trust_remote_code=True).eval()
        self.output, self.pooling = Path(output), pooling
        self.window, self.batch_size = window, batch_size

    def __call__(self, batch):
        """`{"path": [file]}` to the file's documents, tokens and seconds."""
        path, start = Path(str(batch["path"][0])), time.perf_counter()
        table = READERS[path.suffix.lower()](path)
        rows, tokens = (self._late_chunks if self.window else self._vectors)(table["text"].to_pylist())
        embeddings = pa.array(rows.pop("embedding"), pa.list_(pa.float32()))
        columns = {name: pa.array(numbers, pa.int64()) for name, numbers in rows.items()}
        columns["id"] = table["id"].take(columns["id"])
        write_whole(pa.table({**columns, "embedding": embeddings}), target_of(path, self.output))
        return {"documents": [len(table)], "tokens": [tokens], "seconds": [time.perf_counter() - start]}

    def _late_chunks(self, texts):
        """Columns, a row for each window of each text, `id` the text's number; and the number of tokens."""
        found = late_chunks(self.model, texts, self.tokenizer, window=self.window, batch_size=self.batch_size)
        rows = {name: [] for name in ("id", "start", "end", "embedding")}
        for number, (vectors, spans) in enumerate(found):
            rows["id"] += [number] * len(spans)
            rows["start"] += [start for start, _ in spans]
            rows["end"] += [end for _, end in spans]
            rows["embedding"] += torch.nn.functional.normalize(vectors, dim=-1).tolist()
        return rows, sum(map(len, self.tokenizer(texts, verbose=False)["input_ids"]))

    def _vectors(self, texts):
        """Columns, a row for each text, `id` the text's number; and the number of tokens."""
        vectors, tokens = [], 0
        # Texts of like length together, so that little is padding.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for first in range(0, len(order), self.batch_size):
            found, count = self._embed([texts[i] for i in order[first : first + self.batch_size]])
            vectors += found
            tokens += count
        in_place = [vector for _, vector in sorted(zip(order, vectors, strict=True), key=lambda pair: pair[0])]
        return {"id": list(range(len(texts))), "embedding": in_place}, tokens

    @torch.inference_mode()
    def _embed(self, texts):
        inputs = self.tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
        states, mask = self.model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
        vectors = (states * mask).sum(1) / mask.sum(1) if self.pooling == "mean" else states[:, 0]
        return torch.nn.functional.normalize(vectors, dim=-1).tolist(), int(mask.sum())


def target_of(path, output):
    return Path(output) / f"{path.name}.parquet"


def write_whole(table, target):
    """`target` appears when all of it is there."""
    # A name of its own: on a cluster a process of a killed run may still write when the next one begins.
    partial = target.with_name(f".{target.name}.{uuid4().hex}.partial")
    pq.write_table(table, partial)
    partial.replace(target)


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of a converted checkpoint")
    parser.add_argument("--corpus", type=Path, required=True, help="folder of Parquet or JSONL files")
    parser.add_argument("--output", type=Path, required=True, help="folder of the Parquet files to write")
    parser.add_argument("--pooling", choices=("mean", "cls"), default="mean", help="default: %(default)s")
    parser.add_argument(
        "--window",
        type=int,
        help="tokens in a late chunk at most, but for those that share a character (if not given: one vector)",
    )
    parser.add_argument("--batch_size", type=int, default=4, help="texts at a time (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="cores of each process (default: %(default)s)")
    parser.add_argument("--address", help="of a Ray cluster; one of this machine's own is started if not given")
    args = parser.parse_args()
    if args.window is not None and (args.window < 1 or args.pooling != "mean"):
        parser.error(f"--window takes 1 or more tokens and --pooling mean, got {args.window} and {args.pooling}")
    there = sorted(path for path in args.corpus.glob("*") if path.is_file() and not path.name.startswith("."))
    files = [path for path in there if path.suffix.lower() in READERS]
    if not files:
        parser.error(f"--corpus {args.corpus} holds no file that ends in {' or '.join(READERS)}")
    if len(there) > len(files):
        others = ", ".join(path.name for path in there if path not in files)
        print(f"Not read, since they end in neither {' nor '.join(READERS)}: {others}.", flush=True)
    args.output.mkdir(parents=True, exist_ok=True)
    missing = [path for path in files if not target_of(path, args.output).exists()]
    print(f"{len(files) - len(missing)} of {len(files)} files are embedded already.", flush=True)
    if missing:
        embed(missing, args)
    for path in files:  # what killed runs began
        for partial in args.output.glob(f".{glob.escape(target_of(path, args.output).name)}.*.partial"):
            partial.unlink(missing_ok=True)


def embed(files, args):
    """Embeds `files` and prints what it costs."""
    if args.address:
        ray.init(address=args.address, logging_level="error")
    else:
        cores = args.workers * args.threads
        ray.init(num_cpus=cores, include_dashboard=False, object_store_memory=100 * 2**20, logging_level="error")
    DataContext.get_current().enable_progress_bars = False
    paths = [{"path": str(path.absolute())} for path in files]
    fields = (str(Path(args.model).absolute()), str(args.output.absolute()))
    done = ray.data.from_items(paths, override_num_blocks=len(paths)).map_batches(
        Embedder,
        fn_constructor_args=(*fields, args.pooling, args.window, args.batch_size, args.threads),
        compute=ActorPoolStrategy(size=args.workers),
        batch_size=1,
        num_cpus=args.threads,
    )
    documents = tokens = seconds = 0
    for row in done.iter_rows():
        documents, tokens, seconds = documents + row["documents"], tokens + row["tokens"], seconds + row["seconds"]
    print(f"{documents} documents, {tokens} tokens", end="")
    print(f": {seconds * args.threads / tokens * 1e6:.0f} core seconds per million tokens." if tokens else ".")


if __name__ == "__main__":
    main()
