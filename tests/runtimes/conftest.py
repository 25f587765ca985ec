"""What the tests of runtimes share: where these are, and folders of every kind that the command writes."""

import os
from pathlib import Path

import pytest
from repository import ROOT, TINY

from lsg_xlmr import cli


@pytest.fixture(scope="session")
def runtimes():
    """The folder that `install.sh` has made."""
    if "RUNTIMES" not in os.environ:
        pytest.skip("RUNTIMES names no folder that tests/runtimes/install.sh has made")
    return Path(os.environ["RUNTIMES"]).resolve()


@pytest.fixture(scope="session")
def site(runtimes, tmp_path_factory):
    """A folder to be served: checkpoints of each kind with ONNX files, the examples and what npm has installed."""
    folder = tmp_path_factory.mktemp("site")
    for name, *options in (
        ("embedder", "--architecture", "LSGXLMRobertaModel"),
        ("masked-lm",),
        ("all-logits", "--logits", "all"),
    ):
        command = ["--initial_model", str(TINY), "--model_name", str(folder / name), "--onnx", "int8"]
        assert cli.main([*command, *options]) == 0
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "node_modules").symlink_to(runtimes / "newest" / "node_modules")
    return folder
