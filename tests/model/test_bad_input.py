"""What a model says to inputs it cannot take: one message that names the value, the rule and the way out."""

import pytest
import torch

from lsg_xlmr import (
    LSGEncoderDecoderModel,
    LSGXLMRobertaForCausalLM,
    LSGXLMRobertaForMaskedLM,
    LSGXLMRobertaForMultipleChoice,
    LSGXLMRobertaForQuestionAnswering,
    LSGXLMRobertaForSequenceClassification,
    LSGXLMRobertaForTokenClassification,
    LSGXLMRobertaModel,
)


IDS = torch.arange(20, 68).view(2, 24)


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
        (
            {"input_ids": IDS[0]},
            r"`input_ids` must be .*\(batch_size, sequence_length\), got torch.int64 of shape \(24,",
        ),
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
        ({"input_ids": IDS.to(torch.int8)}, "`input_ids` must be whole numbers .int64 or int32.* got torch.int8"),
        ({"input_ids": IDS.to(torch.uint8)}, "`input_ids` must be .* got torch.uint8"),
        ({"input_ids": IDS.to(torch.int16)}, "`input_ids` must be .* got torch.int16"),
        ({"input_ids": IDS.to(torch.complex64)}, "`input_ids` must be .* got torch.complex64"),
        ({"input_ids": IDS, "position_ids": IDS[:, :20]}, r"`position_ids` has shape \(2, 20\), .* \(2, 24\)"),
        ({"input_ids": IDS, "position_ids": IDS.repeat(2, 1)}, r"`position_ids` has shape \(4, 24\)"),
        ({"input_ids": IDS, "position_ids": IDS[0]}, r"`position_ids` must be .* of shape \(24,\)"),
        ({"input_ids": IDS, "token_type_ids": IDS[:, :20] * 0}, r"`token_type_ids` has shape \(2, 20\)"),
        ({"input_ids": IDS, "attention_mask": torch.ones(24)}, r"`attention_mask` has shape \(24,\)"),
        ({"input_ids": IDS, "attention_mask": torch.ones(1, 24)}, r"`attention_mask` has shape \(1, 24\)"),
        ({"input_ids": IDS, "attention_mask": torch.full((2, 24), -1e4)}, "`attention_mask` holds -10000.0"),
        ({"input_ids": IDS, "attention_mask": torch.full((2, 24), torch.nan)}, "`attention_mask` holds nan"),
        ({"inputs_embeds": torch.zeros(2, 24)}, r"`inputs_embeds` must be of shape .*32\), got \(2, 24\)"),
        ({"inputs_embeds": torch.zeros(2, 24, 31)}, r"`inputs_embeds` must be of shape .*32\), got \(2, 24, 31\)"),
        ({"inputs_embeds": torch.zeros(2, 24, 32).long()}, "`inputs_embeds` must be of a floating dtype"),
        ({"inputs_embeds": torch.zeros(2, 0, 32)}, "2 texts of 0 tokens"),
        ({"inputs_embeds": torch.zeros(2, 144, 32)}, "has 144 tokens, but the model has positions for 128"),
        ({"input_ids": IDS.to("meta")}, "`input_ids` is on the device meta, and the model on cpu"),
        ({"input_ids": IDS, "position_ids": IDS.to("meta")}, "`position_ids` is on the device meta"),
        ({"input_ids": IDS, "token_type_ids": IDS.to("meta")}, "`token_type_ids` is on the device meta"),
        ({"inputs_embeds": torch.zeros(2, 24, 32).double()}, "is of torch.float64, and the model's weights of .*32"),
        ({"input_ids": IDS.to_sparse()}, "`input_ids` must be an ordinary tensor, not a sparse or nested one"),
        ({"input_ids": IDS, "attention_mask": IDS.to_sparse()}, "`attention_mask` must be an ordinary tensor"),
        ({"input_ids": torch.nested.as_nested_tensor([IDS[0], IDS[1, :9]])}, "must be an ordinary tensor"),
        (
            {"input_ids": IDS, "attention_mask": -10000 * (IDS > 9)},
            "`attention_mask` holds -10000, where LSG",
        ),
        ({"input_ids": IDS, "attention_mask": 1 + (IDS > 9)}, "`attention_mask` holds 2, .*`num_global_tokens`"),
        ({"input_ids": IDS, "attention_mask": torch.full((2, 24), 2.0)}, "`attention_mask` holds 2.0, where LSG"),
        ({"input_ids": IDS, "attention_mask": torch.full((2, 24), 3, dtype=torch.uint8)}, "`attention_mask` holds 3"),
        ({"input_ids": IDS, "attention_mask": torch.full((2, 24), 2, dtype=torch.half)}, "holds 2.0, where LSG"),
        ({"input_ids": IDS.repeat(1, 6), "position_ids": IDS[:0]}, "has 144 tokens, but the model"),
        ({"input_ids": IDS.repeat(1, 6), "position_ids": [[3]]}, "has 144 tokens, but the model"),
    ],
)
def test_inputs(model, inputs, words):
    with pytest.raises(ValueError, match=words):
        model(**inputs)


