"""The examples, at a small size, through their command lines."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from repository import ROOT, TINY
from safetensors.torch import load_file

from lsg_xlmr.cli import main


pytestmark = pytest.mark.ecosystem

SMALL = ("--short_steps", "2", "--long_steps", "4", "--tested", "6", "--per_device_train_batch_size", "1")
FLAGS = ("--report_to", "none", "--use_cpu", "true", "--save_steps", "1", "--learning_rate", "1e-3")
WAYS = ["truncated", "chunks", "sliding windows", "converted", "converted, trained"]


def start(name, folder, *options):
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, options)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def run(*args):
    process = start(*args)
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-3000:]
    return output


@pytest.mark.parametrize("name", ["classification", "tokens", "qa"])
def test_fine_tuning(tmp_path, name):
    options = (*SMALL, *FLAGS, "--output_dir", "out", "--gradient_checkpointing", "true", "--plot", "plot.png")
    output = run(f"finetune_{name}.py", tmp_path, *options)
    shares = dict(re.findall(r"^(.*?) +([\d.]+)% right, [\d.]+ s$", output, re.MULTILINE))
    assert list(shares) == WAYS
    numbers = json.loads((tmp_path / "plot.json").read_text())
    for way, share in shares.items():
        assert 100 * numbers[way]["right"] == pytest.approx(float(share), abs=0.06)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "long" / "done" / "modeling_lsg_xlm_roberta.py").is_file()


def test_summarizer(tmp_path):
    options = ("--short_steps", "6", "--long_steps", "4", "--tested", "2", "--per_device_train_batch_size", "1")
    output = run("summarize.py", tmp_path, *options, *FLAGS, "--logging_steps", "1", "--output_dir", "out")
    assert re.findall(r"^(trained on \w+ texts) +[\d.]+% right, [\d.]+ s$", output, re.MULTILINE) == [
        "trained on short texts",
        "trained on long texts",
    ]
    losses = [float(loss) for loss in re.findall(r"'loss': '?([\d.]+)", output)]
    assert len(losses) == 10 and losses[5] < losses[0] / 2
    config = json.loads((tmp_path / "out" / "long" / "done" / "config.json").read_text())
    assert config["encoder"]["block_size"] == config["decoder"]["block_size"] == 128
    assert config["auto_map"]["AutoModelForSeq2SeqLM"].endswith("LSGEncoderDecoderModel")


def test_killed_and_run_again_gives_the_weights_of_a_run_straight_through(tmp_path):
    options = ("finetune_classification.py", tmp_path, *SMALL, *FLAGS, "--output_dir")
    run(*options, "straight")
    process, deadline = start(*options, "killed"), time.time() + 300
    while not (tmp_path / "killed" / "long" / "checkpoint-2" / "trainer_state.json").exists():
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / "long" / "done").exists()
    run(*options, "killed")
    for stage in ("short", "long"):
        straight, again = (
            load_file(tmp_path / name / stage / "done" / "model.safetensors") for name in ("straight", "killed")
        )
        for name, weight in straight.items():
            torch.testing.assert_close(again[name], weight, atol=1e-5, rtol=0)


def test_picture_of_the_pattern(tmp_path):
    sys.path.insert(0, str(ROOT / "examples"))
    from show_pattern import AVERAGING, KINDS, attention, kinds, load, long_text
    from transformers import AutoTokenizer

    assert main(["--initial_model", str(TINY), "--model_name", str(tmp_path / "m")]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    names = list(KINDS)
    for sparsity_type in ("none", "stride", "pooling"):
        fields = {"block_size": 16, "sparse_block_size": 16, "sparsity_factor": 4, "num_global_tokens": 2}
        model = load(str(tmp_path / "m"), sparsity_type=sparsity_type, **fields)
        found = kinds(attention(model, long_text(tokenizer, 160))[0, 0], model.config)
        for query in range(len(found)):
            for key in range(found.shape[1]):
                q, k = query // 16, (key - 2) // 16
                if key < 2:
                    expected = "global"
                elif abs(q - k) <= 1:
                    expected = "local"
                elif sparsity_type == "none" or abs(q - k) > 5:  # 16 sparse tokens stand for 64, four blocks
                    expected = "not seen"
                elif sparsity_type in AVERAGING:
                    expected = "sparse, in an average"
                else:
                    expected = "sparse" if (key - 2) % 4 == 0 else "not seen"
                assert names[found[query, key]] == expected, (sparsity_type, query, key)
    run("show_pattern.py", tmp_path, "--model", "m", "--output", "pattern.png")
    assert (tmp_path / "pattern.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "name, package",
    [("embed_corpus.py", "ray"), ("search_passages.py", "datasets"), ("show_pattern.py", "matplotlib")],
)
def test_a_missing_package_is_told_with_the_line_that_installs_it(tmp_path, name, package):
    source = str(TINY)
    assert main(["--initial_model", source, "--model_name", str(tmp_path / "m")]) == 0
    script = ROOT / "examples" / name
    hidden = f"import runpy, sys; sys.modules[{package!r}] = None; sys.path.insert(0, {str(script.parent)!r}); "
    command = [sys.executable, "-c", f"{hidden}runpy.run_path({str(script)!r}, run_name='__main__')", "--model", "m"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    line = done.stderr.strip().splitlines()[-1]
    assert line == f"{package} is missing, which this example needs: pip install '.[ecosystem]'"
