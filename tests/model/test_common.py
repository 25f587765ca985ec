"""
transformers' own tests of every model, from the source distribution of the version that is installed, on every LSG
class within and past two blocks. What those tests import beside it, their tests of `generate` and of exporters, are
not in the distribution.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from xml.etree import ElementTree

import pytest
import transformers
from repository import ROOT


pytestmark = pytest.mark.common

NOT_DISTRIBUTED = {"generation/test_utils": "GenerationTesterMixin", "exporters/test_export": "ExportTesterMixin"}


def pip(*arguments):
    result = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"no registry gives transformers' tests: {result.stderr.strip().splitlines()[-1]}")


@pytest.fixture
def suite(tmp_path):
    """A folder with transformers' tests as the package `tests`, and the packages they take."""
    source = f"transformers=={transformers.__version__}"
    pip("download", "--quiet", "--no-deps", "--no-binary=transformers", f"--dest={tmp_path}", source)
    pip("install", "--quiet", "--no-deps", f"--target={tmp_path}", "parameterized")
    with tarfile.open(next(tmp_path.glob("transformers-*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    tests = next(tmp_path.glob("transformers-*/tests")).rename(tmp_path / "tests")
    (tests / "__init__.py").touch()
    for path, name in NOT_DISTRIBUTED.items():
        (tests / path).parent.mkdir()
        (tests / f"{path}.py").write_text(f"class {name}:\n    pass\n")
    shutil.copy(ROOT / "tests" / "helpers" / "common_models.py", tests / "test_lsg.py")
    return tmp_path


def test_common_tests(suite):
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, f"--rootdir={suite}", "--junitxml=results.xml"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(suite))), "HF_HUB_OFFLINE": "1"}
    subprocess.run([*command, "tests/test_lsg.py"], cwd=suite, env=environment, stdout=subprocess.DEVNULL)
    outcomes = {}
    for case in ElementTree.parse(suite / "results.xml").iter("testcase"):
        found = next((kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None), "passed")
        key = case.get("classname").split(".")[-1], case.get("name")
        outcomes.setdefault(key, set()).add(found)  # a test's parts are reported each
    names = {name for _, name in outcomes}
    stock_passes = {name for name in names if outcomes["StockTest", name] <= {"passed"}}
    assert stock_passes
    for kind in ("WithinTwoBlocksTest", "PastTwoBlocksTest"):
        passed = {name for name in names if outcomes[kind, name] <= {"passed"}}
        failed = sorted(name for name in names if outcomes[kind, name] & {"failure", "error"})
        print(f"{kind}: {len(passed)} passed, {len(failed)} failed; stock XLM-RoBERTa: {len(stock_passes)} passed")
        assert not failed
        assert stock_passes <= passed