HEADS = [
    LSGXLMRobertaModel,
    LSGXLMRobertaForCausalLM,
    LSGXLMRobertaForMaskedLM,
    LSGXLMRobertaForMultipleChoice,
    LSGXLMRobertaForQuestionAnswering,
    LSGXLMRobertaForSequenceClassification,
    LSGXLMRobertaForTokenClassification,
]


@pytest.mark.parametrize("name, words", [("global_attention_mask", "`num_global_tokens`"), ("head_mask", "weight")])
@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__.removeprefix("LSGXLMRoberta"))
def test_arguments_of_other_models(tiny_config, head, name, words):
    model = head(tiny_config()).eval()
    ids = IDS[None] if head is LSGXLMRobertaForMultipleChoice else IDS
    with pytest.raises(TypeError, match=f"no `{name}`: .*{words}"):
        model(ids, **{name: torch.ones_like(ids)})
    model(ids, **{name: None})


@pytest.mark.parametrize("name", ["global_attention_mask", "head_mask"])
def test_generation_with_arguments_of_other_models(tiny_config, name):
    model = LSGXLMRobertaForCausalLM(tiny_config(is_decoder=True)).eval()
    with pytest.raises(TypeError, match=f"no `{name}`"):
        model.generate(IDS, max_new_tokens=2, **{name: torch.ones_like(IDS)})


def test_an_encoder_with_arguments_of_other_models(tiny_config):
    """LED's habit, of a text that is read by one model and written by another."""
    model = LSGEncoderDecoderModel(
        encoder=LSGXLMRobertaModel(tiny_config(), add_pooling_layer=False),
        decoder=LSGXLMRobertaForCausalLM(tiny_config(is_decoder=True, add_cross_attention=True)),
    )
    with pytest.raises(TypeError, match="no `global_attention_mask`"):
        model(IDS, decoder_input_ids=IDS, global_attention_mask=torch.ones_like(IDS))
    with pytest.raises(TypeError, match="no `head_mask`"):
        model(IDS, decoder_input_ids=IDS, decoder_head_mask=torch.ones(2, 4))


def test_what_else_a_tokenizer_gives_changes_nothing(model):
    others = {"special_tokens_mask": IDS * 0, "length": torch.tensor([24, 24]), "offset_mapping": IDS[..., None]}
    others["overflow_to_sample_mapping"] = torch.tensor([0, 1])
    with torch.no_grad():
        found = model(IDS, **others).last_hidden_state
        torch.testing.assert_close(found, model(IDS).last_hidden_state, rtol=0, atol=1e-5)


def test_a_prompt_of_embeddings_is_part_of_what_is_too_long(model):
    with pytest.raises(ValueError, match="has 144 tokens, .* 128 .*prompt tuning"):
        model(inputs_embeds=torch.zeros(2, 144, 32))


