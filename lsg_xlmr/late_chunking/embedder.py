# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""What late chunking needs of a model: its tokenizer, the tokens' states, and what becomes of their means."""

import torch
from torch import nn


DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # in the order in which `encode_document` looks for them


def prompt_of(names, prompts, default):
    """
    The prompt (`str`) that `encode_query` or `encode_document` takes: of `prompts`, by name, the first of the `names`
    that is there; that of the `default` name if none is.
    """
    return prompts.get(next((name for name in names if name in prompts), default)) or ""


class Embedder:
    """What a model is made of: the tokenizer, the tokens' states, and what becomes of their means."""

    def __init__(self, model, tokenizer, prompt):
        self.model, self.skips_prompt = model, False
        if isinstance(model, nn.Sequential):  # a SentenceTransformer
            self._check_pooling()
            tokenizer = tokenizer or model.tokenizer
            if prompt is None:
                prompt = prompt_of(DOCUMENT_PROMPTS, model.prompts, model.default_prompt_name)
            self.skips_prompt = bool(prompt) and not model[1].include_prompt
        if not getattr(tokenizer, "is_fast", False):
            raise TypeError(
                f"`tokenizer` must be a fast one, which knows the characters of its tokens, got "
                f"{type(tokenizer).__name__}: AutoTokenizer.from_pretrained of the model's folder gives one."
            )
        if not isinstance(prompt, (str, type(None))):
            raise TypeError(f"`prompt` must be a str, got {prompt!r}.")
        self.tokenizer, self.prompt = tokenizer, prompt or ""

    def _check_pooling(self):
        names = [type(module).__name__ for module in self.model]
        pooling = self.model[1] if len(names) > 1 else None
        mode = getattr(pooling, "pooling_mode", None) or getattr(pooling, "get_pooling_mode_str", lambda: None)()
        if mode != "mean":
            raise ValueError(
                f"Late chunks are means of tokens, and this model is {', '.join(names)} with pooling_mode {mode!r}: "
                "its vectors are no means. Take one of Transformer and Pooling by 'mean', or encode() each chunk."
            )

    def states(self, inputs):
        """`(batch_size, length)` token ids and mask to `(batch_size, length, hidden_size)`."""
        if isinstance(self.model, nn.Sequential):
            states = self.model[0](inputs).get("token_embeddings")
        else:
            states = getattr(self.model(**inputs), "last_hidden_state", None)
        if states is None or states.shape[:2] != inputs["input_ids"].shape:
            raise ValueError(
                f"{type(self.model).__name__} gives no last hidden state of each token: give its base_model, or load "
                "the folder by AutoModel."
            )
        return states

    def mean(self, states, text, first, last):
        """The mean of a text's tokens `first` to `last`, exclusive: `(tokens, hidden_size)` to `(hidden_size,)`."""
        start = 0 if first == 0 and not self.skips_prompt else text.head + first
        end = len(states) if last == len(text.starts) else text.head + last
        wide = torch.promote_types(states.dtype, torch.float32)
        return states[start:end].mean(0, dtype=wide).to(states.dtype)

    def finish(self, means):
        """`(chunks, hidden_size)` to `(chunks, embedding_size)`: what stands behind the pooling."""
        if not isinstance(self.model, nn.Sequential):
            return means
        features = {"sentence_embedding": means}
        for module in [*self.model][2:]:
            features = module(features)
        return features["sentence_embedding"][:, : self.model.truncate_dim]
