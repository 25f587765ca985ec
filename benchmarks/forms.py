"""The forms in which PyTorch runs a model: weights and products of 32, 16 and 8 bits."""

import torch
import torch._inductor.config


def in_form(model, form):
    """
    Args:
        model (`torch.nn.Module`): with float32 weights, in eval mode; changed in place.
        form (`str`): one of [`FORMS`] or [`SETTINGS`].

    Returns:
        `torch.nn.Module`: the model.
    """
    return (FORMS | SETTINGS)[form](model)


def _autocast(model):
    model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)
    return model


def _int8(model):
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(model, Int8DynamicActivationInt8WeightConfig(set_inductor_config=False))
    return model


def _int8_weights(model):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig(set_inductor_config=False))
    return model


def _medium(model):
    torch.set_float32_matmul_precision("medium")
    return model


def _frozen(model):
    torch._inductor.config.freezing = True
    return model


FORMS = {
    "float32": lambda model: model,
    "autocast": _autocast,
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "float16": lambda model: model.to(torch.float16),
    "int8": _int8,
    "int8-weights": _int8_weights,
}
# Of float32 too, by settings of torch that hold for the process: products by way of bfloat16 where that is quicker,
# and constants for weights in what is compiled.
SETTINGS = {"medium": _medium, "frozen": _frozen}
