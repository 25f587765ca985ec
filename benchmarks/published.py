"""The second environment, of the published LSG code: it needs a transformers of its time."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch


FOLDER = Path(__file__).with_name(".published-venv")
REQUIREMENTS = ("lsg-converter==0.1.9", "transformers==4.38.2", "numpy<2")
# transformers 4.38 has no tokenizers for a newer Python.
PYTHONS = ("python3.12", "python3.11", "python3.10")

VERSIONS = """
import json, platform, torch, transformers
from importlib.metadata import version
from lsg_converter.xlm_roberta.modeling_lsg_xlm_roberta import LSGXLMRobertaModel
names = ("lsg-converter", "torch", "transformers", "numpy")
print(json.dumps({"python": platform.python_version()} | {name: version(name) for name in names}))
"""


def published_environment(python=None):
    """
    The interpreter that has the published code, and its versions. Without `python` an environment is made, once, in
    `FOLDER`, with the torch version of this one.

    Raises:
        subprocess.CalledProcessError: it could not be made, or `python` does not have the code.
    """
    if python:
        return str(python), _versions(python)
    python = FOLDER / "bin" / "python"
    try:
        return str(python), _versions(python)
    except (OSError, subprocess.CalledProcessError):
        print(f"Making the environment of the published code in {FOLDER} ...", file=sys.stderr)
    base = sys.executable if sys.version_info < (3, 13) else next(filter(None, map(shutil.which, PYTHONS)), None)
    if base is None:
        raise FileNotFoundError(f"the published code needs one of {', '.join(PYTHONS)}, or --published-python")
    subprocess.run([base, "-m", "venv", "--clear", FOLDER], check=True)
    install = [python, "-m", "pip", "install", "--quiet"]
    # torch first: the same version as here, so that only the code differs.
    subprocess.run([*install, f"torch=={torch.__version__.split('+')[0]}"], check=True)
    subprocess.run([*install, *REQUIREMENTS], check=True)
    return str(python), _versions(python)


def _versions(python):
    command = [python, "-W", "ignore", "-c", VERSIONS]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
