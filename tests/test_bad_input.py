"""What a model says to inputs it cannot take: one message that names the value, the rule and the way out."""

import pytest
import torch
import transformers
from packaging import version

from lsg_xlmr import LSGXLMRobertaForMaskedLM, LSGXLMRobertaModel


IDS = torch.randint(5, 99, (2, 24))


@pytest.fixture
def model(tiny_config):
    return LSGXLMRobertaModel(tiny_config()).eval()


@pytest.mark.parametrize(
    "inputs, words",
    [
        ({"input_ids": IDS + 90}, r"`input_ids` holds 1\d\d, and must be from 0 to 98"),
        ({"input_ids": IDS - 50}, "`input_ids` holds -.*from 0 to 98"),
        ({"input_ids": IDS.float()}, r"`input_ids` must be whole numbers .* got torch.float32 of shape \(2, 24\)"),
        ({"input_ids": IDS > 9}, "`input_ids` must be whole numbers .* got torch.bool"),
        ({"input_ids": IDS[None]}, r"of shape \(1, 2, 24\)"),
        ({"input_ids": IDS[:, :0]}, "2 texts of 0 tokens"),
        ({"input_ids": IDS[:0]}, "0 texts of 24 tokens"),
        ({"input_ids": IDS, "position_ids": IDS + 100}, "`position_ids` holds 1.*from 0 to 129"),
        ({"input_ids": IDS, "position_ids": IDS - 50}, "`position_ids` holds -"),
        ({"input_ids": IDS, "position_ids": IDS.float()}, "`position_ids` must be whole numbers"),
        ({"input_ids": IDS, "token_type_ids": torch.ones_like(IDS)}, "`token_type_ids` holds 1, .*from 0 to 0"),
        ({"input_ids": IDS, "token_type_ids": torch.zeros(2, 24)}, "`token_type_ids` must be whole numbers"),
        ({"input_ids": IDS, "attention_mask": torch.ones(2, 23)}, r"shape \(2, 23\).*\(2, 24\)"),
        ({"input_ids": IDS, "attention_mask": torch.ones(2, 24, 24)}, "takes one value per token"),
        ({"input_ids": IDS, "attention_mask": torch.ones(2, 1, 24, 24)}, "takes one value per token"),
        ({"input_ids": IDS.repeat(1, 6)}, "has 144 tokens, but the model has positions for 128"),
        ({"input_ids": IDS, "inputs_embeds": torch.zeros(2, 24, 32)}, "input_ids.*inputs_embeds"),
        ({}, "input_ids.*inputs_embeds"),
    ],
)
def test_inputs(model, inputs, words):
    with pytest.raises(ValueError, match=words):
        model(**inputs)


def test_one_dimension(model):
    with pytest.raises((ValueError, IndexError)) as caught:
        model(IDS[0])
    assert "(batch_size, sequence_length), got torch.int64 of shape (24,)" in str(caught.value) or version.parse(
        transformers.__version__
    ) < version.parse("5.1")  # where transformers fails before the embeddings are asked


def test_nothing_is_looked_at_off_the_cpu(tiny_config):
    """On an accelerator a look at the ids would wait for it; the meta device has nothing to look at."""
    with torch.device("meta"):
        model = LSGXLMRobertaModel(tiny_config()).eval()
    ids = torch.full((1, 24), 10**6, device="meta")
    assert model(ids, position_ids=ids).last_hidden_state.shape == (1, 24, 32)


@pytest.mark.parametrize("name", ["blok_size", "sparsity"])
def test_misspelt_field_at_load(tiny_config, tmp_path, name):
    LSGXLMRobertaForMaskedLM(tiny_config()).save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=f"knows '{name}'. The LSG fields are adaptive, block_size,"):
        LSGXLMRobertaForMaskedLM.from_pretrained(tmp_path, **{name: 3})
