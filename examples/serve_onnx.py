# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Embed texts, or fill the masks in them, by the ONNX file of a checkpoint: no torch, no transformers.

    pip install onnxruntime tokenizers
    lsg-convert --initial_model models/tiny-xlm-roberta --model_name tiny-lsg-4096 --onnx int8
    python examples/serve_onnx.py tiny-lsg-4096 model_quantized.onnx "Paris is the <mask> of France."

A masked LM gives the best word for every mask, another model the mean of each text's last hidden states.
"""

import json
import sys
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession
from tokenizers import Tokenizer


folder, file, *texts = Path(sys.argv[1]), *sys.argv[2:]
settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer.enable_truncation(settings["model_max_length"])
tokenizer.enable_padding(pad_id=tokenizer.token_to_id(settings["pad_token"]), pad_token=settings["pad_token"])
session = InferenceSession(folder / "onnx" / file)

batch = tokenizer.encode_batch(texts)
inputs = {
    "input_ids": np.array([text.ids for text in batch]),
    "attention_mask": np.array([text.attention_mask for text in batch]),
    "token_type_ids": np.array([text.type_ids for text in batch]),  # of a checkpoint that was BERT
}
outputs = session.run(None, {x.name: inputs[x.name] for x in session.get_inputs()})[0]
if session.get_outputs()[0].name == "logits":
    if outputs.ndim == 3:  # (batch, length, vocab_size), of a file made with --logits all
        outputs = outputs[inputs["input_ids"] == tokenizer.token_to_id(settings["mask_token"])]
    print(*(tokenizer.decode([word]) for word in outputs.argmax(-1)))
else:  # last_hidden_state, (batch, length, hidden_size)
    attention_mask = inputs["attention_mask"][..., None]
    print((outputs * attention_mask).sum(1) / attention_mask.sum(1))
