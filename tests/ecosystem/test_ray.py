"""A function that uses a loaded model, in a worker of Ray's."""

import os
import re
import subprocess
import sys

import pytest
from repository import ROOT
from transformers.utils import HF_MODULES_CACHE

from lsg_xlmr import LSGXLMRobertaModel


pytestmark = pytest.mark.ecosystem

SCRIPT = """
import ray
import torch
from transformers import AutoModel

model = AutoModel.from_pretrained("model", trust_remote_code=True).eval()

@ray.remote
def work(ids):
    with torch.no_grad():
        return model(ids).last_hidden_state.tolist()

{line}
ids = torch.arange(5, 45)[None]
found = torch.tensor(ray.get(work.remote(ids)))
torch.testing.assert_close(found, model(ids).last_hidden_state, rtol=0, atol=1e-5)
"""


def test_the_line_of_the_documentation(tiny_config, tmp_path):
    text = (ROOT / "docs/ecosystem.md").read_text(encoding="utf-8")
    line = re.search(r"^ray\.init\(.*\)$", text, flags=re.MULTILINE)[0]
    LSGXLMRobertaModel(tiny_config()).save_pretrained(tmp_path / "model")
    environment = {**os.environ, "HF_MODULES_CACHE": HF_MODULES_CACHE, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(line=line)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
