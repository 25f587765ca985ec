# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
What the fine-tuning examples and the summarizer share: documents of thousands of tokens in which one sentence decides,
the two trainings, and the ways to read such a document that are compared.
"""

import dataclasses
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from extras import ecosystem
from tqdm import tqdm
from train_tiny_xlm_roberta import load_facts, write_sentences
from transformers import AutoTokenizer, HfArgumentParser, PreTrainedTokenizerBase, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from lsg_xlmr import LSGConverter


TINY = Path(__file__).parents[1] / "models" / "tiny-xlm-roberta"
SHORT, LONG = 512, 4096  # tokens a model takes
SHORT_TOKENS, LONG_TOKENS = (300, 480), (2000, 4000)  # of the documents' own sentences, at least and at most
BUCKET = 512  # tokens: results are told by where the deciding sentence stands
SUBJECTS = ("jury", "court", "club", "team")
VERDICTS = ("said no to", "said yes to")
WINDOWS = {"truncated": {}, "chunks": {"stride": 0}, "sliding windows": {"stride": SHORT // 2}}


@dataclass
class ExampleArguments:
    """What is trained, and how long; everything else is a flag of `TrainingArguments`."""

    model: str = field(default=str(TINY), metadata={"help": "folder or hub name of an XLM-RoBERTa checkpoint"})
    short_steps: int = field(default=400, metadata={"help": "steps of 16 texts of at most 512 tokens"})
    long_steps: int = field(default=60, metadata={"help": "steps at full length after the conversion"})
    tested: int = field(default=200, metadata={"help": "long documents to test with"})
    plot: Path = field(default=None, metadata={"help": "PNG file to draw; its numbers go to a JSON file beside it"})


@dataclass
class Document:
    """Sentences, one of which decides: the jury of `city` took the `verdict`th of `VERDICTS`."""

    sentences: list[str]
    place: int  # index of the deciding sentence
    offset: int  # tokens before it
    subject: str
    city: str
    verdict: int


@dataclass
class Task:
    """What differs from example to example."""

    auto_class: type  # of the model
    fields: dict  # of its configuration
    features: Callable  # (document, tokenizer, max_length) -> the `dict` a model is trained on
    collator: Callable  # tokenizer -> data collator
    is_right: Callable  # (document, model, tokenizer, **tokenizer arguments) -> whether the document is read right
    trainer_class: type = Trainer
    short_tokens: tuple[int, int] = SHORT_TOKENS  # of the documents trained on first


def documents(tokenizer: PreTrainedTokenizerBase, count: int, tokens: tuple[int, int], seed: int) -> list[Document]:
    """`count` documents whose sentences have between `tokens[0]` and `tokens[1]` tokens in all; same seed, same."""
    rng = random.Random(seed)
    facts = [sentence for sentence in write_sentences(load_facts()) if sentence.language == "en"]
    texts = sorted({sentence.text for sentence in facts})
    cities = sorted({sentence.text.split(" is a city")[0] for sentence in facts if " is a city" in sentence.text})
    lengths = {text: len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts}
    found = []
    for _ in range(count):
        target, sentences, starts = rng.randint(*tokens), [], [0]
        while starts[-1] < target - 40:  # the deciding sentence takes up to 40
            sentences.append(rng.choice(texts))
            starts.append(starts[-1] + lengths[sentences[-1]])
        place, subject = rng.randrange(len(sentences) + 1), rng.choice(SUBJECTS)
        city, verdict = rng.choice(cities), rng.randrange(len(VERDICTS))
        sentences.insert(place, f"In {city}, the {subject} {VERDICTS[verdict]} the plan.")
        found.append(Document(sentences, place, starts[place], subject, city, verdict))
    return found


def run(task: Task) -> None:
    """
    Fine-tunes `--model` on short texts, converts it, fine-tunes that on long ones, and tells how each way reads long
    documents. Stopped or killed, the same command goes on from the last checkpoint in `--output_dir`.
    """
    example, arguments = parse(ExampleArguments, TrainingArguments)
    tokenizer = AutoTokenizer.from_pretrained(example.model)
    source = task.auto_class.from_pretrained(example.model, **task.fields)
    batch = {"max_steps": example.short_steps, "per_device_train_batch_size": 16, "learning_rate": 3e-4}
    short = train(task, source, tokenizer, SHORT, dataclasses.replace(arguments, **batch), "short")
    converted, long_tokenizer = LSGConverter(max_sequence_length=LONG).convert_from_pretrained(short)
    batch = {"max_steps": example.long_steps}
    long = train(task, converted, long_tokenizer, LONG, dataclasses.replace(arguments, **batch), "long")

    tested = documents(tokenizer, example.tested, LONG_TOKENS, seed=arguments.seed + 2)
    source = task.auto_class.from_pretrained(short)
    converted, _ = LSGConverter(max_sequence_length=LONG).convert_from_pretrained(short)
    results = {name: read(task, source, tokenizer, tested, name, SHORT, **fields) for name, fields in WINDOWS.items()}
    results["converted"] = read(task, converted, long_tokenizer, tested, "converted", LONG)
    trained = task.auto_class.from_pretrained(long, trust_remote_code=True)
    results["converted, trained"] = read(task, trained, long_tokenizer, tested, "converted, trained", LONG)
    tell(results)
    if example.plot:
        draw(results, tested, example.plot)


def parse(*classes):
    """The command line as one object of each of `classes`, the last a `TrainingArguments`."""
    parser = HfArgumentParser(classes)
    parser.set_defaults(per_device_train_batch_size=4, learning_rate=1e-4, save_steps=50, save_total_limit=1)
    parsed = parser.parse_args_into_dataclasses()
    set_seed(parsed[-1].seed)  # what is new in a model is drawn
    return parsed


def tell(results):
    """Prints what `read` found."""
    for name, found in results.items():
        right = found["right"]
        print(f"{name:20} {sum(right) / len(right):6.1%} right, {found['seconds']:.1f} s")


def train(task, model, tokenizer, length, arguments, name):
    """Trains `model` on documents of up to `length` tokens; the folder that holds it when it is done."""
    folder = Path(arguments.output_dir, name)
    done = folder / "done"
    if done.exists():
        return done
    tokens, seed = (task.short_tokens, arguments.seed) if length == SHORT else (LONG_TOKENS, arguments.seed + 1)
    count = arguments.max_steps * arguments.train_batch_size * arguments.gradient_accumulation_steps
    texts = documents(tokenizer, count, tokens, seed)
    trainer = task.trainer_class(
        model,
        dataclasses.replace(arguments, output_dir=str(folder)),
        train_dataset=[task.features(text, tokenizer, length) for text in texts],
        data_collator=task.collator(tokenizer),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.exists() else None)
    trainer.save_model(folder / "unfinished")
    (folder / "unfinished").rename(done)
    return done


@torch.no_grad()
def read(task, model, tokenizer, tested, name, length, **fields):
    """
    Which of the `tested` documents are read right in windows of `length` tokens, and the seconds it takes. `fields`
    are the tokenizer's: without `stride` there is one window only.
    """
    model.eval()
    windows = {"max_length": length, "return_overflowing_tokens": "stride" in fields, **fields}
    start = time.perf_counter()
    right = [bool(task.is_right(text, model, tokenizer, **windows)) for text in tqdm(tested, name, leave=False)]
    return {"right": right, "seconds": round(time.perf_counter() - start, 2)}


def encode(tokenizer, *texts, **fields):
    """The windows of a text as one batch: PyTorch tensors, and the tokenizer's offsets and word numbers."""
    encoded = tokenizer(*texts, truncation=fields.pop("truncation", True), padding=True, return_tensors="pt", **fields)
    encoded.pop("overflow_to_sample_mapping", None)
    return encoded


def draw(results, tested, path):
    """The share read right by where the deciding sentence stands, as a PNG file and as JSON."""
    with ecosystem():
        import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    buckets = sorted({text.offset // BUCKET for text in tested})
    shares = {}
    for name, found in results.items():
        hits = [
            [x for x, text in zip(found["right"], tested, strict=True) if text.offset // BUCKET == b] for b in buckets
        ]
        shares[name] = [sum(x) / len(x) for x in hits]
    figure, axis = pyplot.subplots(figsize=(8, 4), layout="constrained")
    for name, line in shares.items():
        axis.plot([b * BUCKET for b in buckets], [100 * share for share in line], marker="o", label=name)
    axis.set(xlabel="tokens before the deciding sentence", ylabel="documents read right, %", ylim=(-3, 103))
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=110)
    numbers = {
        name: {"right": sum(found["right"]) / len(tested), "by_place": shares[name], "seconds": found["seconds"]}
        for name, found in results.items()
    }
    path.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
