# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
Puts an encoder of 4,096 tokens and a decoder together and trains them to write the one sentence of a document that
decides. The encoder is converted here; the decoder is the same checkpoint, made causal, with cross-attention that is
new.

    python examples/summarize.py --output_dir summarizer

Any flag of `Seq2SeqTrainingArguments` may follow, such as `--bf16`, `--gradient_checkpointing` or
`--gradient_accumulation_steps 4`.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from long_documents import LONG, LONG_TOKENS, SHORT, TINY, Task, documents, encode, parse, read, tell, train
from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

from lsg_xlmr import LSGConverter, LSGEncoderDecoderModel


LONGEST = 40  # tokens of a summary
FIRST = (60, 200)  # tokens of the first documents: cross-attention, which is new, learns to copy from short ones


@dataclass
class ExampleArguments:
    """What is trained, and how long; everything else is a flag of `Seq2SeqTrainingArguments`."""

    model: str = field(default=str(TINY), metadata={"help": "folder or hub name of an XLM-RoBERTa checkpoint"})
    short_steps: int = field(default=600, metadata={"help": f"steps of 16 texts of {FIRST[0]} to {FIRST[1]} tokens"})
    long_steps: int = field(default=100, metadata={"help": "steps at full length"})
    tested: int = field(default=100, metadata={"help": "long documents to test with"})


def features(document, tokenizer, max_length):
    encoded = tokenizer(" ".join(document.sentences), truncation=True, max_length=max_length)
    summary = tokenizer(document.sentences[document.place], truncation=True, max_length=LONGEST)
    return {**encoded, "labels": summary["input_ids"][1:]}  # <s> begins what is generated


def is_right(document, model, tokenizer, **fields):
    """Every word of the sentence is there, and no other."""
    inputs = encode(tokenizer, " ".join(document.sentences), **fields)
    summary = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
    return tokenizer.decode(summary[0], skip_special_tokens=True) == document.sentences[document.place]


def main():
    example, arguments = parse(ExampleArguments, Seq2SeqTrainingArguments)
    task = Task(AutoModelForSeq2SeqLM, {}, features, DataCollatorForSeq2Seq, is_right, Seq2SeqTrainer, FIRST)
    source, tokenizer = LSGConverter(max_sequence_length=LONG).convert_from_pretrained(example.model)
    encoder = Path(arguments.output_dir, "encoder")
    source.save_pretrained(encoder)
    model = LSGEncoderDecoderModel.from_encoder_decoder_pretrained(encoder, encoder)
    tested, results = documents(tokenizer, example.tested, LONG_TOKENS, seed=arguments.seed + 2), {}
    stages = {
        "short": (SHORT, {"max_steps": example.short_steps, "per_device_train_batch_size": 16, "learning_rate": 1e-3}),
        "long": (LONG, {"max_steps": example.long_steps}),
    }
    for name, (length, settings) in stages.items():
        folder = train(task, model, tokenizer, length, dataclasses.replace(arguments, **settings), name)
        model = task.auto_class.from_pretrained(folder, trust_remote_code=True)
        results[f"trained on {name} texts"] = read(task, model, tokenizer, tested, name, LONG)
    tell(results)


if __name__ == "__main__":
    main()
