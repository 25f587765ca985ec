# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
Late chunking (Günther et al., arXiv 2409.04701): a text is read in one pass, and cut afterwards. Several vectors of a
text, each the mean of some tokens' last hidden states, which know of the text around them.
"""

from typing import NamedTuple

import torch

from .arguments import count_of, spans_of, texts_of
from .embedder import Embedder
from .texts import Text, passes_of


class LateChunks(NamedTuple):
    """
    Of one text: `vectors`, `torch.Tensor` of shape `(chunks, embedding_size)` on the CPU, and the `spans` that they
    stand for, `(start, end)` in characters each, so that `text[start:end]` is the chunk.
    """

    vectors: torch.Tensor
    spans: list[tuple[int, int]]


@torch.no_grad()
def late_chunks(
    model,
    texts,
    tokenizer=None,
    *,
    window=None,
    spans=None,
    prompt=None,
    max_length=None,
    overlap=None,
    batch_size=4,
) -> list[LateChunks]:
    """
    The vectors of the parts of long texts, each text read as a whole.

    A text is cut in windows of tokens, or where `spans` says. Tokens that are not of the text belong to its ends: the
    `<s>` and the prompt to the chunk that holds the text's first token, the `</s>` to the one that holds its last.
    So a text of one chunk has the vector that `encode_document` gives. (A `Pooling` with `include_prompt=False`
    leaves the prompt out, and the `<s>` before it, here as there.)

    A text of more than `max_length` tokens is read in passes of that length, evenly spaced, each with the prompt and
    the special tokens; a token's state is that of the pass in which it stands farthest from both ends.

    Args:
        model (`SentenceTransformer` or `transformers.PreTrainedModel`): a `SentenceTransformer` of a `Transformer`, a
            `Pooling` by the mean, and any modules behind it, which are given the chunks' means; or a model whose
            `last_hidden_state` is the tokens', of LSG or any other, whose means are returned as they are. Run in eval
            mode, without gradients.
        texts (`list[str]`): a text that is empty, or nothing but blanks, has no chunks.
        tokenizer (`transformers.PreTrainedTokenizerFast`, *optional*): a `SentenceTransformer` has one.
        window (`int`, *optional*): the most tokens of the text in a chunk. A text's windows are as few as will do, and
            alike in size, to one token and those of a character that would be split (`▁` and the letter behind it).
        spans (`list[list[tuple[int, int]]]`, *optional*): in the place of `window`, the chunks of each text,
            `(start, end)` in characters, in any order; they may overlap and leave parts of the text out. A token is in
            a span if its first character is.
        prompt (`str`, *optional*): what stands before each text. By default that of `encode_document`, or none.
        max_length (`int`, *optional*): tokens in a pass, with the prompt's and the special ones. By default the
            tokenizer's `model_max_length`.
        overlap (`int`, *optional*): the fewest tokens of the text that two passes share. By default an eighth of those
            in a pass.
        batch_size (`int`): passes at a time, the longest first.

    Returns:
        `list[LateChunks]`: of each text the vectors, in the model's dtype, and their spans.

    Raises:
        TypeError: `texts` are no list of `str`, `spans` no lists of pairs, `prompt` no `str`, or the tokenizer knows
            no characters.
        ValueError: a span that is not in its text or holds no token, a pooling that is not the mean, or a number that
            is no whole one or does not fit.
    """
    if (window is None) == (spans is None):
        raise ValueError(
            "Late chunks take either `window`, the tokens in a chunk, or `spans`, the characters of each chunk: "
            f"got {'neither' if spans is None else 'both'}."
        )
    texts, window, batch_size = texts_of(texts), count_of("window", window), count_of("batch_size", batch_size)
    max_length, overlap = count_of("max_length", max_length), count_of("overlap", overlap, least=0)
    spans = None if spans is None else spans_of(spans, texts)
    embedder = Embedder(model, tokenizer, prompt)
    texts = [Text(text, embedder.tokenizer, embedder.prompt) for text in texts]
    if spans is None:
        chunks = [text.windows(window) for text in texts]
        spans = [[text.span(*chunk) for chunk in of_text] for text, of_text in zip(texts, chunks)]
    else:
        chunks = [text.tokens_of(of_text, i) for i, (text, of_text) in enumerate(zip(texts, spans))]

    passes = [one for i, text in enumerate(texts) for one in passes_of(i, text, embedder, max_length, overlap)]
    states, vectors = [[] for _ in texts], [None] * len(texts)
    is_training = model.training
    model.eval()
    try:
        for one, state in _read(passes, embedder, batch_size):
            i = one.text
            states[i].append(state)
            if one.is_last:
                whole, states[i] = torch.cat(states[i]), None
                means = [embedder.mean(whole, texts[i], *chunk) for chunk in chunks[i]]
                vectors[i] = embedder.finish(torch.stack(means) if means else whole[:0]).cpu()
    finally:
        model.train(is_training)
    return [LateChunks(*found) for found in zip(vectors, spans)]


def _read(passes, embedder, batch_size):
    """Yields each of `passes`, longest first and those of a text in order, with its own states."""
    passes = sorted(passes, key=lambda one: -len(one.ids))
    for i in range(0, len(passes), batch_size):
        batch = passes[i : i + batch_size]
        ids = torch.full((len(batch), len(batch[0].ids)), embedder.tokenizer.pad_token_id or 0)
        mask = torch.zeros_like(ids)
        for row, one in enumerate(batch):
            ids[row, : len(one.ids)], mask[row, : len(one.ids)] = torch.tensor(one.ids), 1
        inputs = {"input_ids": ids, "attention_mask": mask}
        states = embedder.states({name: tensor.to(embedder.model.device) for name, tensor in inputs.items()})
        for one, state in zip(batch, states, strict=True):
            yield one, state[one.own]
