"""A batch in parts has the loss, the gradients and the log of the whole batch at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

from lsg_xlmr import (
    LSGXLMRobertaForCausalLM,
    LSGXLMRobertaForMaskedLM,
    LSGXLMRobertaForMultipleChoice,
    LSGXLMRobertaForQuestionAnswering,
    LSGXLMRobertaForSequenceClassification,
    LSGXLMRobertaForTokenClassification,
)


LENGTH = 40


def some(labels):
    """`labels` with most positions, and all of the first row's, set to -100: the parts differ in what they count."""
    labels = torch.where(torch.rand(labels.shape) < 0.3, labels, -100)
    labels[0] = -100
    return labels


HEADS = {
    "masked": (LSGXLMRobertaForMaskedLM, {}, lambda n: {"labels": some(torch.randint(5, 99, (n, LENGTH)))}),
    "masked sparse": (
        LSGXLMRobertaForMaskedLM,
        {"sparse_prediction": True},
        lambda n: {"labels": some(torch.randint(5, 99, (n, LENGTH)))},
    ),
    "causal": (LSGXLMRobertaForCausalLM, {}, lambda n: {"labels": torch.randint(5, 99, (n, LENGTH))}),
    "tokens": (LSGXLMRobertaForTokenClassification, {}, lambda n: {"labels": some(torch.randint(0, 2, (n, LENGTH)))}),
    "classes": (LSGXLMRobertaForSequenceClassification, {}, lambda n: {"labels": torch.arange(n) % 2}),
    "numbers": (LSGXLMRobertaForSequenceClassification, {"num_labels": 1}, lambda n: {"labels": torch.rand(n)}),
    "several numbers": (
        LSGXLMRobertaForSequenceClassification,
        {"problem_type": "regression", "num_labels": 3},
        lambda n: {"labels": torch.rand(n, 3)},
    ),
    "several classes": (
        LSGXLMRobertaForSequenceClassification,
        {"num_labels": 3},
        lambda n: {"labels": (torch.rand(n, 3) > 0.5).float()},
    ),
    "answers": (
        LSGXLMRobertaForQuestionAnswering,
        {},
        lambda n: {"start_positions": torch.arange(n), "end_positions": torch.arange(n) + 3},
    ),
    "choices": (LSGXLMRobertaForMultipleChoice, {}, lambda n: {"labels": torch.arange(n) % 3}),
}
every_head = pytest.mark.parametrize("name", HEADS)


def make(name, tiny_config, n=8):
    """The head's model and `n` examples."""
    torch.manual_seed(0)
    model_class, fields, labels = HEADS[name]
    model = model_class(tiny_config(**fields))
    shape = (n, 3, LENGTH) if model_class is LSGXLMRobertaForMultipleChoice else (n, LENGTH)
    columns = {"input_ids": torch.randint(5, 99, shape), **labels(n)}
    return model, [{key: column[i] for key, column in columns.items()} for i in range(n)]


def train(name, tiny_config, folder, accumulation, processes=1):
    """One step without momentum: the weights move by the gradient. Returns the loss in the log, and the weights."""
    model, examples = make(name, tiny_config)
    arguments = TrainingArguments(
        folder,
        max_steps=1,
        per_device_train_batch_size=len(examples) // accumulation // processes,
        gradient_accumulation_steps=accumulation,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        optim="sgd",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        seed=1,
    )
    trainer = Trainer(model, arguments, train_dataset=examples)
    trainer.train()
    return trainer.state.log_history[0]["loss"], model.state_dict()


@pytest.mark.parametrize("accumulation", [2, pytest.param(4, marks=pytest.mark.slow)])
@every_head
def test_accumulated_steps(name, tiny_config, tmp_path, accumulation):
    whole_loss, whole = train(name, tiny_config, tmp_path / "whole", 1)
    loss, weights = train(name, tiny_config, tmp_path / "parts", accumulation)
    assert loss == pytest.approx(whole_loss, rel=1e-4)  # the log has four digits behind the point
    torch.testing.assert_close(weights, whole, rtol=0, atol=1e-4)


@every_head
def test_without_a_number_of_items_the_loss_is_the_mean(name, tiny_config):
    model, examples = make(name, tiny_config)
    batch = {key: torch.stack([example[key] for example in examples]) for key in examples[0]}
    loss = model.eval()(**batch).loss
    labels = batch.get("labels", batch.get("start_positions"))
    count = (labels[..., 1:] if name == "causal" else labels).ne(-100).sum()
    shared = model(**batch, num_items_in_batch=count).loss
    torch.testing.assert_close(shared, loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(**batch, num_items_in_batch=2 * count).loss, loss / 2, rtol=1e-5, atol=1e-6)
    assert model(**batch, num_items_in_batch=count, return_dict=False)[0] == shared


def test_a_part_without_labels_adds_nothing(tiny_config):
    model, examples = make("masked", tiny_config)
    loss = model(examples[0]["input_ids"][None], labels=examples[0]["labels"][None], num_items_in_batch=5).loss
    loss.backward()
    assert loss == 0 and not any(
        parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None
    )


PROCESS = """
import json, os, sys
import torch
from lsg_xlmr import LSGConfig
sys.path.append(sys.argv[1])
from test_losses import HEADS, train
folder, fields = sys.argv[2], json.loads(sys.argv[3])
results = {name: train(name, lambda **more: LSGConfig(**fields | more), folder + "/run", 2, 2) for name in HEADS}
if os.environ["RANK"] == "0":
    torch.save(results, folder + "/results.pt")
# a process that ends while the other still talks to it would be aborted by gloo
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.mark.ecosystem
def test_two_processes(tiny_config, tmp_path):
    """Two processes of two accumulated parts each, by gloo."""
    script = tmp_path / "train.py"
    script.write_text(PROCESS)
    fields = tiny_config().to_diff_dict()
    arguments = [str(script), str(Path(__file__).parent), str(tmp_path), json.dumps(fields)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *arguments]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = torch.load(tmp_path / "results.pt")
    for name in HEADS:
        whole_loss, whole = train(name, tiny_config, tmp_path / "whole", 1)
        loss, weights = results[name]
        assert loss == pytest.approx(whole_loss, rel=1e-4), name
        torch.testing.assert_close(weights, whole, rtol=0, atol=1e-4)
