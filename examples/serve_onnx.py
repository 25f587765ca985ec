# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Embed texts, or fill the masks in them, by the ONNX file of a checkpoint: no torch, no transformers.

    pip install onnxruntime tokenizers
    lsg-convert --initial_model models/tiny-xlm-roberta --model_name tiny-lsg-4096 --onnx int8
    python examples/serve_onnx.py tiny-lsg-4096 model_quantized.onnx "Paris is the <mask> of France."

A masked LM gives the best word for every mask, another model the mean of each text's last hidden states, or with
`--window 128` those of its parts: where each begins and ends, and its vector, as `lsg_xlmr.late_chunks` gives them.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession
from tokenizers import Tokenizer


def windows(text, encoding, states, size):
    """
    Yields `(start, end, vector)` of the windows of at most `size` tokens, but for those that share a character, in
    characters and `(hidden_size,)`. A text's `states` are of shape `(length, hidden_size)`, with one special token at
    each end, which is the first or last's.
    """
    length = sum(encoding.attention_mask)
    # Some tokenizers count the blanks before a word as the word's.
    starts = [end - len(text[start:end].lstrip()) for start, end in encoding.offsets[1 : length - 1]]
    parts = -(-len(starts) // size)
    # A character may be of several tokens, all of them in one window.
    borders = [*sorted({starts.index(starts[len(starts) * i // parts]) for i in range(parts)}), len(starts)]
    for first, last in zip(borders, borders[1:]):
        tokens = slice(first and first + 1, length if last == len(starts) else last + 1)
        yield starts[first], encoding.offsets[last][1], states[tokens].mean(0)


parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("folder", type=Path)
parser.add_argument("file", help="in the folder's onnx/")
parser.add_argument("texts", nargs="+")
parser.add_argument(
    "--window",
    type=int,
    help="tokens in a part of a text at most, but for those that share a character; each gets a vector",
)
args = parser.parse_args()
if args.window is not None and args.window < 1:
    parser.error(f"--window must be 1 or more, got {args.window}")
folder, texts = args.folder, args.texts

settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer.enable_truncation(settings["model_max_length"])
tokenizer.enable_padding(pad_id=tokenizer.token_to_id(settings["pad_token"]), pad_token=settings["pad_token"])
session = InferenceSession(folder / "onnx" / args.file)

batch = tokenizer.encode_batch(texts)
inputs = {
    "input_ids": np.array([text.ids for text in batch]),
    "attention_mask": np.array([text.attention_mask for text in batch]),
    "token_type_ids": np.array([text.type_ids for text in batch]),  # of a checkpoint that was BERT
}
outputs = session.run(None, {x.name: inputs[x.name] for x in session.get_inputs()})[0]
if session.get_outputs()[0].name == "logits":
    if args.window:
        parser.error(f"--window is for files of last_hidden_state, and {args.file} gives logits")
    if outputs.ndim == 3:  # (batch, length, vocab_size), of a file made with --logits all
        outputs = outputs[inputs["input_ids"] == tokenizer.token_to_id(settings["mask_token"])]
    print(*(tokenizer.decode([word]) for word in outputs.argmax(-1)))
elif args.window:
    for text, encoding, states in zip(texts, batch, outputs):
        for start, end, vector in windows(text, encoding, states, args.window):
            print(start, end, vector)
else:  # last_hidden_state, (batch, length, hidden_size)
    attention_mask = inputs["attention_mask"][..., None]
    print((outputs * attention_mask).sum(1) / attention_mask.sum(1))
