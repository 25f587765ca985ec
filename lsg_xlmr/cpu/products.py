# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
Linear layers in float32 on CPUs where torch's own products are slow.

oneDNN, whose products are quicker there, adds in another order, so that numbers differ in the last bits, and makes a
kernel for every number of rows, which takes a millisecond and stays: see [`aligned_sizes`].
"""

from functools import partial

import torch
from torch import nn

from .libraries import ZEN_5, amd_family, prefers_onednn
from .plain import TENSORS, is_untouched
from .threads import MIN_ROWS, aligned_sizes, is_eager


# Of one sum: a longer one is cut, or oneDNN's error would be more than twice MKL's.
LONGEST_SUM = 1024
# Of a gradient of a weight, which sums over the rows.
LONGEST_SUM_OF_ROWS = 512
# From so many rows on weights that are cut are worth their copy: on Zen 5, and on Zen 4.
MIN_ROWS_CUT = 512, 2048


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
    # A weight that is cut is copied here, once for all parts of the states.
    parts = None if torch.is_grad_enabled() else _parts(linear.weight)
    return partial(_apply, linear, parts)


def _apply(linear, parts, states):
    """`linear(states)`, with the `parts` of its weight, or where they are `None` with gradients."""
    if states.shape[-1] != linear.in_features:  # whose error is torch's
        return linear(states)
    rows = states.reshape(-1, states.shape[-1])
    if parts is None:
        result = _Product.apply(rows, linear.weight, linear.bias)
    else:
        result = _product_of_any(rows, linear.weight, parts, linear.bias)
    return result.view(*states.shape[:-1], -1)


def _is_exact(tensor):
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.layout == torch.strided


def _is_asked_for(states):
    """Whether torch would do this product at once, in float32, and may use oneDNN."""
    if not _is_exact(states) or not is_eager(states) or not torch.backends.mkldnn.enabled:
        return False
    settings = getattr(torch.backends.mkldnn, "matmul", None)
    if hasattr(settings, "fp32_precision"):  # from torch 2.9 on, where the older question may be an error
        return settings.fp32_precision in ("none", "ieee")
    return torch.get_float32_matmul_precision() == "highest"


class _Product(torch.autograd.Function):
    """`rows @ weight.T + bias` with `rows` of shape `(n, k)`, `weight` `(m, k)` and `bias` `(m,)` or `None`."""

    @staticmethod
    def forward(ctx, rows, weight, bias):
        of_rows, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(rows if of_weight else None, weight if of_rows else None)
        return _product_of_any(rows, weight, _parts(weight), bias)

    @staticmethod
    def backward(ctx, grad):
        rows, weight = ctx.saved_tensors
        of_rows, of_weight, of_bias = ctx.needs_input_grad
        is_quick = not torch.is_grad_enabled() and _is_asked_for(grad)  # else torch's, which have gradients themselves
        grad_rows = grad_weight = None
        if of_rows:
            columns = weight.t()
            grad_rows = _product_of_any(grad, columns, _parts(columns), None) if is_quick else grad @ weight
        if of_weight:
            # MKL is quicker on Zen 4 where both lie in memory by columns.
            is_quick = is_quick and amd_family() >= ZEN_5
            grad_weight = _product_over_rows(grad, rows) if is_quick else grad.t() @ rows
        return grad_rows, grad_weight, grad.sum(0) if of_bias else None


def _parts(weight):
    """
    `weight` (`m k`) cut into columns of at most `LONGEST_SUM`, each dense: for others oneDNN has no kernel and takes
    a thousand times as long.
    """
    return [_dense(part) for part in weight.detach().chunk(-(-weight.shape[1] // LONGEST_SUM), 1)]


def _dense(matrix):
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


def _product_of_any(rows, weight, parts, bias):
    """
    `rows @ weight.T + bias`, `n m`, of any number of rows by few kernels: see [`aligned_sizes`]. What is left over is
    MKL's.
    """
    sizes = aligned_sizes(len(rows))
    if sizes == [len(rows)] and sizes[0] >= MIN_ROWS:
        return _product(rows, parts, bias)
    result = rows.new_empty(len(rows), len(weight))
    for piece, out in zip(rows.split(sizes), result.split(sizes)):
        if len(piece) >= MIN_ROWS:
            out.copy_(_product(piece, parts, bias))
        elif bias is None:
            torch.mm(piece, weight.t(), out=out)
        else:
            torch.addmm(bias, piece, weight.t(), out=out)
    return result


def _product(rows, parts, bias):
    """`rows @ weight.T + bias`, `n m`, of the `parts` of the weight."""
    rows, result = _dense(rows), None
    for columns, part in zip(rows.split([part.shape[1] for part in parts], 1), parts):
        if result is None:
            result = torch.ops.mkldnn._linear_pointwise(columns, part, bias, "none", [], "")
        else:
            result = torch.ops.mkldnn._linear_pointwise(columns, result, part, None, "add")
    return result


def _product_over_rows(left, right):
    """`left.T @ right`, `m k`, of `left` (`n m`) and `right` (`n k`)."""
    num_whole = len(left) // LONGEST_SUM_OF_ROWS
    result = left.new_zeros(left.shape[1], right.shape[1])
    for i in range(num_whole):
        piece = slice(i * LONGEST_SUM_OF_ROWS, (i + 1) * LONGEST_SUM_OF_ROWS)
        columns, part = _dense(left[piece].t()), _dense(right[piece].t())
        result = torch.ops.mkldnn._linear_pointwise(columns, result, part, None, "add")
    rest = num_whole * LONGEST_SUM_OF_ROWS
    return result.addmm_(left[rest:].t(), right[rest:])
