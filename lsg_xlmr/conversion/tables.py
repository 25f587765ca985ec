# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""The two embedding tables that a conversion makes: the positions, repeated, and the global tokens."""

import torch

from ..configuration_lsg import MAX_GLOBAL_TOKENS
from .source import is_finite


def tile_positions(table, num_rows, offset):
    """
    Args:
        table (`torch.Tensor` of shape `(rows, hidden_size)`): position embeddings; the first `offset` rows are no
            positions.
        num_rows (`int`): rows of the result.

    Returns:
        `torch.Tensor` of shape `(num_rows, hidden_size)`: the positions repeated as often as it takes, or cut.
    """
    index = torch.arange(num_rows)
    index[offset:] = (index[offset:] - offset) % (len(table) - offset) + offset
    return table[index]


def spread_positions(num_positions, stride):
    """
    Which position goes to which global token: 0, `stride`, `2 * stride`, ... to the first of them, so that however
    few are used they stand far apart; at the end it starts again with the positions in between.

    Returns:
        `torch.LongTensor` of shape `(512,)`, each in `[0, num_positions)`.
    """
    # Of a longer table every num_positions // 512-th position is used, so that 512 tokens reach its end.
    spacing = max(1, num_positions // MAX_GLOBAL_TOKENS)
    index = torch.arange(MAX_GLOBAL_TOKENS)
    index = index[torch.argsort(index % max(1, stride // spacing), stable=True)]
    return index * spacing % num_positions


def draw_like(table, count, seed):
    """
    Args:
        table (`torch.Tensor` of shape `(rows, hidden_size)`): vectors of any float type.

    Returns:
        `torch.Tensor` of shape `(count, hidden_size)` and the table's type: a draw from the normal distribution with
        the mean and the covariance of the rows; same seed, same draw.
    """
    mean = table.mean(0, dtype=torch.float32)
    centred = table.float() - mean
    covariance = (centred.T @ centred / (len(table) - 1)).double()
    # The symmetric root: unlike Cholesky's it exists for singular matrices too, and it is unique.
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    noise = torch.randn(count, table.shape[1], dtype=root.dtype, generator=torch.Generator().manual_seed(seed))
    return (mean + noise @ root).to(table.dtype)


def global_table(word_table, position_table, tokenizer, stride, seed=None):
    """
    The global tokens: words plus spread positions, of which the first is `<s>` plus position 0.

    Args:
        word_table (`torch.Tensor` of shape `(vocab_size, hidden_size)`): the word embeddings.
        position_table (`torch.Tensor` of shape `(num_positions, hidden_size)`): the position embeddings of tokens.
        tokenizer: says which word is the mask and which is `<s>`.
        stride (`int`): see [`spread_positions`].
        seed (`int`, *optional*): draw the words like the word embeddings; without it each is the mask token.

    Returns:
        `torch.Tensor` of shape `(512, hidden_size)`.

    Raises:
        ValueError: the tokenizer has no such token among the word embeddings, or these are not all finite and should
            be drawn from.
    """
    if seed is None:
        words = _special_word(word_table, tokenizer, "mask_token").repeat(MAX_GLOBAL_TOKENS, 1)
    elif is_finite(word_table):
        words = draw_like(word_table, MAX_GLOBAL_TOKENS, seed)
    else:
        raise ValueError(
            "Global tokens cannot be drawn like word embeddings that are not all finite: repair the source, or leave "
            "random_global_init out."
        )
    words[0] = _special_word(word_table, tokenizer, "bos_token", "cls_token")
    return words + position_table[spread_positions(len(position_table), stride)]


def _special_word(word_table, tokenizer, *names):
    """The embedding, `(hidden_size,)`, of the first of the special tokens that the tokenizer has."""
    token_ids = [getattr(tokenizer, f"{name}_id") for name in names]
    token_id = next((token_id for token_id in token_ids if token_id is not None), None)
    if token_id is None or token_id >= len(word_table):
        raise ValueError(
            f"Global tokens are made of the {names[0]}'s embedding, but it has id {token_id} and the model "
            f"{len(word_table)} word embeddings. Set {names[0]} in tokenizer_config.json"
            + (", or draw them by random_global_init." if names[0] == "mask_token" else ".")
        )
    return word_table[token_id]
