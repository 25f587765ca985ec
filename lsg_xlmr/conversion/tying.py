# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""The decoder of an LM head: one with the word embeddings, or one of its own."""

import torch
from torch import nn


def settle_tied_weights(model):
    """
    What a checkpoint stores twice and alike is one weight again, which some versions of transformers leave apart. An
    LM head whose decoder is not the word embeddings keeps it, as it does in stock transformers, and the configuration
    comes to say so: `tie_weights` would take it away. Of two biases the decoder's is the one that stock adds.
    """
    head = getattr(model, "lm_head", None)
    if head is not None:
        decoder, words = head.decoder, model.get_input_embeddings().weight
        if decoder.weight is not words and not torch.equal(decoder.weight, words):
            model.config.tie_word_embeddings = False
        # As the configuration has it: one, or two in the file.
        is_tied = model.config.tie_word_embeddings
        head.bias = decoder.bias if is_tied else nn.Parameter(decoder.bias.detach().clone())
    model.tie_weights()
