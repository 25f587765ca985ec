"""`Trainer` beyond a run straight through: stopped and resumed, and the best model kept."""

import pytest
import torch
from repository import TINY
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, set_seed

from lsg_xlmr.cli import main


pytestmark = pytest.mark.ecosystem

SOURCE = TINY
TEXTS = ("The Seine flows through France. ", "In Japan, people speak Japanese. ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trainer") / "converted"
    options = ["--architecture", "LSGXLMRobertaForSequenceClassification", "--max_sequence_length", "1024"]
    options += ["--model_kwargs", "{'block_size': 64, 'sparse_block_size': 64}"]
    assert main(["--initial_model", str(SOURCE), "--model_name", str(folder), *options]) == 0
    return folder


@pytest.fixture
def trainer(folder, tmp_path):
    """A function that gives a `Trainer` of the converted classifier on texts of 300 to 700 tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = [{**tokenizer(TEXTS[i % 2] * (40 + 5 * i), truncation=True), "label": i % 2} for i in range(8)]

    def make(name, **fields):
        set_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
        arguments = TrainingArguments(
            str(tmp_path / name), per_device_train_batch_size=2, report_to=[], use_cpu=True, save_steps=2, **fields
        )
        return Trainer(model, arguments, train_dataset=data, eval_dataset=data, processing_class=tokenizer)

    return make


def test_resumed_it_ends_as_straight_through(trainer, tmp_path):
    """Dropout included: the state of the random numbers is in the checkpoint."""
    fields = {"max_steps": 4, "optim": "sgd", "learning_rate": 0.1}  # Adam would magnify rounding
    straight = trainer("straight", **fields)
    straight.train()
    resumed = trainer("resumed", **fields)
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-2"))
    assert resumed.state.global_step == 4
    there = straight.model.state_dict()
    halfway = trainer("halfway").model.from_pretrained(tmp_path / "straight" / "checkpoint-2").state_dict()
    for name, weight in resumed.model.state_dict().items():
        torch.testing.assert_close(weight, there[name], rtol=0, atol=1e-5)
    assert any((there[name] - halfway[name]).abs().max() > 1e-4 for name in there if there[name].is_floating_point())


def test_the_best_model_is_kept(trainer, tmp_path):
    """Here the greatest loss counts as the best, so that it is not the last model that is kept."""
    best = trainer(
        "best",
        max_steps=6,
        eval_strategy="steps",
        eval_steps=2,
        logging_steps=2,
        learning_rate=1e-4,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,
    )
    best.train()
    losses = {row["step"]: row["eval_loss"] for row in best.state.log_history if "eval_loss" in row}
    step = max(losses, key=losses.get)
    assert step < 6
    assert best.state.best_model_checkpoint == str(tmp_path / "best" / f"checkpoint-{step}")
    assert best.evaluate()["eval_loss"] == pytest.approx(losses[step], abs=1e-5)
    kept = AutoModelForSequenceClassification.from_pretrained(
        best.state.best_model_checkpoint, trust_remote_code=True
    ).state_dict()
    for name, weight in best.model.state_dict().items():
        torch.testing.assert_close(weight, kept[name], rtol=0, atol=0)
