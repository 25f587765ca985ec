# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""XLM-RoBERTa's embeddings and, beside them, those of the global tokens."""

import torch
from torch import nn
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaEmbeddings

from ..attention.lengths import is_open
from ..configuration_lsg import MAX_GLOBAL_TOKENS
from ..cpu.dropout import LSGDropout
from .cache import CACHE
from .checks import check_ids, check_place


class GlobalStates:
    """
    Takes the global tokens' states from the embeddings to the encoder, past the hooks that may put other embeddings of
    the tokens in the place of these. No container: accelerate and FSDP would hand on a copy.
    """

    tensor = None


class LSGEmbeddings(XLMRobertaEmbeddings):
    """XLM-RoBERTa's embeddings and, beside them, the global tokens', which have neither position nor type."""

    def __init__(self, config):
        super().__init__(config)
        self.config = config
        self.dropout = LSGDropout(config.hidden_dropout_prob)
        self.global_embeddings = nn.Embedding(MAX_GLOBAL_TOKENS, config.hidden_size)

    def forward(
        self,
        input_ids=None,
        token_type_ids=None,
        position_ids=None,
        inputs_embeds=None,
        global_states=None,
        **kwargs,
    ):
        """
        Args:
            global_states ([`GlobalStates`], *optional*): its `tensor` becomes the globals' embeddings, of shape
                `(batch_size, num_global_tokens, hidden_size)`.

        Returns:
            the tokens' embeddings, `torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`.

        Raises:
            TypeError: what comes is no tensor.
            ValueError: the input is empty, longer than the positions, of a length that `adaptive=False` refuses, or
                holds ids that the tables have no row for.
        """
        cache_length = kwargs.get(f"{CACHE}_length", 0)
        shape = (inputs_embeds if input_ids is None else input_ids).shape[:2]
        if 0 in shape:
            raise ValueError(f"The input has {shape[0]} texts of {shape[1]} tokens: give one of each at least.")
        self._check_length(shape[1], input_ids, position_ids, cache_length)
        check_ids("position_ids", position_ids, self.config.max_position_embeddings, shape)
        check_ids("token_type_ids", token_type_ids, self.config.type_vocab_size, shape)
        if not hasattr(self, "_hf_hook"):  # by which accelerate moves what comes
            inputs = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
            inputs |= {"position_ids": position_ids, "token_type_ids": token_type_ids}
            for name, value in inputs.items():
                check_place(name, value, self.LayerNorm.weight)
        embeddings = super().forward(input_ids, token_type_ids, position_ids, inputs_embeds, cache_length)
        if global_states is None:
            return embeddings
        num_global_tokens = self.config.num_global_tokens
        index = torch.arange(num_global_tokens, device=embeddings.device)
        global_embeddings = self.LayerNorm(self.global_embeddings(index)).expand(embeddings.shape[0], -1, -1)
        # Parts of one tensor: FSDP has the weights ready once gradients have come to what is returned.
        embeddings = torch.cat([self.dropout(global_embeddings), embeddings], dim=1)
        global_states.tensor = embeddings[:, :num_global_tokens]
        return embeddings[:, num_global_tokens:]

    def _check_length(self, num_tokens, input_ids, position_ids, cache_length):
        length = cache_length + num_tokens
        maximum = self.config.max_sequence_length
        if length > maximum:
            # Padding takes no position, and positions may be given: only then is the input itself looked at.
            if isinstance(position_ids, torch.Tensor) and position_ids.numel():
                length = int(position_ids.max()) - self.padding_idx
            elif input_ids is not None:
                length = cache_length + int(input_ids.ne(self.padding_idx).sum(1).max())
            if length > maximum:
                ways_out = f"Truncate the input (`truncation=True, max_length={maximum}`)"
                if input_ids is None:  # as peft's prompt tuning has it
                    ways_out = "Truncate the text: what stands before it, as in prompt tuning, takes positions too"
                raise ValueError(
                    f"The input has {length} tokens, but the model has positions for {maximum} "
                    f"(max_position_embeddings={self.config.max_position_embeddings}). {ways_out}, or convert the "
                    "checkpoint to a longer max_sequence_length."
                )
        block_size = self.config.block_size
        # A graph for other lengths fills up their blocks, rather than take those of this one's kind alone.
        is_fixed = not self.config.adaptive and not self.config.is_decoder and not is_open(num_tokens)
        if is_fixed and num_tokens > 2 * block_size and num_tokens % block_size:
            shorter = num_tokens // block_size * block_size
            raise ValueError(
                f"The input has {num_tokens} tokens; with adaptive=False a length over {2 * block_size} must be a "
                f"multiple of block_size={block_size}: {shorter} or {shorter + block_size} would do, and so would "
                "adaptive=True, which pads inside the model."
            )
