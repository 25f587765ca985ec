"""`Trainer` evaluates a masked LM with `sparse_prediction` as it does without: the metrics, predictions and labels."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from repository import TINY
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, Trainer, TrainingArguments

from lsg_xlmr import LSGXLMRobertaForMaskedLM


TOKENIZER = AutoTokenizer.from_pretrained(TINY)


class Collator(DataCollatorForLanguageModeling):
    """The same masks for the same texts."""

    def torch_mask_tokens(self, inputs, *args, **kwargs):
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(int(inputs.sum()))
            return super().torch_mask_tokens(inputs, *args, **kwargs)


def examples():
    """Eleven texts of 20 to 50 tokens: the last batch of three is smaller."""
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(5, 299, (20 + 3 * i,), generator=generator).tolist()} for i in range(11)]


def best_words(logits, labels):
    """What the examples of transformers do, so that words are gathered and not logits."""
    if isinstance(logits, tuple):
        logits = logits[0]
    return logits.argmax(dim=-1)


def accuracy(predictions):
    words, labels = predictions.predictions, predictions.label_ids
    words = words if words.shape == labels.shape else words.argmax(-1)
    words, labels = words.reshape(-1), labels.reshape(-1)
    is_labelled = labels != -100
    return {"accuracy": float((words[is_labelled] == labels[is_labelled]).mean()), "count": int(is_labelled.sum())}


def accuracy_by_batch(predictions, compute_result, parts=[]):
    parts.append((predictions.predictions, predictions.label_ids))
    if compute_result:
        words = numpy.concatenate([words.flatten().numpy() for words, _ in parts])
        labels = numpy.concatenate([labels.flatten().numpy() for _, labels in parts])
        parts.clear()
        return {"accuracy": float((words == labels)[labels != -100].mean())}


def evaluate(make_config, folder, sparse, preprocess=None, compute_metrics=accuracy, **options):
    """The metrics of `evaluate`, and what `predict` gives."""
    torch.manual_seed(0)
    config = make_config(vocab_size=len(TOKENIZER), num_hidden_layers=1, sparse_prediction=sparse)
    model = LSGXLMRobertaForMaskedLM(config)
    trainer = Trainer(
        model,
        TrainingArguments(
            str(folder), per_device_eval_batch_size=3, report_to=[], use_cpu=True, disable_tqdm=True, **options
        ),
        data_collator=Collator(TOKENIZER, mlm_probability=0.3),
        eval_dataset=examples(),
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=preprocess,
    )
    metrics = trainer.evaluate()
    predictions = trainer.predict(examples())
    return (
        {name: value for name, value in metrics.items() if not name.endswith(("second", "runtime", "time"))},
        predictions.predictions,
        predictions.label_ids,
    )


def assert_same(found, expected):
    assert found[0] == pytest.approx(expected[0], abs=1e-5) and "eval_accuracy" in expected[0]
    numpy.testing.assert_allclose(found[1], expected[1], rtol=0, atol=1e-5)
    numpy.testing.assert_array_equal(found[2], expected[2])


OPTIONS = {
    "logits": {},
    "words": {"preprocess": best_words},
    "logits in parts": {"eval_accumulation_steps": 2},
    "words in parts": {"preprocess": best_words, "eval_accumulation_steps": 1},
    "by batch": {"preprocess": best_words, "compute_metrics": accuracy_by_batch, "batch_eval_metrics": True},
    "smoothed labels": {"label_smoothing_factor": 0.1},
    "bfloat16": {"bf16": True, "preprocess": lambda logits, labels: logits.float().topk(3).values},
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("options", OPTIONS)
def test_evaluate_and_predict(tiny_config, tmp_path, options):
    dense, sparse = (evaluate(tiny_config, tmp_path, sparse, **OPTIONS[options]) for sparse in (False, True))
    assert_same(sparse, dense)
    if options == "words":
        assert dense[0]["eval_count"] == (dense[2] != -100).sum()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_words_are_found_some_positions_at_a_time(tiny_config, tmp_path, monkeypatch):
    """Never are the logits of a batch in memory."""
    counts, forward = [], torch.nn.Linear.forward

    def counted(self, features):
        if self.out_features == len(TOKENIZER):
            counts.append(features.shape[:-1].numel())
        return forward(self, features)

    monkeypatch.setattr(torch.nn.Linear, "forward", counted)
    evaluate(tiny_config, tmp_path, True, best_words)
    assert 0 < max(counts) <= 128 < 3 * 44


PROCESS = """
import json, os, sys
import torch
from lsg_xlmr import LSGConfig
sys.path += sys.argv[1:3]
from test_evaluation import IN_PROCESSES, OPTIONS, evaluate
folder, fields = sys.argv[3], json.loads(sys.argv[4])
make_config = lambda **more: LSGConfig(**fields | more)
results = {
    name: [evaluate(make_config, folder, sparse, **OPTIONS[name]) for sparse in (False, True)] for name in IN_PROCESSES
}
if os.environ["RANK"] == "0":
    torch.save(results, folder + "/results.pt")
# a process that ends while the other still talks to it would be aborted by gloo
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""
IN_PROCESSES = ("logits", "words", "words in parts")


@pytest.mark.ecosystem
def test_two_processes(tiny_config, tmp_path):
    """By gloo: batches of another length in each, and the last of one text."""
    script = tmp_path / "evaluate.py"
    script.write_text(PROCESS)
    tests = Path(__file__).parents[1]
    arguments = [str(script), str(tests / "model"), str(tests / "helpers"), str(tmp_path)]
    arguments.append(json.dumps(tiny_config().to_diff_dict()))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *arguments]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for dense, sparse in torch.load(tmp_path / "results.pt", weights_only=False).values():
        assert_same(sparse, dense)
        assert len(sparse[2]) == len(examples())
