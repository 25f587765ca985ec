# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Logits of a large vocabulary, computed only at the positions that are looked at."""

import torch
from transformers.utils.import_utils import is_tracing


# What chooses among positions without looking at the vocabulary, where it is done to the features.
CHOOSING = (
    torch.ops.aten.alias.default,
    torch.ops.aten.detach.default,
    torch.ops.aten.index.Tensor,
    torch.ops.aten.select.int,
    torch.ops.aten.slice.Tensor,
    torch.ops.aten.unsqueeze.default,
)
MASKS = (torch.bool, torch.uint8)  # dtypes of an index that takes as many dimensions as it has


class LazyLogits(torch.Tensor):
    """
    A tensor of logits, `(..., vocab_size)`, that holds features, `(..., hidden_size)`. Choosing positions
    (`logits[0, 7]`, `logits[:, -1:]`, `logits[mask]`) chooses among the features, and so does another device or dtype;
    whatever else is done with it computes the logits of all the positions it still has.

    Args:
        features (`torch.Tensor` of shape `(..., hidden_size)`).
        head (`Callable`): from features to logits.
        vocab_size (`int`).
    """

    @staticmethod
    def __new__(cls, features, head, vocab_size, dtype=None, device=None):
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            (*features.shape[:-1], vocab_size),
            dtype=dtype or features.dtype,
            device=device or features.device,
        )
        self.features, self.head = features, head
        return self

    @staticmethod
    def can_stand_for(features):
        """Whether logits of `features` may wait: not if they are to have gradients, are traced or are autocast."""
        device = features.device.type
        return not (torch.is_grad_enabled() or is_tracing(features) or torch.is_autocast_enabled(device))

    def dense(self):
        """The logits of all positions, an ordinary tensor."""
        with torch.no_grad():
            return self.head(self.features).to(self.device, self.dtype)

    def numpy(self, **kwargs):
        """[`torch.Tensor.numpy`] of all positions."""
        return self.dense().numpy(**kwargs)

    def tolist(self):
        """[`torch.Tensor.tolist`] of all positions."""
        return self.dense().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self = args[0]
        if isinstance(self, cls):
            if func is torch.ops.aten._to_copy.default:
                device, dtype = kwargs.get("device") or self.device, kwargs.get("dtype") or self.dtype
                return cls(self.features, self.head, self.shape[-1], dtype, device)
            if func in CHOOSING and self._chooses_positions(func, *args[1:]):
                features = func(self.features, *args[1:], **kwargs)
                return cls(features, self.head, self.shape[-1], self.dtype, self.device)
        args, kwargs = torch.utils._pytree.tree_map_only(cls, cls.dense, (args, kwargs))
        return func(*args, **kwargs)

    def _chooses_positions(self, func, *args):
        """Whether the last dimension stays as it is."""
        if func is torch.ops.aten.index.Tensor:
            indices = args[0]
            used = sum(1 if index is None or index.dtype not in MASKS else index.dim() for index in indices)
            return used < self.dim() or indices[-1] is None
        if not args:
            return True
        dim = args[0] % (self.dim() + (func is torch.ops.aten.unsqueeze.default))
        return dim < self.dim() - 1 or (func is torch.ops.aten.slice.Tensor and self._is_whole(*args[1:]))

    def _is_whole(self, start=None, end=None, step=1):
        return not start and (end is None or end >= self.shape[-1]) and step == 1
