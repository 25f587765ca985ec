"""The names of ONNX files by which optimum-onnx and the ONNX backend of sentence-transformers find them."""

import os
import subprocess

import numpy as np
import pytest


pytestmark = pytest.mark.runtimes

# Run by another Python: vectors and a filled mask by float32 and by 8 bits.
OPEN_ELSEWHERE = """
import sys
import numpy as np
from optimum.onnxruntime import ORTModelForFeatureExtraction, ORTModelForMaskedLM
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, pipeline

embedder, masked_lm, out = sys.argv[1:]
texts = ["Paris is the capital of France.", "The Seine flows through France. " * 220]
inputs = AutoTokenizer.from_pretrained(embedder)(texts, padding=True, return_tensors="pt")
weights = inputs["attention_mask"][..., None]
vectors = []
for file in ("model.onnx", "model_quantized.onnx"):
    states = ORTModelForFeatureExtraction.from_pretrained(embedder, file_name=file)(**inputs).last_hidden_state
    vectors.append((states * weights).sum(1) / weights.sum(1))
    model = SentenceTransformer(embedder, backend="onnx", model_kwargs={"file_name": f"onnx/{file}"})
    vectors.append(model.encode(texts))
    model = ORTModelForMaskedLM.from_pretrained(masked_lm, file_name=file)
    fill_mask = pipeline("fill-mask", model, tokenizer=AutoTokenizer.from_pretrained(masked_lm))
    for text in ("Paris is the <mask> of France.", texts[1] + "Paris is the <mask> of France."):
        assert fill_mask(text)[0]["token_str"] == "capital"
np.save(out, np.stack(vectors))
"""


@pytest.mark.skipif(
    "SENTENCE_TRANSFORMERS_PYTHON" not in os.environ,
    reason="SENTENCE_TRANSFORMERS_PYTHON names no Python that has sentence-transformers[onnx]",
)
def test_files_are_found_by_name(site, tmp_path):
    out = tmp_path / "vectors.npy"
    folders = [site / "embedder", site / "all-logits"]
    command = [os.environ["SENTENCE_TRANSFORMERS_PYTHON"], "-c", OPEN_ELSEWHERE, *folders, out]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    exact, same, near, same_near = np.load(out) / np.linalg.norm(np.load(out), axis=-1, keepdims=True)
    np.testing.assert_allclose(same, exact, rtol=0, atol=1e-5)
    np.testing.assert_allclose(same_near, near, rtol=0, atol=1e-5)
    assert not np.array_equal(near, exact) and (near * exact).sum(-1).min() > 0.99