@pytest.mark.parametrize("name", ["input_ids", "position_ids", "token_type_ids", "attention_mask", "inputs_embeds"])
@pytest.mark.parametrize("value", [[[5, 6, 7]], 7, "text"], ids=["list", "int", "str"])
def test_no_tensors(model, name, value):
    inputs = {name: value} if name in ("input_ids", "inputs_embeds") else {"input_ids": IDS, name: value}
    with pytest.raises(TypeError, match=f"`{name}` must be a torch.Tensor, got {type(value).__name__}"):
        model(**inputs)


HEADS = {
    "masked": LSGXLMRobertaForMaskedLM,
    "causal": LSGXLMRobertaForCausalLM,
    "text": LSGXLMRobertaForSequenceClassification,
    "token": LSGXLMRobertaForTokenClassification,
    "answer": LSGXLMRobertaForQuestionAnswering,
    "choice": LSGXLMRobertaForMultipleChoice,
}
ONE = torch.tensor([1, 1])
SPARSE, SEVERAL = {"sparse_prediction": True}, {"problem_type": "multi_label_classification"}


@pytest.mark.parametrize(
    "head, fields, labels, words",
    [
        ("masked", {}, {"labels": IDS[:, :20]}, r"`labels` must be of shape \(2, 24\), got \(2, 20\)"),
        ("masked", {}, {"labels": IDS[0]}, r"`labels` must be of shape \(2, 24\), got \(24,\)"),
        ("masked", {}, {"labels": IDS.T}, r"`labels` must be of shape \(2, 24\), got \(24, 2\)"),
        ("masked", {}, {"labels": IDS.flatten()}, r"`labels` must be of shape \(2, 24\), got \(48,\)"),
        ("masked", SPARSE, {"labels": IDS.T}, r"`labels` must be of shape \(2, 24\)"),
        ("masked", {}, {"labels": IDS + 90}, r"`labels` holds 1\d\d, and must be from 0 to 98, or -100"),
        ("masked", {}, {"labels": IDS - 99}, "`labels` holds -.*from 0 to 98"),
        ("masked", {}, {"labels": IDS.float()}, "`labels` must be int64, got torch.float32"),
        ("masked", {}, {"labels": IDS.tolist()}, "`labels` must be a torch.Tensor, got list"),
        ("masked", SPARSE, {"labels": IDS[:, :20]}, r"`labels` must be of shape \(2, 24\)"),
        ("masked", SPARSE, {"labels": IDS + 90}, "`labels` holds 1.*from 0 to 98"),
        ("causal", {}, {"labels": IDS[:, :20]}, r"`labels` must be of shape \(2, 24\)"),
        ("causal", {}, {"labels": IDS.view(4, 12)}, r"`labels` must be of shape \(2, 24\), got \(4, 12\)"),
        ("causal", {}, {"labels": IDS + 90}, "`labels` holds 1.*from 0 to 98"),
        ("causal", {}, {"labels": IDS.float()}, "`labels` must be int64"),
        ("text", {}, {"labels": ONE + 1}, "`labels` holds 2, and must be from 0 to 1"),
        ("text", {}, {"labels": -ONE}, "`labels` holds -1, and must be from 0 to 1"),
        ("text", {}, {"labels": ONE[:1]}, r"`labels` must be of shape \(2,\), got \(1,\)"),
        ("text", {}, {"labels": IDS}, r"`labels` must be of shape \(2,\), got \(2, 24\)"),
        ("text", {}, {"labels": torch.zeros(2, 3)}, r"`labels` must be of shape \(2, 2\), got \(2, 3\)"),
        ("text", SEVERAL, {"labels": torch.zeros(2, 2).long()}, "must be floats, .* got torch.int64"),
        ("text", SEVERAL, {"labels": torch.zeros(2, 3)}, r"`labels` must be of shape \(2, 2\)"),
        ("text", {"num_labels": 1}, {"labels": torch.zeros(2, 3)}, r"`labels` must be of shape \(2,\)"),
        ("token", {}, {"labels": IDS}, "`labels` holds .*from 0 to 1"),
        ("token", {}, {"labels": IDS.T % 2}, r"`labels` must be of shape \(2, 24\), got \(24, 2\)"),
        ("token", {}, {"labels": IDS[:, :20] % 2}, r"`labels` must be of shape \(2, 24\)"),
        ("token", {}, {"labels": (IDS % 2).bool()}, "`labels` must be int64, got torch.bool"),
        ("answer", {}, {"start_positions": ONE}, "`start_positions` and `end_positions` must be given both"),
        ("answer", {}, {"end_positions": ONE}, "`start_positions` and `end_positions` must be given both"),
        ("answer", {}, {"start_positions": ONE, "end_positions": ONE.float()}, "`end_positions` must be int64"),
        ("answer", {}, {"start_positions": ONE[:1], "end_positions": ONE}, r"`start_positions` must be of shape \(2,"),
        ("choice", {}, {"labels": ONE + 2}, "`labels` holds 3, and must be from 0 to 2"),
        ("choice", {}, {"labels": ONE[:1]}, r"`labels` must be of shape \(2,\), got \(1,\)"),
    ],
)
def test_labels(tiny_config, head, fields, labels, words):
    model = HEADS[head](tiny_config(is_decoder=head == "causal", **fields))
    with pytest.raises(ValueError, match=words):
        model(IDS[:, None].expand(2, 3, 24) if head == "choice" else IDS, **labels)


