"""What the tests share: small models, offline, quiet, and one seed."""

import os
import tempfile


os.environ["HF_HUB_OFFLINE"] = "1"
# The code of checkpoints under test is not to be found again outside.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="lsg-modules-")

import pytest  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import set_seed  # noqa: E402

from lsg_xlmr import LSGConfig  # noqa: E402


@pytest.fixture(autouse=True)
def seeded():
    set_seed(0)


@pytest.fixture
def tiny_config():
    """A function that makes a small `LSGConfig` (two layers, four heads, 128 positions) with the given fields."""

    def make(**fields):
        defaults = {
            "vocab_size": 99,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 37,
            "max_position_embeddings": 130,
            "type_vocab_size": 1,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "layer_norm_eps": 1e-5,
            "block_size": 8,
            "sparse_block_size": 8,
            "initializer_range": 0.2,
        }
        return LSGConfig(**{**defaults, **fields})

    return make


@pytest.fixture
def token_ids():
    """A function that makes random token ids, `(batch_size, length)` int64, none of them special."""

    def make(batch_size, length):
        return torch.randint(5, 99, (batch_size, length))

    return make


@pytest.fixture
def stored_weights():
    """
    A function that reads a checkpoint's `model.safetensors`. A model that was loaded by transformers 5.0 is saved with
    the LayerNorms' old names.
    """

    def read(folder):
        weights = load_file(folder / "model.safetensors")
        return {
            name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): weight
            for name, weight in weights.items()
        }

    return read
