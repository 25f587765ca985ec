# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
Goes on with the masked-LM training of a converted checkpoint, on long texts of your own; on one process or several.

    python examples/continue_pretraining.py --model tiny-lsg-4096 --texts texts.txt --output_dir longer
    accelerate launch --multi_gpu --num_processes 2 examples/continue_pretraining.py --model tiny-lsg-4096 ...

On CPUs the second takes `--use_cpu true` at its end, and is called `--multi_gpu` all the same. Each line of `--texts`
is a document; they are packed into rows of `--length` tokens. Any flag of `TrainingArguments` may follow.
"""

from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)


@dataclass
class ExampleArguments:
    model: str = field(metadata={"help": "folder of a converted masked language model"})
    texts: Path = field(metadata={"help": "text file with a document in each line"})
    length: int = field(default=4096, metadata={"help": "tokens in a row"})
    global_tokens_only: bool = field(default=False, metadata={"help": "train nothing but the global tokens"})


def rows_of(documents, tokenizer, length, seed):
    """
    Rows of `length` tokens, `<s>` and `</s>` included, with 15 % of them masked. They are masked once, so that any
    number of processes trains on the same.
    """
    separator = [tokenizer.eos_token_id]
    ids = list(chain(*(tokenizer(text, add_special_tokens=False)["input_ids"] + separator for text in documents)))
    inner = length - 2
    rows = [
        {"input_ids": [tokenizer.bos_token_id, *ids[start : start + inner], tokenizer.eos_token_id]}
        for start in range(0, len(ids) - inner + 1, inner)
    ]
    if not rows:
        raise SystemExit(f"--texts holds {len(ids)} tokens, a row of --length takes {inner}: give more text.")
    set_seed(seed)
    masked = DataCollatorForLanguageModeling(tokenizer)(rows)
    return [
        {"input_ids": input_ids, "labels": labels}
        for input_ids, labels in zip(masked["input_ids"], masked["labels"], strict=True)
    ]


def main():
    example, arguments = HfArgumentParser((ExampleArguments, TrainingArguments)).parse_args_into_dataclasses()
    tokenizer = AutoTokenizer.from_pretrained(example.model)
    model = AutoModelForMaskedLM.from_pretrained(example.model, trust_remote_code=True, sparse_prediction=True)
    if example.global_tokens_only:
        print(model.train_global_tokens_only(), "values are trained")
    documents = example.texts.read_text(encoding="utf-8").splitlines()
    trainer = Trainer(
        model,
        arguments,
        train_dataset=rows_of(documents, tokenizer, example.length, arguments.seed),
        data_collator=default_data_collator,
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main()
