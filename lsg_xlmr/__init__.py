# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""LSG (local + sparse + global) attention for XLM-RoBERTa: long documents with existing checkpoints."""

import transformers

from .configuration_lsg import LSGConfig, LSGEncoderDecoderConfig, LSGXLMRobertaConfig, TravelsWithItsCode
from .conversion import LSGConverter
from .conversion.drop_in import write_drop_in_files
from .late_chunking import LateChunks, late_chunks
from .model.encoder import LSGAttention
from .model.encoder_decoder import LSGEncoderDecoderModel
from .model.modeling_lsg_xlm_roberta import (
    LSGXLMRobertaForCausalLM,
    LSGXLMRobertaForMaskedLM,
    LSGXLMRobertaForMultipleChoice,
    LSGXLMRobertaForQuestionAnswering,
    LSGXLMRobertaForSequenceClassification,
    LSGXLMRobertaForTokenClassification,
    LSGXLMRobertaModel,
    LSGXLMRobertaPreTrainedModel,
)
from .onnx import export_onnx
from .version import __version__


# Transformers' Auto classes make this package's models of this package's configurations. All others are as before.
for _config in (LSGConfig, LSGEncoderDecoderConfig):
    for _name, _of_folder in _config.AUTO_MAP.items():
        if _name != "AutoConfig":
            getattr(transformers, _name).register(_config, globals()[_of_folder.split(".")[-1]], exist_ok=True)

# The files of a checkpoint copy themselves on save; those of this package must be merged first.
TravelsWithItsCode.write_code = lambda self, save_directory: write_drop_in_files(save_directory)


__all__ = [
    "LSGAttention",
    "LSGConfig",
    "LSGConverter",
    "LSGEncoderDecoderConfig",
    "LSGEncoderDecoderModel",
    "LSGXLMRobertaConfig",
    "LSGXLMRobertaForCausalLM",
    "LSGXLMRobertaForMaskedLM",
    "LSGXLMRobertaForMultipleChoice",
    "LSGXLMRobertaForQuestionAnswering",
    "LSGXLMRobertaForSequenceClassification",
    "LSGXLMRobertaForTokenClassification",
    "LSGXLMRobertaModel",
    "LSGXLMRobertaPreTrainedModel",
    "LateChunks",
    "__version__",
    "export_onnx",
    "late_chunks",
]
