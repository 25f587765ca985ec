# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
An LSG model as an ONNX graph: the model's own code is traced, but for its attention, see `attention.py`.

Unlike the model, the graph pads nothing to whole blocks but the keys and values that sparse tokens are made of.
"""

import logging
import warnings
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
import torch
from onnx import OperatorSetIdProto
from onnx.helper import find_min_ir_version_for
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, InlinePass, NameFixPass
from onnxscript.optimizer import optimize
from torch import nn
from torch.export import Dim
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaLayer

from .attention import Attention, SparseTokens, additive


# What the graph of each class gives, by the name of the class.
OUTPUTS = {
    "LSGXLMRobertaModel": ("last_hidden_state",),
    "LSGXLMRobertaForCausalLM": ("logits",),
    "LSGXLMRobertaForMaskedLM": ("logits",),
    "LSGXLMRobertaForMultipleChoice": ("logits",),
    "LSGXLMRobertaForQuestionAnswering": ("start_logits", "end_logits"),
    "LSGXLMRobertaForSequenceClassification": ("logits",),
    "LSGXLMRobertaForTokenClassification": ("logits",),
}


def input_names(config, tokenizer):
    """
    Args:
        config ([`LSGConfig`]): of a model.
        tokenizer: its tokenizer.

    Returns:
        `tuple[str, ...]`: what the graph of the model takes: the types of tokens too, where there is more than one
        and the tokenizer tells them apart, as BERT's does.
    """
    has_types = config.type_vocab_size > 1 and "token_type_ids" in tokenizer.model_input_names
    return ("input_ids", "attention_mask", "token_type_ids")[: 3 if has_types else 2]


def onnx_model(model, mask_token_id, opset_version, inputs=("input_ids", "attention_mask")):
    """
    Args:
        model: an LSG model in eval mode, in float32 or float16, in which the graph computes. Its encoder is replaced:
            it is of no use afterwards.
        mask_token_id (`int`, *optional*): a masked LM gives the logits of these tokens only, `(masks, vocab_size)`;
            of all, where it is `None`.
        opset_version (`int`): version of ONNX's operators, 18 or higher.
        inputs (`tuple[str, ...]`): see [`input_names`].

    Returns:
        `onnx_ir.Model`: from its inputs, `(batch, length)` int64 each (`(batch, choices, length)` for multiple
        choice), of any size, to the [`OUTPUTS`] of the model's class, in float32.
    """
    config, architecture = model.config, type(model).__name__
    sizes = {"batch": 2, "choices": 2, "length": 3}
    if architecture != "LSGXLMRobertaForMultipleChoice":
        del sizes["choices"]
    dims = {
        axis: Dim(name, max=config.max_sequence_length if name == "length" else None)
        for axis, name in enumerate(sizes)
    }
    input_ids = torch.full(tuple(sizes.values()), mask_token_id or 0)
    with _quiet():
        graph = _export(
            _TracedModel(model, mask_token_id),
            (input_ids, *(torch.ones_like(input_ids) for _ in inputs[1:])),
            opset_version,
            inputs,
            OUTPUTS[architecture],
            (dims,) * len(inputs),
        )
        _inline(graph, model, opset_version)
    _name_nodes(graph, config)
    _spoil_long_texts(graph, config)
    graph.ir_version = find_min_ir_version_for([OperatorSetIdProto(domain="", version=opset_version)])
    NameFixPass()(graph)
    ClearMetadataAndDocStringPass()(graph)  # where in the code each node comes from
    return graph


class _TracedModel(nn.Module):
    """The model from and to bare tensors, its encoder without padding and with attention as an ONNX function."""

    def __init__(self, model, mask_token_id):
        super().__init__()
        self.model, self.mask_token_id = model, mask_token_id
        base_model = model.base_model
        base_model.encoder = _Encoder(base_model.encoder)

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        architecture = type(self.model).__name__
        token_type_ids = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        inputs = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        if architecture == "LSGXLMRobertaForMaskedLM":
            features = self.model.roberta(input_ids, **inputs).last_hidden_state
            if self.mask_token_id is not None:
                features = features[input_ids == self.mask_token_id]
            return self.model.lm_head(features).float()
        outputs = self.model(input_ids, **inputs)
        return tuple(outputs[name].float() for name in OUTPUTS[architecture])


class _Encoder(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.config, self.layer = encoder.config, encoder.layer
        for layer in self.layer:
            layer.attention.self = _Attention(layer.attention.self)

    def forward(self, hidden_states, attention_mask, global_states, **kwargs):
        num_global_tokens = self.config.num_global_tokens
        hidden_states = torch.cat([global_states, hidden_states], 1)
        mask = attention_mask != 0
        if self.config.mask_first_token:
            mask = torch.cat([torch.zeros_like(mask[:, :1]), mask[:, 1:]], 1)
        mask = torch.cat([mask.new_ones(mask.shape[0], num_global_tokens), mask], 1)  # n T
        length = mask.shape[1]
        if self._sees_padding():
            hidden_states, mask = self._padded(hidden_states, mask)
        bias = additive(mask, hidden_states.dtype)[:, None, None].expand(-1, self.config.num_attention_heads, -1, -1)
        for layer in self.layer:
            hidden_states = XLMRobertaLayer.forward(layer, hidden_states, mask, bias=bias)
        global_states, hidden_states = hidden_states[:, :length].tensor_split([num_global_tokens], 1)
        if self.config.pools_with_global:
            hidden_states = torch.cat([global_states[:, :1], hidden_states[:, 1:]], 1)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden_states)

    def _sees_padding(self):
        """Whether sparse tokens are made of masked tokens too, see [`bos_pooling`]."""
        config = self.config
        is_bos_pooling = config.sparsity_type == "bos_pooling" or (
            config.sparsity_type == "lsh" and config.sparsity_factor == config.sparse_block_size
        )
        return is_bos_pooling and config.has_sparse_tokens and config.sparsity_factor > 1

    def _padded(self, hidden_states, mask):
        """Past two blocks the states in whole blocks, as the model has them."""
        num_tokens = mask.shape[1] - self.config.num_global_tokens
        num_blocks = (num_tokens + self.config.block_size - 1) // self.config.block_size
        padding = (num_blocks * self.config.block_size - num_tokens) * torch.sym_min(1, num_blocks // 3)
        n, _, hidden_size = hidden_states.shape
        hidden_states = torch.cat([hidden_states, hidden_states.new_zeros(n, padding, hidden_size)], 1)
        return hidden_states, torch.cat([mask, mask.new_zeros(n, padding)], 1)


class _Attention(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention
        projections = attention.lsh_projections(attention.query.weight.device)
        projections = torch.zeros(0) if projections is None else torch.cat(projections, -1)
        self.register_buffer("projections", projections.to(attention.query.weight.dtype))

    def forward(self, hidden_states, attention_mask, bias, **kwargs):
        attention, config = self.attention, self.attention.config
        shape = (*hidden_states.shape[:2], -1, attention.attention_head_size)
        query, key, value = (
            projection(hidden_states).view(shape).transpose(1, 2)  # n h T d
            for projection in (attention.query, attention.key, attention.value)
        )
        context = torch.onnx.ops.symbolic(
            "lsg::Attention",
            (query, key, value, attention_mask, bias, self.projections, hidden_states),
            {
                "block_size": config.block_size,
                "sparse_block_size": config.sparse_block_size,
                "step": config.block_size // config.sparsity_factor if config.has_sparse_tokens else 0,
                "num_global_tokens": config.num_global_tokens,
                "scaling": attention.scaling,
            },
            dtype=hidden_states.dtype,
            shape=hidden_states.shape,
            version=1,
        )
        return context, None


def _export(module, inputs, opset_version, input_names, output_names, dynamic_shapes):
    with torch.no_grad():
        return torch.onnx.export(
            module.eval(),
            inputs,
            dynamo=True,
            opset_version=opset_version,
            input_names=input_names,
            output_names=output_names,
            dynamic_shapes=dynamic_shapes,
            verbose=False,
        ).model


def _inline(graph, model, opset_version):
    """Put the functions in the place of their calls."""
    attention = ir.from_proto(Attention.to_function_proto())
    attention.opset_imports[""] = opset_version  # nothing that it uses has changed since
    for function in (attention, _sparse_tokens(model, opset_version)):
        graph.functions[function.identifier()] = function
    InlinePass()(graph)
    optimize(graph)


def _sparse_tokens(model, opset_version):
    """[`SparseTokens`] as an ONNX function."""
    config = model.config
    module = SparseTokens(config)
    head_dim = config.hidden_size // config.num_attention_heads
    length = config.num_global_tokens + 3 * config.block_size + 1
    shape = 2, config.num_attention_heads, length, head_dim
    states = [torch.randn(shape, dtype=model.dtype) for _ in range(3)]
    dims = {0: Dim("batch"), 2: Dim("positions", min=config.num_global_tokens + 1)}
    projections = model.base_model.encoder.layer[0].attention.self.projections
    inputs = (*states, torch.ones(2, length, dtype=torch.bool), projections)
    graph = _export(
        module,
        inputs,
        opset_version,
        ("query", "key", "value", "mask", "projections"),
        ("sparse_key", "sparse_value", "sparse_bias"),
        (dims, dims, dims, {0: dims[0], 1: dims[2]}, None),
    ).graph
    # A function has no initializers.
    for name, value in list(graph.initializers.items()):
        node = ir.node("Constant", [], {"value": value.const_value})
        graph.insert_before(graph[0], node)
        value.replace_all_uses_with(node.outputs[0])
        del graph.initializers[name]
    return ir.Function("lsg", "SparseTokens", graph=graph, attributes=[])


def _name_nodes(graph, config):
    """What ONNX Runtime says of a wrong input begins with the name of the node that met it."""
    input_ids, attention_mask, *_ = graph.graph.inputs
    shape = ir.node("Shape", [input_ids])
    mask = ir.node(
        "Reshape", [attention_mask, shape.outputs[0]], name="attention_mask_must_have_the_shape_of_input_ids"
    )
    attention_mask.replace_all_uses_with(mask.outputs[0])
    mask.replace_input_with(0, attention_mask)
    graph.graph.insert_before(graph.graph[0], [shape, mask])
    _position_rows(graph).name = f"input_ids_may_have_{config.max_sequence_length}_tokens_at_most"


def _position_rows(graph):
    """The node that reads the rows of the position embeddings, where too long a text is met."""
    return next(
        node
        for node in graph.graph
        if node.op_type == "Gather" and node.inputs[0].name.endswith("position_embeddings.weight")
    )


def _spoil_long_texts(graph, config):
    """OpenVINO reads zeros past the last position, without a word: what it then answers is to be NaN."""
    gather, input_ids = _position_rows(graph), graph.graph.inputs[0]
    dtype = gather.inputs[0].const_value.dtype.numpy()
    maximum, right, wrong = (
        ir.node("Constant", [], {"value": ir.tensor(array)})
        for array in (np.array([config.max_sequence_length]), np.zeros(1, dtype), np.full(1, np.nan, dtype))
    )
    length = ir.node("Shape", [input_ids], {"start": len(input_ids.shape) - 1})
    fits = ir.node("LessOrEqual", [length.outputs[0], maximum.outputs[0]])
    spoiling = ir.node("Where", [fits.outputs[0], right.outputs[0], wrong.outputs[0]])
    positions = ir.node("Add", [gather.outputs[0], spoiling.outputs[0]])
    gather.outputs[0].replace_all_uses_with(positions.outputs[0])
    positions.replace_input_with(0, gather.outputs[0])
    gather.graph.insert_after(gather, [maximum, right, wrong, length, fits, spoiling, positions])


@contextmanager
def _quiet():
    """The exporter tells each of its steps, and what else it could do."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
