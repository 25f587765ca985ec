"""Training the global tokens alone."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from lsg_xlmr import LSGConfig, LSGXLMRobertaForMaskedLM, LSGXLMRobertaForSequenceClassification, LSGXLMRobertaModel


GLOBALS = "roberta.embeddings.global_embeddings.weight"


def copy_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_only_moved(before, after, count, also=()):
    """Bit for bit: the first `count` global tokens and the parameters `also` names moved, everything else stayed."""
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if name == GLOBALS:
            assert (tensor[:count] != after[name][:count]).any(1).all()
            assert torch.equal(tensor[count:], after[name][count:])
        else:
            assert torch.equal(tensor, after[name]) != name.startswith(tuple(also) or ("nothing",)), name


@pytest.mark.parametrize("also", [(), ("classifier",)])
def test_weight_decay_moves_no_other_row(tiny_config, token_ids, also):
    model = LSGXLMRobertaForSequenceClassification(tiny_config(num_global_tokens=3, num_labels=2)).train()
    before = copy_of(model)
    trained = model.train_global_tokens_only(also=also)
    head = sum(tensor.numel() for name, tensor in before.items() if name.startswith("classifier"))
    assert trained == 3 * 32 + (head if also else 0)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2, weight_decay=0.5
    )
    for _ in range(3):
        model(token_ids(2, 40), labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_only_moved(before, model.state_dict(), 3, also)
    assert sum(state["exp_avg"].numel() for state in optimizer.state.values()) == trained


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer_stops_goes_on_and_saves_the_whole_model(tiny_config, token_ids, tmp_path, checkpointing):
    LSGXLMRobertaForSequenceClassification(tiny_config(num_global_tokens=2, num_labels=2)).save_pretrained(
        tmp_path / "start"
    )
    rows = [{"input_ids": ids, "labels": i % 2} for i, ids in enumerate(token_ids(8, 40))]

    def train(resume=False):
        model = LSGXLMRobertaForSequenceClassification.from_pretrained(tmp_path / "start")
        model.train_global_tokens_only(also=["classifier"])
        arguments = TrainingArguments(
            tmp_path / "trained",
            max_steps=4,
            save_steps=2,
            weight_decay=0.5,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
            per_device_train_batch_size=2,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        )
        trainer = Trainer(model, arguments, train_dataset=rows)
        trainer.train(resume_from_checkpoint=str(tmp_path / "trained" / "checkpoint-2") if resume else None)
        trainer.save_model(tmp_path / "trained" / "last")
        return LSGXLMRobertaForSequenceClassification.from_pretrained(tmp_path / "trained" / "last").state_dict()

    before = LSGXLMRobertaForSequenceClassification.from_pretrained(tmp_path / "start").state_dict()
    straight = train()
    assert_only_moved(before, straight, 2, ["classifier"])
    resumed = train(resume=True)
    assert_only_moved(before, resumed, 2, ["classifier"])
    for name, tensor in straight.items():
        torch.testing.assert_close(resumed[name], tensor, atol=1e-5, rtol=0)
    elsewhere = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "trained" / "last", trust_remote_code=True
    )
    assert elsewhere.state_dict()[GLOBALS].shape == (512, 32)


def test_called_again_it_adds_parts(tiny_config):
    model = LSGXLMRobertaForMaskedLM(tiny_config())
    assert model.train_global_tokens_only() == 32
    assert model.train_global_tokens_only(also=["encoder.layer.1"]) > 32
    assert not model.roberta.encoder.layer[0].output.dense.weight.requires_grad
    assert model.roberta.encoder.layer[1].output.dense.weight.requires_grad


def test_answers_stay(tiny_config, token_ids):
    model = LSGXLMRobertaModel(tiny_config(num_global_tokens=4)).eval()
    ids = token_ids(1, 50)
    before = model(ids).last_hidden_state
    model.train_global_tokens_only()
    torch.testing.assert_close(model(ids).last_hidden_state, before)


def test_wrong_names(tiny_config):
    model = LSGXLMRobertaForMaskedLM(tiny_config())
    with pytest.raises(ValueError, match="No parameter has 'classifier' in its name.*lm_head, roberta"):
        model.train_global_tokens_only(also=["classifier"])
    assert all(parameter.requires_grad for parameter in model.parameters())
    decoder = LSGXLMRobertaForMaskedLM(
        LSGConfig(**{**tiny_config().to_dict(), "is_decoder": True, "dense_decoder": True})
    )
    with pytest.raises(ValueError, match="A stock decoder has no global tokens"):
        decoder.train_global_tokens_only()
