"""
What each form of a model costs in quality and memory: `python benchmarks/precision.py`.

The tiny checkpoint converted to 4,096 tokens answers the questions of quality/facts.py in each form. Writes
`precision.json` and prints it as a table.
"""

import json
import tempfile
from pathlib import Path

import torch
from forms import FORMS, in_form
from quality.facts import SOURCE, documents
from torch.nn.functional import cosine_similarity
from tqdm import tqdm
from transformers import AutoTokenizer

from lsg_xlmr import LSGXLMRobertaForMaskedLM, export_onnx
from lsg_xlmr.cli import main as convert


LENGTH = 4096  # tokens
ONNX_FORMS = {"ONNX": "model.onnx", "ONNX, 8 bits": "model_quantized.onnx"}


def masks_of(tokenizer):
    """`(input_ids, mask_index, labels)` of every document."""
    for input_ids, labels in documents(tokenizer, LENGTH):
        masks = (input_ids[0] == tokenizer.mask_token_id).nonzero()[:, 0]
        yield input_ids, masks, labels[0, masks]


def torch_form(folder, form):
    """`(input_ids, masks) -> logits` of a form of forms.py, and MB of its weights."""
    model = in_form(LSGXLMRobertaForMaskedLM.from_pretrained(folder).eval(), form)
    return lambda input_ids, masks: model(input_ids).logits[0, masks].float(), _megabytes(model)


def onnx_form(folder, name):
    """The same of an ONNX file."""
    import onnxruntime

    path = folder / "onnx" / ONNX_FORMS[name]
    session = onnxruntime.InferenceSession(path)

    def logits(input_ids, masks):
        inputs = {"input_ids": input_ids.numpy(), "attention_mask": torch.ones_like(input_ids).numpy()}
        return torch.from_numpy(session.run(None, inputs)[0])

    return logits, path.stat().st_size / 1e6


def _megabytes(model):
    with tempfile.TemporaryFile() as file:
        torch.save(model.state_dict(), file)
        return file.tell() / 1e6


@torch.no_grad()
def measure(folder, tokenizer):
    """`{form: {"megabytes", "cosine", "same_word", "right"}}`: logits against float32's, shares of masks."""
    results, reference = {}, None
    for form in tqdm([*FORMS, *ONNX_FORMS]):
        answer, megabytes = (torch_form if form in FORMS else onnx_form)(folder, form)
        questions = list(masks_of(tokenizer))
        logits = torch.cat([answer(input_ids, masks) for input_ids, masks, _ in questions])
        labels = torch.cat([labels for _, _, labels in questions])
        reference = logits if reference is None else reference
        results[form] = {
            "megabytes": round(megabytes, 2),
            "cosine": cosine_similarity(logits, reference).mean().item(),
            "same_word": (logits.argmax(-1) == reference.argmax(-1)).float().mean().item(),
            "right": (logits.argmax(-1) == labels).float().mean().item(),
        }
    return results


def main():
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder, "lsg")
        if convert(["--initial_model", str(SOURCE), "--model_name", str(folder)]):
            raise SystemExit("the conversion failed")
        export_onnx(folder, int8=True)
        results = measure(folder, AutoTokenizer.from_pretrained(folder))
    Path(__file__).with_name("precision.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print("| form | MB | cosine | same word | right |\n| --- |" + " ---: |" * 4)
    for form, result in results.items():
        shares = f"{result['same_word']:.1%} | {result['right']:.1%}"
        print(f"| {form} | {result['megabytes']:.2f} | {result['cosine']:.5f} | {shares} |")


if __name__ == "__main__":
    main()
