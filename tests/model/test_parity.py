"""The published code's answers, through the path of a published checkpoint with the two drop-in files beside it."""

import json
import shutil
import sys

import pytest
import torch
import transformers
from flex_on_cpu import use_flex_on_cpu
from repository import DATA, ROOT
from safetensors.torch import load_file


CASES = sorted(path for path in (DATA / "parity").iterdir() if path.is_dir())
AUTO_CLASSES = {
    "LSGXLMRobertaModel": "AutoModel",
    "LSGXLMRobertaForMaskedLM": "AutoModelForMaskedLM",
    "LSGXLMRobertaForMultipleChoice": "AutoModelForMultipleChoice",
    "LSGXLMRobertaForQuestionAnswering": "AutoModelForQuestionAnswering",
    "LSGXLMRobertaForSequenceClassification": "AutoModelForSequenceClassification",
    "LSGXLMRobertaForTokenClassification": "AutoModelForTokenClassification",
}


def load_as_published(case, folder, **kwargs):
    """The case's model by its Auto class, from its own config and weights and our two files."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(case / name, folder)
    for name in ("configuration_lsg.py", "modeling_lsg_xlm_roberta.py"):
        shutil.copy(ROOT / name, folder)
    architecture = json.loads((case / "config.json").read_text())["architectures"][0]
    auto_class = getattr(transformers, AUTO_CLASSES[architecture])
    return auto_class.from_pretrained(folder, trust_remote_code=True, output_loading_info=True, **kwargs)


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_published_answers(case, implementation, tmp_path, monkeypatch):
    folder = tmp_path / case.name
    folder.mkdir()
    model, info = load_as_published(case, folder, attn_implementation=implementation)
    assert type(model).__module__.startswith("transformers_modules")
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    if implementation == "flex_attention":
        use_flex_on_cpu(monkeypatch, sys.modules[type(model).__module__])
    if case.name == "lsh_f4":
        feed_published_projections(model)
    tensors = load_file(case / "case.safetensors")
    inputs = {name[6:]: x for name, x in tensors.items() if name.startswith("input.")}
    with torch.no_grad():
        outputs = model.eval()(**inputs)
    expected = {name[9:]: x for name, x in tensors.items() if name.startswith("expected.")}
    assert expected
    for name, value in expected.items():
        found, mask = outputs[name], inputs.get("attention_mask")
        assert found.shape == value.shape
        if mask is not None and value.shape[:2] == mask.shape:
            found, value = found[mask.bool()], value[mask.bool()]
        torch.testing.assert_close(found, value, rtol=0, atol=1e-5)


def feed_published_projections(model):
    """What the published code drew from torch's global generator after `manual_seed(1008)`, layer by layer."""
    torch.manual_seed(1008)
    for layer in model.encoder.layer:
        projections = [torch.randn(1, 4, 1, 4, size)[0, :, 0] for size in (8, 2)]
        layer.attention.self.lsh_projections = lambda device, projections=projections: projections
