# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Whether a converted checkpoint is still the source's function: what both answer without the global tokens."""

from math import isnan

import torch

from .answers import compared, compared_vectors, question
from .stock import first_position, load_stock, stock_config_of


# Of the greatest value, in float64: 1e-15 to 1e-9 is seen, and a thousand times as much when a weight is another.
TOLERANCE = 1e-5
FLOOR = 1e-2  # what is smaller still counts as great as this: a head may well say 0
MOST_TOKENS = 256  # a masked LM has 250,002 logits for each
HIDDEN = "hidden states"


class Comparison:
    """
    Up to two blocks attention is full, and the one thing that a conversion adds is the global tokens: with these
    hidden all answers and hidden states are those of the source, as stock transformers loads it. Whatever the head, a
    random one too, that tells a sound conversion from one with a weight or a position out of its place. Of a head that
    the source has not, only the hidden states are compared.

    In float64, in which rounding is no question even of a model that makes much of little.

    Args:
        model: the converted one, in eval mode; another afterwards, in float64 and without global tokens.
        tokenizer: its tokenizer.
        source ([`Source`]): what was converted.
        fields (`dict`): of the configuration, with which it was converted.
    """

    def __init__(self, model, tokenizer, source, fields):
        self.tokenizer, self.source = tokenizer, source
        self.config, self.architecture, self.dtype = model.config, type(model).__name__, model.dtype
        self.source_config = stock_config_of(source, fields)
        self.num_positions = self.source_config.max_position_embeddings - first_position(self.source_config)
        maximum = min(self.config.max_sequence_length, self.num_positions)
        self.asked = question(self.architecture, tokenizer, self.config, maximum)
        blocks = [x.block_size for x in (self.config, self.source_config) if hasattr(x, "block_size")]
        self.length = min(maximum, MOST_TOKENS, *(2 * block_size for block_size in blocks))
        self.after = self._answers(model, self.config.max_sequence_length)

    def finding(self, folder):
        """
        Args:
            folder (`str`): of the converted model.

        Returns:
            `tuple[str, bool]`: a line with the answers of both to a short text as a user gets them, and with the
            greatest difference without global tokens; and whether that is rounding.
        """
        model, has_head = load_stock(self.source, self.architecture, self.source_config, self.dtype)
        (before, *ours), (after, *theirs) = self._answers(model, self.num_positions), self.after
        names = before.keys() if has_head else {HIDDEN}
        difference = max(_difference(here[name], there[name]) for here, there in zip(ours, theirs) for name in names)
        if has_head and "last_hidden_state" not in before:
            line = compared(self.architecture, self.tokenizer, self.config, self.asked, before, after)
        else:
            line = compared_vectors(folder, before[HIDDEN], after[HIDDEN])
        line += f"; without global tokens the {'outputs' if has_head else HIDDEN} differ by {difference:.0e}"
        is_well = difference <= TOLERANCE
        return line if is_well else f"{line}, where {TOLERANCE:.0e} is allowed", is_well

    @torch.inference_mode()
    def _answers(self, model, num_positions):
        """
        To a short text as it is and, without global tokens, to the short text and to words of the whole vocabulary at
        positions of the whole table, which repeats the source's.
        """
        inputs = {name: self.asked[name] for name in ("input_ids", "attention_mask")}
        short = {name: tensor[..., : self.length] for name, tensor in inputs.items()}
        words = _spread(self.config.vocab_size, self.length)
        positions = _spread(self.config.max_sequence_length, self.length) % num_positions
        spread = {"input_ids": words, "position_ids": positions + first_position(model.config)}
        if self.architecture.endswith("MultipleChoice"):
            spread = {name: tensor[None] for name, tensor in spread.items()}  # n choices t
        answers = [_outputs(model.double(), inputs)]
        _hide_global_tokens(model)
        return [*answers, _outputs(model, short), _outputs(model, spread)]


def _spread(size, length):
    """Of a table's `size` rows as many as there are tokens, from the first to the last: `(1, length)`."""
    return torch.linspace(0, size - 1, length).long()[None]


def _outputs(model, inputs):
    """All tensors that the model gives, by name, and the encoder's hidden states."""
    states = []
    hook = model.base_model.register_forward_hook(lambda encoder, inputs, outputs: states.append(outputs[0]))
    outputs = model(**inputs)
    hook.remove()
    return {HIDDEN: states[0]} | {name: x for name, x in outputs.items() if isinstance(x, torch.Tensor)}


def _hide_global_tokens(model):
    """Of an LSG model: no token sees the global ones, and none of these stands in the first token's place."""
    config = model.config
    if getattr(config, "is_stock", True):
        return
    config.pool_with_global = config.mask_first_token = False
    for layer in model.base_model.encoder.layer:
        layer.register_forward_pre_hook(_without_global_keys)
        # A decoder's global tokens now see nothing, which is NaN.
        layer.register_forward_hook(lambda layer, inputs, states: (states[0], states[1].nan_to_num(), states[2]))


def _without_global_keys(layer, states):
    """What an LSG layer is given, but for the globals in the mask."""
    tokens, mask, global_states, padding, *others = states
    if mask is None:
        length = global_states.shape[1] + tokens.shape[1] + padding.shape[1]
        mask = torch.ones(tokens.shape[0], length, dtype=torch.bool)
    is_token = torch.arange(mask.shape[1]) >= global_states.shape[1]
    return tokens, mask & is_token, global_states, padding, *others


def _difference(here, there):
    """As a part of the greatest value; infinite where the shapes differ, or something is no number."""
    if here.shape != there.shape:
        return float("inf")
    difference = float((here - there).abs().max() / here.abs().max().clamp(min=FLOOR))
    return float("inf") if isnan(difference) else difference
