# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
Logits of a large vocabulary that are computed only where they are looked at.

They wait as the features they come from. Choosing positions chooses among the features; anything else first makes of
them the ordinary tensor they stand for, for good: nothing has to be known of what is done with them.
"""

from threading import RLock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers.utils.import_utils import is_tracing

from .frozen_head import FrozenHead, can_be_frozen


# What may leave logits waiting, if it does not come to the words; all else reads them.
MAY_WAIT = {
    *(Tensor.shape.__get__, Tensor.dtype.__get__, Tensor.device.__get__, Tensor.ndim.__get__, Tensor.layout.__get__),
    *(Tensor.is_nested.__get__, Tensor.is_sparse.__get__, Tensor.is_cuda.__get__, Tensor.is_cpu.__get__),
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.__len__, Tensor.__hash__),
    *(Tensor.__getitem__, Tensor.select, Tensor.narrow, Tensor.unsqueeze, Tensor.detach, Tensor.argmax, torch.argmax),
    *(Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16),
}
aten = torch.ops.aten
VIEWS = (aten.alias.default, aten.detach.default, aten.select.int, aten.slice.Tensor, aten.unsqueeze.default)
MASK_TYPES = (torch.bool, torch.uint8)  # an index of these takes as many dimensions as it has
POSITIONS_AT_A_TIME = 128  # of `argmax`: 122 MiB of logits of 250,002 words


def lazy_logits(model, features):
    """
    Args:
        model ([`LSGXLMRobertaForMaskedLM`]).
        features (`torch.Tensor` of shape `(..., hidden_size)`).

    Returns:
        `torch.Tensor` of shape `(..., vocab_size)`: [`LazyLogits`], or the logits at once where gradients are on, in a
        traced graph, and of a head that is more than its weights ([`can_be_frozen`]).
    """
    if torch.is_grad_enabled() or is_tracing(features) or not can_be_frozen(model, features):
        return model.lm_head(features)
    # A copy: others may hold the features and write to them.
    return LazyLogits(_Logits(FrozenHead(model, features.device), features.clone(), features.device))


class _Logits:
    """
    What [`LazyLogits`] and all views of them share: the features, `(..., hidden_size)`, and once some were read, the
    `tensor`, `(..., vocab_size)`, with those that are `there`. It is given away, and may change its shape; `base` is a
    view of it that does not.
    """

    def __init__(self, head, features, device, dtype=None):
        self.head, self.features, self.device, self.dtype = head, features, device, dtype or head.dtype
        self.tensor, self.base, self.there, self.lock = None, None, set(), RLock()

    def of(self, features):
        """The logits of `features`, an ordinary tensor."""
        logits = self.head(features)
        with self.head.modes():
            return logits.to(self.device, self.dtype)

    def read(self, views):
        """What `views` show of them, an ordinary tensor; no more is computed."""
        with self.lock, self.head.modes():
            shape = self.features.shape[:-1]
            positions = torch.arange(shape.numel(), device=self.features.device).view(*shape, 1)
            missing = sorted(set(_shown(positions, views).flatten().tolist()) - self.there)
            if self.base is None:
                if len(missing) == positions.numel():
                    self.tensor, self.there, missing = self.of(self.features), set(missing), []
                else:  # on a CPU, memory that nothing is written to costs nothing
                    size = (*shape, self.head.vocab_size)
                    self.tensor = torch.empty(size, dtype=self.dtype, device=self.device)
                with torch.enable_grad():  # a view that may be written to, whatever is written
                    self.base = aten.alias(self.tensor)
            for start in range(0, len(missing), POSITIONS_AT_A_TIME):
                piece = missing[start : start + POSITIONS_AT_A_TIME]
                logits = self.of(self.features.flatten(0, -2)[piece])
                self.base.data.flatten(0, -2)[piece] = logits  # `data`: for autograd nothing changes
                self.there.update(piece)
            return _shown(self.base, views)


class LazyLogits(Tensor):
    """
    A tensor of logits, `(..., vocab_size)`, that waits as features, `(..., hidden_size)`. Choosing positions
    (`logits[0, 7]`, `logits[:, -1:]`, `logits[mask]`) and another device or dtype give [`LazyLogits`] again, `argmax`
    over the words takes some positions at a time; whatever else is done with it first makes of it the ordinary tensor
    it stands for, in place and for good.

    Args:
        logits (`_Logits`).
        features (`torch.Tensor`, *optional*): what `views` choose of its features; by default all.
        views (`tuple`): functions of aten that choose, each with its arguments.

    Raises:
        RuntimeError: read after a weight of the LM head was changed in place, or by C++ that cannot be given another
            tensor (`torch.jit.trace`).
    """

    @staticmethod
    def __new__(cls, logits, features=None, views=()):
        features = logits.features if features is None else features
        shape = (*features.shape[:-1], logits.head.vocab_size)
        with logits.head.modes():
            self = Tensor._make_wrapper_subclass(cls, shape, dtype=logits.dtype, device=logits.device)
        torch._C._set_throw_on_mutable_data_ptr(self)  # C++ that takes its memory fails: there is none
        self._waiting = logits, features, views
        return self

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        waiting = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, cls)]
        state = args[0].__dict__.get("_waiting") if len(waiting) == 1 and args and waiting[0] is args[0] else None
        if func in MAY_WAIT and state is not None:
            try:
                with torch._C.DisableTorchFunctionSubclass(), _Choosing():
                    return func(*args, **kwargs)
            except _ReadError as error:
                asked = error
            logits, _, views = state
            if asked.logits is logits:
                logits.read(asked.views)
                return func(_shown(logits.base, views), *args[1:], **kwargs)
        for tensor in waiting:
            _make_ordinary(tensor)
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        """What comes from C++ alone, as of `vmap`, where a tensor can neither become another nor be reshaped."""
        if torch.Tag.inplace_view in func.tags:
            raise RuntimeError(f"{func} cannot reshape lazy logits here: give it `logits.clone()`.")
        args, kwargs = tree_map_only(cls, _read, (args, kwargs or {}))
        return func(*args, **kwargs)


def _read(tensor):
    """The ordinary tensor that `tensor` stands for, another Python object."""
    state = tensor.__dict__.get("_waiting")  # another thread may just have made it ordinary
    return tensor if state is None else state[0].read(state[2])


def _make_ordinary(tensor):
    """Make `tensor` itself the ordinary tensor that it stands for."""
    waiting = tensor.__dict__.get("_waiting")
    if waiting is None:
        return
    logits, _, views = waiting
    with logits.lock:
        if not isinstance(tensor, LazyLogits):  # another thread was faster
            return
        ordinary = logits.read(views)
        if not views and logits.tensor is not None:
            ordinary, logits.tensor = logits.tensor, None
        # What `torch.utils.swap_tensors` does, in an order in which no thread sees half of it.
        try:
            torch._C._swap_tensor_impl(tensor, ordinary)
        except RuntimeError as error:
            raise RuntimeError("Lazy logits cannot be read here: give it `logits.clone()`.") from error
        ordinary.__class__, ordinary._waiting = LazyLogits, waiting
        tensor.__class__ = Tensor
        del tensor._waiting


def _shown(tensor, views):
    for func, args, is_grad_enabled in views:
        with torch.set_grad_enabled(is_grad_enabled):
            tensor = func(tensor, *args)
    return tensor


class _ReadError(Exception):
    """What is done comes to the words of `views` of `logits`."""

    def __init__(self, logits, views):
        self.logits, self.views = logits, views


class _Choosing(TorchDispatchMode):
    """Does to the features what chooses among positions."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        state = args[0].__dict__.get("_waiting") if args and isinstance(args[0], LazyLogits) else None
        if state is None:
            return func(*args, **kwargs)
        _, *arguments = args
        (logits, features, views), dim = state, state[1].dim()
        shown = (*views, (func, arguments, torch.is_grad_enabled()))
        if func in VIEWS and (not arguments or arguments[0] % (dim + (func is aten.unsqueeze.default)) < dim - 1):
            return LazyLogits(logits, func(features, *arguments), shown)
        if func is aten.slice.Tensor and _is_whole(logits.head.vocab_size, *arguments[1:]):
            return LazyLogits(logits, features, shown)
        # Copies: those that are there may have been written to.
        if func is aten.index.Tensor and _leaves_words(arguments[0], dim) and logits.device == features.device:
            if logits.base is not None:
                return logits.read(shown)
            return LazyLogits(_Logits(logits.head, func(features, *arguments), logits.device, logits.dtype))
        if (
            logits.base is None
            and func is aten._to_copy.default
            and kwargs.keys() <= {"device", "dtype", "non_blocking"}
        ):
            device, dtype = kwargs.get("device") or logits.device, kwargs.get("dtype") or logits.dtype
            return LazyLogits(_Logits(logits.head, features, device, dtype))
        if logits.base is None and func is aten.argmax.default and arguments and arguments[0] in (-1, dim - 1):
            return _argmax(logits, features, *arguments[1:])
        raise _ReadError(logits, views)


def _leaves_words(indices, dim):
    used = sum(1 if index is None or index.dtype not in MASK_TYPES else index.dim() for index in indices)
    return used < dim or indices[-1] is None


def _is_whole(size, start=None, end=None, step=1):
    return not start and (end is None or end >= size) and step == 1


def _argmax(logits, features, keepdim=False):
    pieces = features.reshape(-1, features.shape[-1]).split(POSITIONS_AT_A_TIME)
    words = torch.cat([logits.of(piece).argmax(-1) for piece in pieces]).view(features.shape[:-1])
    return words.unsqueeze(-1) if keepdim else words