def test_labels_by_their_place(tiny_config):
    model = HEADS["text"](tiny_config())
    with pytest.raises(ValueError, match="`labels` holds 2, and must be from 0 to 1"):
        model(IDS, None, None, None, None, ONE + 1)


def test_a_kind_of_problem_that_there_is_not(tiny_config):
    """transformers 5.0 says so when the configuration is made."""
    with pytest.raises(ValueError, match="problem_type` (is .regresion., and must be|was not .* received regresion)"):
        HEADS["text"](tiny_config(problem_type="regresion"))(IDS, labels=ONE)


def test_one_text_where_choices_are_asked_for(tiny_config):
    model = HEADS["choice"](tiny_config())
    with pytest.raises(
        ValueError, match=r"must be of shape \(batch_size, num_choices, sequence_length\), got \(2, 24"
    ):
        model(IDS, labels=ONE)


def test_labels_that_are_a_part_of_a_larger_tensor(tiny_config):
    model = HEADS["masked"](tiny_config()).eval()
    larger = torch.randint(5, 99, (2, 40))
    found, expected = (model(IDS, labels=labels).loss for labels in (larger[:, :24], larger[:, :24].clone()))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "fields, states, words",
    [
        ({}, torch.zeros(2, 3, 32), "need cross-attention: load with add_cross_attention=True"),
        ({"add_cross_attention": True}, torch.zeros(2, 3, 31), r"must be of shape \(2, length, 32\), got \(2, 3, 31"),
        ({"add_cross_attention": True}, torch.zeros(3, 3, 32), r"must be of shape \(2, length, 32\), got \(3, 3, 32"),
        ({"add_cross_attention": True}, torch.zeros(2, 32), r"must be of shape \(2, length, 32\), got \(2, 32"),
    ],
)
def test_states_of_an_encoder(tiny_config, fields, states, words):
    model = HEADS["causal"](tiny_config(is_decoder=True, **fields))
    with pytest.raises(ValueError, match=f"`encoder_hidden_states` {words}"):
        model(IDS, encoder_hidden_states=states)


def test_a_model_without_weights(model):
    with pytest.raises(ValueError, match="`input_ids` is on the device cpu, and the model on meta"):
        model.to("meta")(IDS)


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


def test_a_field_beside_a_configuration(tiny_config, tmp_path):
    """As another library gives it that has made the configuration itself."""
    model = LSGXLMRobertaModel(tiny_config())
    model.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="^'sparsity_type' is a field of LSGConfig, .* into `config_kwargs`, not"):
        LSGXLMRobertaModel.from_pretrained(tmp_path, config=model.config, sparsity_type="pooling")
