"""What ONNX files answer, held against the model: for batches of every kind, in whatever opens the file."""

import json

import torch
from transformers import AutoTokenizer

from lsg_xlmr.conversion import ARCHITECTURES


MAX_LENGTH = 70
LENGTHS = (1, 2, 7, 8, 9, 15, 16, 17, 23, 24, 25, 31, 64, 69, MAX_LENGTH)  # around the borders of blocks of 8
# Of these every token has its own output; masked tokens' mean nothing.
PER_TOKEN = ("Model", "MaskedLM", "CausalLM", "QuestionAnswering", "TokenClassification")
OUTPUTS = ("last_hidden_state", "logits", "start_logits", "end_logits")  # in the order of a file


def batches(mask_token_id, lengths=LENGTHS):
    """Of each length a text alone, and five of which each is padded another way."""
    generator = torch.Generator().manual_seed(0)
    for length in lengths:
        for batch_size in (1, 5):
            input_ids = torch.randint(5, 60, (batch_size, length), generator=generator)
            attention_mask = torch.ones_like(input_ids)
            attention_mask[1:2, length // 2 + 1 :] = 0
            attention_mask[2:3, : length // 2] = 0
            input_ids[attention_mask == 0] = 1
            attention_mask[3:4, length // 3 : length // 2] = 0
            attention_mask[4:5, 1:] = 0
            input_ids[:, -1] = mask_token_id
            yield {"input_ids": input_ids, "attention_mask": attention_mask}


def assert_answers_of_model(folder, run, lengths=LENGTHS):
    """
    Args:
        folder (`Path`): an LSG checkpoint.
        run: function from a list of batches to the list of what its ONNX file gives for each, arrays in its order.
    """
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    mask_token_id = AutoTokenizer.from_pretrained(folder).mask_token_id or 5
    inputs = list(batches(mask_token_id, lengths))
    if architecture.endswith("MultipleChoice"):
        inputs = [{name: x[:, None].repeat(1, 3, 1) for name, x in batch.items()} for batch in inputs]
    model = ARCHITECTURES[architecture][1].from_pretrained(folder).eval()
    for batch, answers in zip(inputs, run(inputs), strict=True):
        with torch.no_grad():
            outputs = model(**batch)
        expected = [outputs[name] for name in OUTPUTS if name in outputs]
        seen, masks = batch["attention_mask"] != 0, batch["input_ids"] == mask_token_id
        for there, answer in zip(expected, map(torch.from_numpy, answers), strict=True):
            if architecture.endswith("MaskedLM") and answer.ndim == 2:
                there, answer = there[masks & seen], answer[seen[masks]]
            elif architecture.endswith(PER_TOKEN):
                there, answer = there[seen], answer[seen]
            elif not model.config.pools_with_global:  # of padding in the place of `<s>` they mean nothing
                there, answer = there[seen[..., 0]], answer[seen[..., 0]]
            torch.testing.assert_close(answer, there, atol=1e-4, rtol=0)
