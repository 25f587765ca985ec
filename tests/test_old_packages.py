"""Where transformers or torch is too old one line says so, whichever file of the code is imported first."""

import os
import subprocess
import sys

import pytest
from repository import ROOT, TINY

from lsg_xlmr.cli import main


# The version is told, and a module that transformers 4 has not is taken away.
IMPORTED = """
import importlib, sys
import torch, transformers.utils
package, name, version = sys.argv[1:]
if package == "transformers":
    transformers.__version__ = version
    sys.modules["transformers.initialization"] = None
else:
    transformers.utils.get_torch_version = lambda: version
    sys.modules["torch.nn.attention.flex_attention"] = None
importlib.import_module(name)
"""


@pytest.mark.parametrize(
    "package, version, needed, name",
    [
        ("transformers", "4.57.6", "5.0", "lsg_xlmr"),
        pytest.param("transformers", "4.57.6", "5.0", "lsg_xlmr.cli", marks=pytest.mark.slow),
        pytest.param("transformers", "4.57.6", "5.0", "flat.modeling_lsg_xlm_roberta", marks=pytest.mark.slow),
        pytest.param("transformers", "4.9.0", "5.0", "flat.configuration_lsg", marks=pytest.mark.slow),
        pytest.param("torch", "2.5.1+cpu", "2.6", "lsg_xlmr", marks=pytest.mark.slow),
        ("torch", "2.5.1+cpu", "2.6", "flat.modeling_lsg_xlm_roberta"),
    ],
)
def test_one_line(tmp_path, package, version, needed, name):
    (tmp_path / "flat").mkdir()
    for file in ("configuration_lsg.py", "modeling_lsg_xlm_roberta.py"):
        (tmp_path / "flat" / file).symlink_to(ROOT / file)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    command = [sys.executable, "-c", IMPORTED, package, name, version]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    line = done.stderr.strip().splitlines()[-1]
    assert line == (
        f"ImportError: LSG models need {package} {needed} or newer, and this is {version}: pip install -U {package}"
    )


OPENED = """
import sys
from transformers import AutoConfig, AutoModelForMaskedLM
from transformers.dynamic_module_utils import get_class_from_dynamic_module
folder = sys.argv[1]
opened = {
    "config": lambda: AutoConfig.from_pretrained(folder, trust_remote_code=True),
    "model": lambda: AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True),
    "class": lambda: get_class_from_dynamic_module("modeling_lsg_xlm_roberta.LSGXLMRobertaModel", folder),
}
opened[sys.argv[2]]()
"""


@pytest.mark.onnx
@pytest.mark.parametrize("what", ["config", "model", "class"])
@pytest.mark.skipif(
    "SENTENCE_TRANSFORMERS_PYTHON" not in os.environ,
    reason="SENTENCE_TRANSFORMERS_PYTHON names no Python that has transformers 4",
)
def test_transformers_4(tmp_path, what):
    assert main(["--initial_model", str(TINY), "--model_name", str(tmp_path / "m")]) == 0
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [os.environ["SENTENCE_TRANSFORMERS_PYTHON"], "-c", OPENED, tmp_path / "m", what]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("ImportError: LSG models need transformers 5.0 or newer, and this is 4.")
