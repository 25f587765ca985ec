"""
Measures ONNX files where they are served, by what tests/runtimes/install.sh has installed into a folder:

    python benchmarks/runtimes.py ~/runtimes

Each row's time is that of one text on a model of XLM-RoBERTa base's shape with 4 layers and random weights, the
shortest of some rounds in which all rows take turns; its answer is the vector of a text by the tiny checkpoint, the
normalized mean, against PyTorch's. Writes `runtimes.json` beside it and prints the table of docs/deployment.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from machine import describe_machine
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer, XLMRobertaConfig, XLMRobertaModel

from lsg_xlmr.cli import main as convert
from lsg_xlmr.onnx.check import TEXT


ROOT = Path(__file__).parents[1]
SERVING, TINY = ROOT / "benchmarks" / "serving", ROOT / "models" / "tiny-xlm-roberta"
FILES = {"fp32": "onnx/model.onnx", "q8": "onnx/model_quantized.onnx"}  # by transformers.js' names of types
LENGTHS = (512, 4096)
ROUNDS = 2


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runtimes", type=Path, help="the folder that tests/runtimes/install.sh has made")
    runtimes = parser.parse_args().runtimes.resolve()
    with tempfile.TemporaryDirectory() as site:
        site = Path(site)
        make_folders(site)
        (site / "examples").symlink_to(ROOT / "examples")
        (site / "node_modules").symlink_to(runtimes / "newest" / "node_modules")
        texts = [text_of(length, AutoTokenizer.from_pretrained(site / "tiny")) for length in LENGTHS]
        with served(site) as address:
            rows = measure(contenders(runtimes, address), site, texts)
    result = {"machine": describe_machine("cpu", torch.get_num_threads()), "rows": rows}
    (ROOT / "benchmarks" / "runtimes.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(rows))


def make_folders(site):
    """An embedder of base's shape and the tiny one, both with ONNX files."""
    shape = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "num_hidden_layers": 4}
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    torch.manual_seed(0)
    XLMRobertaModel(XLMRobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=514, **shape)).save_pretrained(
        site / "source"
    )
    tokenizer.save_pretrained(site / "source")
    for name, source in (("tiny", TINY), ("base", site / "source")):
        options = ["--architecture", "LSGXLMRobertaModel", "--onnx", "int8"]
        assert convert(["--initial_model", str(source), "--model_name", str(site / name), *options]) == 0


