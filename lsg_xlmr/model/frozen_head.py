# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""An LM head as it was at one moment, to be used at a later one."""

from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from .dense import LSGLMHead


PARTS_OF_HEAD = [LSGLMHead, nn.Linear, nn.LayerNorm, nn.Linear]


class FrozenHead:
    """
    The head of `model` and torch's modes of now, whatever becomes of them: parts and weights that are replaced later
    stay, weights that are changed in place are noticed.

    Args:
        model ([`LSGXLMRobertaForMaskedLM`]): one that [`can_be_frozen`].
        device (`torch.device`): that of the features.

    Attributes:
        dtype (`torch.dtype`): of the logits.
        vocab_size (`int`).
    """

    def __init__(self, model, device):
        self.head = deepcopy(model.lm_head, {id(weight): weight.detach() for weight in model.lm_head.parameters()})
        self.weights = {
            name: (weight, weight._version, _sample(weight).clone()) for name, weight in self.head.named_parameters()
        }
        self.is_inference = torch.is_inference_mode_enabled()
        self.autocast = device.type, torch.get_autocast_dtype(device.type), torch.is_autocast_enabled(device.type)
        with self.modes():
            nothing = self.head(
                torch.empty(0, self.head.dense.in_features, dtype=self.head.dense.weight.dtype, device=device)
            )
        self.dtype, self.vocab_size = nothing.dtype, nothing.shape[-1]

    @contextmanager
    def modes(self):
        """Torch's modes of the moment, without gradients."""
        with torch.inference_mode(self.is_inference), torch.no_grad(), torch.autocast(*self.autocast):
            yield

    def __call__(self, features):
        """
        Logits of `features`.

        Raises:
            RuntimeError: a weight was changed in place.
        """
        for name, (weight, version, sample) in self.weights.items():
            is_same = weight._version == version and weight.untyped_storage().nbytes() > 0
            if not is_same or not torch.allclose(_sample(weight), sample, rtol=0, atol=0, equal_nan=True):
                raise RuntimeError(
                    f"`lm_head.{name}` was changed before these logits were read, and sparse_prediction computes them "
                    "when they are: read them earlier (`logits.clone()`), or set sparse_prediction=False."
                )
        with self.modes():
            return self.head(features)


def can_be_frozen(model, features):
    """
    Whether the LM head is its weights and nothing else, and torch is in no mode but inference or autocast: no hooks,
    adapters, quantized, sharded or replaced parts, no transforms of functions.
    """
    modules = list(model.lm_head.modules())
    return (
        [type(module) for module in modules] == PARTS_OF_HEAD
        and all(_is_plain(module.weight) and _is_plain(module.bias) for module in modules[1:])
        and not any("forward" in vars(module) or module._compiled_call_impl for module in modules)
        and not any(module._forward_hooks or module._forward_pre_hooks for module in (model, *modules))
        and not _has_any_global_hook()
        and type(features) is torch.Tensor
        and not torch._C._are_functorch_transforms_active()
        and torch.amp.is_autocast_available(features.device.type)
    )


def _is_plain(weight):
    return type(weight) is nn.Parameter and not weight.is_inference()


def _sample(weight):
    """Some thousand values from all parts: a change through `.data` leaves `_version` as it was."""
    return weight[tuple(slice(None, None, max(1, size // 32)) for size in weight.shape)]
