# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
Fine-tunes a reader of long documents: where did the jury (the court, the club, the team) vote?

    python examples/finetune_qa.py --output_dir reader --plot reader.png

Any flag of `TrainingArguments` may follow, such as `--bf16`, `--gradient_checkpointing` or
`--gradient_accumulation_steps 4`.
"""

import torch
from long_documents import Task, encode, run
from transformers import AutoModelForQuestionAnswering, DataCollatorWithPadding


LONGEST = 12  # tokens of an answer


def question_and_context(document):
    return f"Where did the {document.subject} vote?", " ".join(document.sentences)


def features(document, tokenizer, max_length):
    question, context = question_and_context(document)
    encoded = tokenizer(question, context, truncation="only_second", max_length=max_length)
    start = context.index(document.sentences[document.place]) + len("In ")
    first, last = (encoded.char_to_token(place, sequence_index=1) for place in (start, start + len(document.city) - 1))
    return {**encoded, "start_positions": first, "end_positions": last}


def is_right(document, model, tokenizer, **fields):
    """The answer is the best span of all windows."""
    question, context = question_and_context(document)
    encoded = encode(tokenizer, question, context, truncation="only_second", return_offsets_mapping=True, **fields)
    offsets = encoded.pop("offset_mapping")
    outputs = model(**encoded)
    scores = outputs.start_logits[:, :, None] + outputs.end_logits[:, None]  # window start end
    is_span = torch.ones_like(scores, dtype=torch.bool).triu().tril(LONGEST - 1)
    for window, is_span_of_window in enumerate(is_span):
        is_span_of_window[[number != 1 for number in encoded.sequence_ids(window)]] = False
    place = scores.masked_fill(~is_span, float("-inf")).argmax()
    window, start, end = torch.unravel_index(place, scores.shape)
    return context[offsets[window, start, 0] : offsets[window, end, 1]].strip(" ,") == document.city


if __name__ == "__main__":
    run(Task(AutoModelForQuestionAnswering, {}, features, DataCollatorWithPadding, is_right))