def text_of(length, tokenizer):
    """As many words as `length` tokens hold."""
    words = (TEXT * (length // 64)).split()
    low, high = 1, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        if len(tokenizer(" ".join(words[:middle])).input_ids) <= length:
            low = middle
        else:
            high = middle - 1
    return " ".join(words[:low])


@contextmanager
def served(folder):
    """The address of `folder` behind `python -m http.server`."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", folder]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        port = server.stdout.readline().split(" port ")[1].split()[0]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def measure(contenders, site, texts):
    """The rows of the table, as they go to the file."""
    expected = [vector for vector, _ in by_pytorch(site / "tiny", None, texts, 0)]
    rows = {}
    for name, (ask, types) in contenders.items():
        rows[name] = {}
        for dtype in types:
            vectors = [np.array(vector) for vector, _ in ask(site / "tiny", dtype, texts, 0)]
            rows[name][dtype] = {
                "difference": max(float(abs(here - there).max()) for here, there in zip(vectors, expected)),
                "cosine": min(float(here @ there) for here, there in zip(vectors, expected)),
                "seconds": [],
            }
    for _ in range(ROUNDS):
        for name, (ask, types) in contenders.items():
            for dtype in types:
                answers = ask(site / "base", dtype, texts, 2)
                rows[name][dtype]["seconds"].append([seconds for _, seconds in answers])
    return rows


def contenders(runtimes, address):
    """
    By name and version, a function from a folder, a type, texts and how often to repeat each to its vector and the
    shortest time of the repeats, in seconds; and the types.
    """
    found = {f"PyTorch {torch.__version__.split('+')[0]}": (by_pytorch, ("fp32",))}
    for package, title in (("onnxruntime", "ONNX Runtime"), ("openvino", "OpenVINO"), ("fastembed", "fastembed")):
        for environment in ("oldest", "newest"):
            python = runtimes / environment / "bin" / "python"
            code = f"from importlib.metadata import version; print(version({package!r}))"
            version = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
            ask = by_fastembed(python) if package == "fastembed" else by_python(python, package)
            found[f"{title} {version}"] = ask, tuple(FILES)
    for environment in ("oldest", "newest"):
        node_modules = runtimes / environment / "node_modules"
        version = json.loads((node_modules / "@huggingface/transformers/package.json").read_text())["version"]
        found[f"transformers.js {version}, node"] = by_node(node_modules), tuple(FILES)
    chromium = subprocess.run(["chromium", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    found[f"transformers.js {version}, Chromium {chromium.split('.')[0]}"] = (
        by_browser(node_modules, address),
        tuple(FILES),
    )
    return found


@torch.inference_mode()
def by_pytorch(folder, dtype, texts, repeat):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    for text in texts:
        inputs, seconds = tokenizer(text, return_tensors="pt"), []
        vector = normalize(model(**inputs).last_hidden_state[0].mean(0), dim=0).numpy()
        for _ in range(repeat):
            start = perf_counter()
            model(**inputs)
            seconds.append(perf_counter() - start)
        yield vector, min(seconds, default=None)


def by_python(python, package):
    def ask(folder, dtype, texts, repeat):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        arrays = {
            f"{i}/{name}": array
            for i, text in enumerate(texts)
            for name, array in tokenizer(text, return_tensors="np").items()
            if name != "token_type_ids"
        }
        with tempfile.TemporaryDirectory() as work:
            np.savez(f"{work}/inputs.npz", **arrays)
            files = [folder / FILES[dtype], f"{work}/inputs.npz", f"{work}/outputs.npz"]
            subprocess.run([python, SERVING / "by_python.py", package, *files, str(repeat)], check=True)
            outputs = dict(np.load(f"{work}/outputs.npz"))
        for i in range(len(texts)):
            vector = outputs[f"{i}/0"][0].mean(0)
            yield vector / np.linalg.norm(vector), float(outputs[f"{i}/seconds"])

    return ask


def by_fastembed(python):
    def ask(folder, dtype, texts, repeat):
        dim = json.loads((folder / "config.json").read_text())["hidden_size"]
        question = {"folder": str(folder), "file": FILES[dtype], "dim": dim, "repeat": repeat}
        for text in texts:
            answer = answered([python, SERVING / "by_fastembed.py"], question | {"texts": [text]})
            yield answer["answers"][0], answer["seconds"]

    return ask


def by_node(node_modules):
    def ask(folder, dtype, texts, repeat):
        options = {"pooling": "mean", "normalize": True}
        question = {"folder": str(folder), "task": "feature-extraction", "dtype": dtype, "options": options}
        for text in texts:
            command = ["node", SERVING / "by_node.cjs", node_modules]
            answer = answered(command, question | {"texts": [text], "repeat": repeat})
            yield answer["answers"][0], answer["seconds"]

    return ask


def by_browser(node_modules, address):
    def ask(folder, dtype, texts, repeat):
        url = f"{address}/examples/browser/?model={folder.name}&dtype={dtype}&library=node_modules"
        question = {"url": url, "text": "\n---\n".join(texts), "times": repeat + 1}
        _, *rows = answered(["node", SERVING / "by_browser.cjs", node_modules], question)["rows"]
        for *_, seconds, numbers in rows:
            yield [float(x) for x in numbers.split(", ")], float(seconds)

    return ask


def answered(command, question):
    done = subprocess.run(command, input=json.dumps(question), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def table(rows):
    """The rows as Markdown: seconds at each length, the greatest difference of a vector, the smallest cosine."""
    lengths = " | ".join(f"{length:,} tokens, s" for length in LENGTHS)
    lines = [f"| | {lengths} | difference | 8 bits: {lengths} | cosine |", f"| --- |{' ---: |' * 6}"]
    for name, types in rows.items():
        cells = [name]
        for dtype, row in types.items():
            cells += [f"{min(seconds):.3f}" for seconds in zip(*row["seconds"])]
            cells.append(f"{row['difference']:.0e}" if dtype == "fp32" else f"{row['cosine']:.4f}")
        lines.append(f"| {' | '.join(cells + [''] * (7 - len(cells)))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
