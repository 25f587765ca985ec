# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
Fine-tunes a classifier of long documents: did the jury of the one deciding sentence say yes or no?

    python examples/finetune_classification.py --output_dir classifier --plot classifier.png

Any flag of `TrainingArguments` may follow, such as `--bf16`, `--gradient_checkpointing` or
`--gradient_accumulation_steps 4`.
"""

from long_documents import VERDICTS, Task, encode, run
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding


def features(document, tokenizer, max_length):
    encoded = tokenizer(" ".join(document.sentences), truncation=True, max_length=max_length)
    return {**encoded, "labels": document.verdict}


def is_right(document, model, tokenizer, **fields):
    """The windows' logits are averaged."""
    logits = model(**encode(tokenizer, " ".join(document.sentences), **fields)).logits
    return logits.mean(0).argmax() == document.verdict


if __name__ == "__main__":
    fields = {"num_labels": len(VERDICTS)}
    run(Task(AutoModelForSequenceClassification, fields, features, DataCollatorWithPadding, is_right))
