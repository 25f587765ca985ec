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


SHARDED = """
import torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from lsg_xlmr import LSGConfig, LSGXLMRobertaForTokenClassification

dist.init_process_group("gloo")
mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
fields = dict(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37)
fields |= dict(max_position_embeddings=130, block_size=8, sparse_block_size=8, num_global_tokens=3)
for only_globals in (False, True):
    torch.manual_seed(0)
    model = LSGXLMRobertaForTokenClassification(LSGConfig(**fields)).eval()
    if only_globals:
        model.train_global_tokens_only()
    ids = torch.randint(5, 99, (2, 45))
    model(ids, labels=ids % 2).loss.backward()
    expected = {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}
    model.zero_grad()
    for module in list(model.modules()):
        if type(module).__name__ in model._no_split_modules:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model(ids, labels=ids % 2).loss.backward()
    for name, weight in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(weight.grad.full_tensor(), expected[name], rtol=0, atol=1e-6)
    assert "roberta.embeddings.global_embeddings.weight" in expected
dist.destroy_process_group()
"""


def test_embeddings_in_a_shard_of_their_own(tmp_path):
    """As accelerate has it where no classes are named: their weights are there while they run, and no longer."""
    (tmp_path / "sharded.py").write_text(SHARDED)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", "sharded.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
