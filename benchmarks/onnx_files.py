"""ONNX files of the models compared, both by `torch.onnx.export` and, in 8 bits, by ONNX Runtime's quantization."""

import torch
from torch import nn
from torch.export import Dim
from transformers import AttentionInterface

from lsg_xlmr.onnx.export import FILE, INT8_FILE, OPSET, quantize, save


def write_onnx_file(model, folder, dtype, fused=False):
    """
    Args:
        model: the stock or the LSG encoder, in eval mode; of no use afterwards.
        folder (`Path`): where to write it.
        dtype (`str`): `"float32"` or `"int8"`.
        fused (`bool`): give stock ONNX Runtime's own attention operator, which its optimizer does not put in.

    Returns:
        `Path`: the file.
    """
    if type(model).__name__.startswith("LSG"):
        from lsg_xlmr.onnx.graph import onnx_model

        graph = onnx_model(model, model.config.pad_token_id, OPSET)
    else:
        graph = _stock_graph(_FusedLastHiddenState(model) if fused else _LastHiddenState(model))
    has_own_file = save(graph, folder / FILE)
    if dtype == "float32":
        return folder / FILE
    quantize(folder, has_own_file)
    return folder / INT8_FILE


class _LastHiddenState(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids, attention_mask).last_hidden_state


class _FusedLastHiddenState(_LastHiddenState):
    """Every layer's attention is one operator, which takes the padding mask as it is."""

    def forward(self, input_ids, attention_mask):
        padding_mask = attention_mask.to(torch.int32)

        def attention(module, query, key, value, *args, **kwargs):
            states = [x.transpose(1, 2).flatten(2) for x in (query, key, value)]  # n t h*d
            context = torch.onnx.ops.symbolic(
                "com.microsoft::MultiHeadAttention",
                (*states, None, padding_mask),
                {"num_heads": query.shape[1]},
                dtype=query.dtype,
                shape=states[0].shape,
                version=1,
            )
            return context.unflatten(2, (query.shape[1], -1)), None

        AttentionInterface.register("onnx", attention)
        self.model.set_attn_implementation("onnx")
        return super().forward(input_ids, attention_mask)


def _stock_graph(module):
    input_ids = torch.full((2, 5), 7)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 3:] = 0  # without padding no mask would be traced
    dims = {0: Dim("batch"), 1: Dim("length", max=module.model.config.max_position_embeddings - 2)}
    with torch.no_grad():
        return torch.onnx.export(
            module.eval(),
            (input_ids, attention_mask),
            dynamo=True,
            opset_version=OPSET,
            input_names=("input_ids", "attention_mask"),
            dynamic_shapes=(dims, dims),
        ).model
