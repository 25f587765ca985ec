# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""The LSG class of each architecture."""

from ..configuration_lsg import LSGConfig
from ..model import modeling_lsg_xlm_roberta


# The Auto class and the LSG class of each architecture, by the name of the LSG class.
ARCHITECTURES = {
    entry.split(".")[1]: (auto_class, getattr(modeling_lsg_xlm_roberta, entry.split(".")[1]))
    for auto_class, entry in LSGConfig.AUTO_MAP.items()
    if auto_class != "AutoConfig"
}


def lsg_class(architecture):
    """
    Args:
        architecture (`str`): name of a class, with LSG before it or without.

    Raises:
        ValueError: there is no LSG version of it.
    """
    name = architecture if architecture.startswith("LSG") else f"LSG{architecture}"
    if name not in ARCHITECTURES:
        raise ValueError(
            f"There is no LSG version of architecture {architecture!r}. Give one of {', '.join(ARCHITECTURES)}, or "
            "its name without LSG."
        )
    return ARCHITECTURES[name][1]
