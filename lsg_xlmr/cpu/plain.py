# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
Which modules may be called in pieces and on other threads: those known to give the same numbers so.

A quantized layer may set scales by all that it is given, or rearrange itself at its first call; an adapter, a hook
or one's own layer may do anything. What is not known here is called as stock calls it: once a layer, with the whole
tensors, on the caller's thread.
"""

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook
from transformers.activations import (
    FastGELUActivation,
    GELUActivation,
    NewGELUActivation,
    QuickGELUActivation,
    SiLUActivation,
)
from transformers.models.xlm_roberta.modeling_xlm_roberta import (
    XLMRobertaAttention,
    XLMRobertaCrossAttention,
    XLMRobertaIntermediate,
    XLMRobertaLMHead,
    XLMRobertaOutput,
)


_STOCK = (
    *(nn.Linear, nn.LayerNorm, nn.Dropout, nn.ModuleList, nn.Identity),
    *(GELUActivation, NewGELUActivation, FastGELUActivation, QuickGELUActivation, SiLUActivation),
    *(nn.GELU, nn.ReLU, nn.SiLU, nn.Tanh),
    *(XLMRobertaAttention, XLMRobertaCrossAttention, XLMRobertaIntermediate, XLMRobertaOutput, XLMRobertaLMHead),
)
_PLAIN = {cls: cls.forward for cls in _STOCK}  # with the `forward` it is known by: others may put theirs in its place
# What is of the class, a submodule or a parameter as long as nobody has put another thing in its place.
_REPLACEABLE = {"_call_impl", "_compiled_call_impl", "_hf_hook", "weight", "bias", "intermediate_act_fn"}
TENSORS = (nn.Parameter, torch.Tensor)  # and no subclass: quantized and distributed tensors are such
_OBSERVERS = "transformers.utils.output_capturing"  # whose hooks note `hidden_states` and `attentions`


def plain(cls):
    """Class decorator: modules of `cls` itself work in pieces and on any thread, where those within them do."""
    _PLAIN[cls] = cls.forward
    return cls


def is_plain(module):
    """
    Whether `module` (`nn.Module`) and all in it may be called in pieces and on other threads: in evaluation mode, each
    of a class that is known and as that class made it, with ordinary weights and without hooks. To be asked anew at
    every call: hooks and adapters come and go.
    """
    modules = [module]
    for module in modules:  # which grows meanwhile
        if module.training or not _is_as_made(module):
            return False
        modules += [child for child in module._modules.values() if child is not None]
    return not _has_any_global_hook()


def is_untouched(module):
    """Whether `module` (`nn.Module`) itself is of a class that is known and as that class made it, in any mode."""
    has_backward_hooks = module._backward_hooks or module._backward_pre_hooks
    return _is_as_made(module) and not has_backward_hooks and not _has_any_global_hook()


def _is_as_made(module):
    attributes, forward = vars(module), getattr(module.forward, "__func__", None)
    if _PLAIN.get(type(module), module) is not forward or not _REPLACEABLE.isdisjoint(attributes):
        return False
    if attributes["_forward_pre_hooks"] or not _only_observe(attributes["_forward_hooks"]):
        return False
    tensors = [tensor for tensor in attributes["_parameters"].values() if tensor is not None]
    return all(type(tensor) in TENSORS and tensor.is_floating_point() for tensor in tensors)


def _only_observe(hooks):
    return not hooks or all(getattr(hook, "__module__", None) == _OBSERVERS for hook in hooks.values())
