"""Captum, bertviz and rollout on a text of 1,000 tokens: the snippets of docs/interpret.md, and its picture."""

import os
import re
import subprocess
import sys

import pytest
import torch
from repository import ROOT, TINY

from lsg_xlmr.cli import main


pytestmark = pytest.mark.ecosystem


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interpret")
    assert main(["--initial_model", str(TINY), "--model_name", str(folder / "tiny-lsg-4096")]) == 0
    return folder


@pytest.fixture(scope="module")
def found(folder):
    """What the snippets leave."""
    before, namespace = os.getcwd(), {}
    os.chdir(folder)
    try:
        page = (ROOT / "docs" / "interpret.md").read_text(encoding="utf-8")
        for snippet in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
            exec(compile(snippet, "interpret.md", "exec"), namespace)
    finally:
        os.chdir(before)
    return namespace


def test_attributions_have_a_row_for_each_token(found):
    by_token, inputs, place = found["by_token"], found["inputs"], found["place"]
    assert len(found["tokens"]) == len(by_token) == 1000
    assert by_token[0] == 0 and by_token[1] != 0  # <s> is the same in the baseline, and no token else
    near = torch.arange(place - 8, place + 9)
    changes = []
    with torch.no_grad():
        total = found["score"](**inputs) - found["score"](found["baseline"], inputs.attention_mask)
        torch.testing.assert_close(by_token.sum().float(), total[0], rtol=0, atol=0.1)
        for i in near:
            mask = inputs.attention_mask.clone()
            mask[0, i] = 0
            changes.append((found["score"](**inputs) - found["score"](inputs.input_ids, mask)).item())
    # What hiding a token changes goes with its attribution, and less with those of its neighbours.
    alike = [
        torch.corrcoef(torch.stack([torch.tensor(changes), by_token[near + i].float()]))[0, 1] for i in (-1, 0, 1)
    ]
    assert alike[1] == max(alike) and alike[1] > 0.5, alike


def test_bertviz_takes_the_attentions(found, folder):
    assert all(layer.shape[2:] == (1000, 1000) for layer in found["attentions"])
    assert found["tokens"][found["place"]] in (folder / "attention.html").read_text(encoding="utf-8")
    assert found["to_globals"].min() > -1e-5 and 0.001 < found["to_globals"].max() < 1


def test_rollout_is_not_shifted(found):
    """By the residual a token has at least 1/2 of itself from each of four layers, and its neighbours have less."""
    rollout = found["rollout"]
    torch.testing.assert_close(rollout.sum(-1), torch.ones(1000), rtol=0, atol=1e-4)
    assert rollout.diagonal().min() > 0.5**4 - 1e-6
    assert rollout.diagonal().mean() > 2 * max(rollout.diagonal(1).mean(), rollout.diagonal(-1).mean())


def test_picture(folder):
    command = [sys.executable, str(ROOT / "examples" / "interpret.py"), "--model", "tiny-lsg-4096", "--steps", "10"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (folder / "interpret.png").read_bytes().startswith(b"\x89PNG")
