"""Training on two processes, by `accelerate launch`: the losses are those of one process."""

import json
import os
import subprocess
import sys

import pytest
import torch
from repository import DATA, ROOT, TINY
from safetensors.torch import load_file

from lsg_xlmr.cli import main


pytestmark = pytest.mark.ecosystem

SCRIPT = ROOT / "examples" / "continue_pretraining.py"
LAUNCH = ("-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1")
DDP = ("--multi_gpu",)  # so called on CPUs too
FSDP = (
    *("--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"),
    *("--fsdp_transformer_layer_cls_to_wrap", "LSGLayer", "--fsdp_state_dict_type", "FULL_STATE_DICT"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    model = TINY
    assert main(["--initial_model", str(model), "--model_name", str(folder / "model")]) == 0
    sentences = (DATA / "other_sentences.txt").read_text(encoding="utf-8").splitlines()
    (folder / "texts.txt").write_text("\n".join(" ".join(sentences[i:] + sentences[:i]) for i in range(4)))
    return folder


def train(folder, name, launch, batch, *options):
    """The losses of four steps and the weights after them."""
    command = [sys.executable, *launch, str(SCRIPT), "--model", "model", "--texts", "texts.txt", "--length", "1024"]
    command += ["--output_dir", name, "--max_steps", "4", "--per_device_train_batch_size", str(batch)]
    command += ["--logging_steps", "1", "--save_steps", "4", "--report_to", "none", "--use_cpu", "true"]
    command += ["--learning_rate", "1e-3", *options]
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    state = json.loads((folder / name / "checkpoint-4" / "trainer_state.json").read_text())
    losses = [row["loss"] for row in state["log_history"] if "loss" in row]
    return losses, load_file(folder / name / "model.safetensors")


@pytest.fixture(scope="module")
def alone(folder):
    return train(folder, "alone", (), 2)


@pytest.mark.parametrize("way", [DDP, FSDP], ids=["ddp", "fsdp"])
def test_two_processes_train_as_one(folder, alone, way):
    losses, weights = train(folder, f"two{len(way)}", (*LAUNCH, *way), 1)
    assert len(losses) == 4
    assert losses == pytest.approx(alone[0], abs=1e-3)
    assert weights.keys() == alone[1].keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, alone[1][name], atol=5e-3, rtol=0)


def test_accumulated_steps_train_as_one(folder, alone):
    losses, _ = train(folder, "accumulated", (), 1, "--gradient_accumulation_steps", "2")
    assert losses == pytest.approx(alone[0], abs=1e-3)
