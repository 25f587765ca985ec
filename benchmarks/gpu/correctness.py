"""Whether the numbers are right at real size: FlexAttention against attention by its definition, in float32."""

from dataclasses import replace

import torch
from clock import num_graphs, seconds
from scale import texts

from lsg_xlmr.attention.eager import dense_weights
from lsg_xlmr.model import encoder


HEADS_AT_A_TIME = 2
TOLERANCE = 1e-3  # float32: the largest difference of a hidden state, which is about 1
TIMES_EAGER = 1.5  # bfloat16: the mean difference, in times of what eager attention in bfloat16 is off


def check(scale, device):
    """Yields a row for each length, dtype and padding."""
    for dtype in (torch.float32, torch.bfloat16):
        model = scale.model("lsg", dtype, device, "flex_attention")
        for length in scale.checked:
            for is_padded in (False, True):
                yield _row(model, scale, device, length, dtype, is_padded)


@torch.no_grad()
def _row(model, scale, device, length, dtype, is_padded):
    inputs = texts(scale, 2 if is_padded else 1, length, device, is_padded)
    rows = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    before, found = num_graphs(), []
    took = seconds(lambda: found.append(model(**inputs).last_hidden_state[rows].float()), device)
    graphs = num_graphs() - before
    fused, plain = encoder.lsg_attention, []
    encoder.lsg_attention = lambda inputs, implementation: (by_definition(inputs), None)
    try:
        for precision in {dtype, torch.float32}:
            plain.append((precision, model.to(precision)(**inputs).last_hidden_state[rows].float()))
    finally:
        encoder.lsg_attention = fused
        model.to(dtype)
    plain = dict(plain)
    error = (found[0] - plain[torch.float32]).abs()
    row = {"length": length, "dtype": str(dtype).removeprefix("torch."), "is_padded": is_padded, "graphs": graphs}
    row |= {"first_seconds": took, "max_error": float(error.max()), "mean_error": float(error.mean())}
    if dtype == torch.float32:
        return row | {"is_right": row["max_error"] <= TOLERANCE}
    eager_error = float((plain[dtype] - plain[torch.float32]).abs().mean())
    return row | {"eager_mean_error": eager_error, "is_right": row["mean_error"] <= TIMES_EAGER * eager_error}


def by_definition(inputs):
    """The context `n T h d` of `inputs` ([`AttentionInputs`]), dense, a text and few heads at a time."""
    n, h = inputs.key.shape[:2]
    heads = [slice(start, start + HEADS_AT_A_TIME) for start in range(0, h, HEADS_AT_A_TIME)]
    return torch.cat([torch.cat([_part(inputs, text, some) for some in heads], 2) for text in range(n)])


def _part(inputs, text, heads):
    tensors = {
        name: getattr(inputs, name)[text : text + 1, heads] for name in ("query", "key", "value", "first_query")
    }
    mask = None if inputs.mask is None else inputs.mask[text : text + 1]
    part = replace(inputs, mask=mask, _sparse=None, **tensors)
    return (dense_weights(part) @ part.with_sparse(part.value, part.sparse[1])).transpose(1, 2)
