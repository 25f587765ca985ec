# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
Linear layers in float32 on CPUs where torch's own products are slow.

oneDNN, whose products are quicker there, adds in another order, so that numbers differ in the last bits, and makes a
kernel for every number of rows, which takes a millisecond and stays.
"""

from functools import partial

import torch
from torch import nn

from .libraries import ZEN_5, amd_family, prefers_onednn
from .plain import TENSORS, is_untouched
from .threads import ALIGNMENT, is_eager


# Of one sum: a longer one is cut, or oneDNN's error would be more than twice MKL's.
LONGEST_SUM = 1024
# From so many rows on a product is worth the questions that are asked first.
MIN_ROWS = 4 * ALIGNMENT
# From so many rows on weights that are cut are worth their copy: on Zen 5, and on Zen 4.
MIN_ROWS_CUT = 512, 2048
# From so many on, rows that fill up the last `ALIGNMENT` cost less than the quicker product spares.
MIN_ROWS_FILLED = 16 * ALIGNMENT


def fastest(linear, states):
    """
    How `linear` is best applied to `states`, or to parts of them.

    Args:
        linear (`nn.Module`): any; what is not a plain `nn.Linear` in float32 is called as it is, and so is one whose
            product is traced, transformed, watched, or to be less exact by torch's public switches.
        states (`torch.Tensor` of shape `(..., size)`): what `linear` will be given, or has the same positions.

    Returns:
        a function from states, `(..., in_features)`, to `(..., out_features)`. The root mean square of its error
        against float64 is at most twice that of torch's own product.
    """
    # First what costs nothing, for a decoder's steps; sizes that may be symbols are not to be compared.
    if type(states) not in TENSORS or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return linear
    if states.shape[:-1].numel() < MIN_ROWS:
        return linear
    if not prefers_onednn() or type(linear) is not nn.Linear or not is_untouched(linear):
        return linear
    if not all(map(_is_exact, linear.parameters())):
        return linear
    if not _is_asked_for(states):
        return linear
    if linear.in_features > LONGEST_SUM and states.shape[:-1].numel() < MIN_ROWS_CUT[amd_family() < ZEN_5]:
        return linear
    needs_gradients = states.requires_grad or any(parameter.requires_grad for parameter in linear.parameters())
    if torch.is_grad_enabled() and needs_gradients:
        return partial(_with_gradients, linear)
    return partial(_in_whole_tiles, linear, _parts(linear.weight))


def _is_exact(tensor):
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu"


def _is_asked_for(states):
    """Whether torch would do this product at once, in float32, and may use oneDNN."""
    if not _is_exact(states) or not is_eager(states) or not torch.backends.mkldnn.enabled:
        return False
    settings = getattr(torch.backends.mkldnn, "matmul", None)
    if hasattr(settings, "fp32_precision"):  # from torch 2.9 on, where the older question may be an error
        return settings.fp32_precision in ("none", "ieee")
    return torch.get_float32_matmul_precision() == "highest"


def _in_whole_tiles(linear, parts, states):
    """`linear(states)`, for numbers of rows that are multiples of `ALIGNMENT`, so that there are few kernels."""
    num_rows = states.shape[:-1].numel()
    missing = -num_rows % ALIGNMENT
    is_worth_it = num_rows >= (MIN_ROWS_FILLED if missing else MIN_ROWS)
    if not is_worth_it or states.shape[-1] != linear.in_features:
        return linear(states)
    rows = states.reshape(num_rows, -1)
    if missing:
        rows = torch.nn.functional.pad(rows, (0, 0, 0, missing))
    return _product(rows, parts, linear.bias)[:num_rows].view(*states.shape[:-1], -1)


def _with_gradients(linear, states):
    if states.shape[-1] != linear.in_features:
        return linear(states)
    rows = states.reshape(-1, states.shape[-1])
    return _Product.apply(rows, linear.weight, linear.bias).view(*states.shape[:-1], -1)


class _Product(torch.autograd.Function):
    """
    `rows @ weight.T + bias` with `rows` of shape `(n, k)`, `weight` `(m, k)` and `bias` `(m,)` or `None`. Its backward
    pass is made of such products and so has one itself.
    """

    @staticmethod
    def forward(ctx, rows, weight, bias):
        ctx.save_for_backward(rows, weight)
        return _product(rows, _parts(weight), bias)

    @staticmethod
    def backward(ctx, grad):
        rows, weight = ctx.saved_tensors
        of_rows, of_weight, of_bias = ctx.needs_input_grad
        return (
            _rows_times(grad, weight.t()) if of_rows else None,
            _rows_times(grad.t(), rows.t(), is_quicker=amd_family() >= ZEN_5) if of_weight else None,
            grad.sum(0) if of_bias else None,
        )


def _rows_times(rows, columns, is_quicker=True):
    """`rows @ columns.T`; MKL is quicker on Zen 4 where both lie in memory by columns."""
    if not is_quicker or not _is_asked_for(rows):
        return rows @ columns.t()
    if torch.is_grad_enabled():
        return _Product.apply(rows, columns, None)
    return _product(rows, _parts(columns), None)


def _parts(weight):
    """
    `weight` (`m k`) cut into columns of at most `LONGEST_SUM`, each dense: for others oneDNN has no kernel and takes
    a thousand times as long.
    """
    parts = weight.detach().chunk(-(-weight.shape[1] // LONGEST_SUM), 1)
    return [part if part.is_contiguous() or part.t().is_contiguous() else part.contiguous() for part in parts]


def _product(rows, parts, bias):
    """`rows @ weight.T + bias`, `n m`, of the `parts` of the weight."""
    if not (rows.is_contiguous() or rows.t().is_contiguous()):
        rows = rows.contiguous()
    result = None
    for columns, part in zip(rows.split([part.shape[1] for part in parts], 1), parts):
        if result is None:
            result = torch.ops.mkldnn._linear_pointwise(columns, part, bias, "none", [], "")
        else:
            result = torch.ops.mkldnn._linear_pointwise(columns, result, part, None, "add")
    return result
