"""
What transformers' own tests of every model are run on: XLM-RoBERTa as it is, and the LSG classes on inputs within and
past two blocks. `tests/model/test_common.py` puts this file beside them; it is not run where it lies.
"""

import unittest
from collections import OrderedDict

import transformers
from transformers import XLMRobertaConfig
from transformers.models.auto import modeling_auto

import lsg_xlmr
from lsg_xlmr import LSGConfig

from .generation.test_utils import GenerationTesterMixin
from .test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask


STOCK = tuple(
    getattr(transformers, f"XLMRoberta{head}")
    for head in (
        *("Model", "ForMaskedLM", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification"),
        *("ForQuestionAnswering", "ForMultipleChoice"),
    )
)
LSG = tuple(getattr(lsg_xlmr, f"LSG{model_class.__name__}") for model_class in STOCK)

# The tests look up by its name what a class takes and gives, and load what was saved by the Auto classes.
for auto_class, entry in LSGConfig.AUTO_MAP.items():
    if auto_class != "AutoConfig":
        name = entry.split(".")[1]
        getattr(transformers, auto_class).register(LSGConfig, getattr(lsg_xlmr, name), exist_ok=True)
for names in vars(modeling_auto).values():
    if isinstance(names, OrderedDict) and "xlm-roberta" in names:
        names["lsg"] = f"LSG{names['xlm-roberta']}"


class Tester:
    """A small model and its inputs, as `ModelTesterMixin` asks for them."""

    batch_size, seq_length, num_choices, is_training = 3, 13, 4, True
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4

    def __init__(self, config_class, **lsg_fields):
        self.config_class, self.lsg_fields = config_class, lsg_fields

    def get_config(self):
        return self.config_class(
            vocab_size=99,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=37,
            hidden_dropout_prob=0.1,
            attention_probs_dropout_prob=0.1,
            max_position_embeddings=40,
            type_vocab_size=2,
            initializer_range=0.02,
            **self.lsg_fields,
        )

    def prepare_config_and_inputs_for_common(self):
        shape = [self.batch_size, self.seq_length]
        ids = ids_tensor(shape, 99).clamp(min=5)  # none is padding, which would shift the positions
        return self.get_config(), {"input_ids": ids, "attention_mask": random_attention_mask(shape)}


class StockTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = STOCK
    tester = (XLMRobertaConfig, {})

    def setUp(self):
        self.model_tester = Tester(self.tester[0], **self.tester[1])


class WithinTwoBlocksTest(StockTest):
    all_model_classes = LSG
    tester = (LSGConfig, {"block_size": 8, "sparse_block_size": 8})


class PastTwoBlocksTest(WithinTwoBlocksTest):
    tester = (LSGConfig, {"block_size": 4, "sparse_block_size": 4})
