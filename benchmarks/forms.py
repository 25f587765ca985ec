"""The forms in which PyTorch runs a model: weights and products of 32, 16 and 8 bits."""

import torch


def in_form(model, form):
    """
    Args:
        model (`torch.nn.Module`): with float32 weights, in eval mode; changed in place.
        form (`str`): one of [`FORMS`].

    Returns:
        `torch.nn.Module`: the model.
    """
    return FORMS[form](model)


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


FORMS = {
    "float32": lambda model: model,
    "autocast": _autocast,
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "float16": lambda model: model.to(torch.float16),
    "int8": _int8,
    "int8-weights": _int8_weights,
}
