# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""XLM-RoBERTa's modules around a linear layer, with the fastest product for it."""

from transformers.activations import gelu
from transformers.models.xlm_roberta.modeling_xlm_roberta import (
    XLMRobertaIntermediate,
    XLMRobertaLMHead,
    XLMRobertaOutput,
    XLMRobertaSelfOutput,
)

from ..cpu.dropout import LSGDropout
from ..cpu.plain import plain
from ..cpu.products import fastest
from ..cpu.threads import in_pieces


@plain
class LSGSelfOutput(XLMRobertaSelfOutput):
    """XLM-RoBERTa's projection of the context; see [`in_pieces`]."""

    def __init__(self, config):
        super().__init__(config)
        self.dropout = LSGDropout(config.hidden_dropout_prob)

    def forward(self, hidden_states, input_tensor):
        """
        Args:
            hidden_states, input_tensor (`torch.Tensor` of shape `(batch_size, length, hidden_size)`): the context, and
                what the layer was given.
        """
        dense = fastest(self.dense, hidden_states)
        return in_pieces(
            lambda context, states: (self.LayerNorm(self.dropout(dense(context)) + states),),
            self.children(),
            hidden_states,
            input_tensor,
        )[0]


@plain
class LSGIntermediate(XLMRobertaIntermediate):
    """XLM-RoBERTa's first half of the feed-forward part."""

    def forward(self, hidden_states):
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(..., hidden_size)`).
        """
        return self.intermediate_act_fn(fastest(self.dense, hidden_states)(hidden_states))


@plain
class LSGOutput(XLMRobertaOutput):
    """XLM-RoBERTa's second half of the feed-forward part."""

    def __init__(self, config):
        super().__init__(config)
        self.dropout = LSGDropout(config.hidden_dropout_prob)

    def forward(self, hidden_states, input_tensor, dense=None):
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(..., intermediate_size)`).
            input_tensor (`torch.Tensor` of shape `(..., hidden_size)`).
            dense (`Callable`, *optional*): the product of `self.dense`, where it is known how that is best done.
        """
        dense = dense or fastest(self.dense, hidden_states)
        return self.LayerNorm(self.dropout(dense(hidden_states)) + input_tensor)


@plain
class LSGLMHead(XLMRobertaLMHead):
    """XLM-RoBERTa's LM head."""

    def forward(self, features, **kwargs):
        """
        Args:
            features (`torch.Tensor` of shape `(..., hidden_size)`).
        """
        states = self.layer_norm(gelu(fastest(self.dense, features)(features)))
        return fastest(self.decoder, states)(states)
