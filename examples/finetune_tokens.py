# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
Fine-tunes a tagger of long documents: which word is the place of the deciding sentence, among hundreds of places?

    python examples/finetune_tokens.py --output_dir tagger --plot tagger.png

Any flag of `TrainingArguments` may follow, such as `--bf16`, `--gradient_checkpointing` or
`--gradient_accumulation_steps 4`.
"""

import torch
from long_documents import Task, encode, run
from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification


OUTSIDE = -100  # the label of what is not asked


def words_and_tags(document):
    """The document's words, and 1 for each that names the place."""
    words, tags = [], []
    for number, sentence in enumerate(document.sentences):
        of_sentence = sentence.split(" ")
        words += of_sentence
        place = range(1, 1 + len(document.city.split(" "))) if number == document.place else ()
        tags += [int(i in place) for i in range(len(of_sentence))]
    return words, tags


def features(document, tokenizer, max_length):
    words, tags = words_and_tags(document)
    encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_length)
    return {**encoded, "labels": [OUTSIDE if word is None else tags[word] for word in encoded.word_ids()]}


def is_right(document, model, tokenizer, **fields):
    """A word's logits are summed over its pieces and windows; right is a document without a wrong word."""
    words, tags = words_and_tags(document)
    encoded = encode(tokenizer, words, is_split_into_words=True, **fields)
    logits = model(**encoded).logits
    sums = torch.zeros(len(words), logits.shape[-1])
    for window, of_window in enumerate(logits):
        for word, of_token in zip(encoded.word_ids(window), of_window, strict=True):
            if word is not None:
                sums[word] += of_token
    return sums.argmax(-1).tolist() == tags


if __name__ == "__main__":
    run(
        Task(
            AutoModelForTokenClassification, {"num_labels": 2}, features, DataCollatorForTokenClassification, is_right
        )
    )
