# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Tries ONNX files: their answers beside the model's, for texts of several lengths, padded in every way."""

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from ..conversion.answers import compared_words, mask_place, masked_text
from .graph import OUTPUTS, input_names


TEXT = (
    "The river rises in the mountains and flows through three countries to the sea. "
    "La bibliothèque est ouverte tous les jours, sauf le dimanche. "
    "Der Zug nach Norden fährt heute zehn Minuten später ab. "
    "La receta necesita dos huevos, un poco de sal y mucha paciencia. "
    "Завтра утром мы поедем в город на рынок. "
    "我们昨天在公园里看见了一只白色的鸟。 "
)
CHOOSING_TYPES = ("norm", "lsh")
# Of these every token has its own output; masked tokens' mean nothing.
PER_TOKEN = (
    "LSGXLMRobertaModel",
    "LSGXLMRobertaForCausalLM",
    "LSGXLMRobertaForQuestionAnswering",
    "LSGXLMRobertaForTokenClassification",
)


@torch.inference_mode()
def check_onnx_fill_mask(folder, file):
    """
    Fills a mask by the masked LM in `folder` and by one of its ONNX files, named `file`.

    Returns:
        `tuple[str, bool]`: see [`compared_words`].
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = masked_text(tokenizer)
    inputs = tokenizer(text, return_tensors="pt")
    model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
    here = model(**inputs).logits[0, mask_place(tokenizer, inputs.input_ids[0])]
    session = onnxruntime.InferenceSession(Path(folder, "onnx", file), providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    there = torch.from_numpy(session.run(None, {name: inputs[name].numpy() for name in names})[0])
    there = there[0] if there.ndim == 2 else there[0, mask_place(tokenizer, inputs.input_ids[0])]
    return compared_words(tokenizer, text, here.softmax(-1), there.softmax(-1), ("by PyTorch", f"by {file}"))


class Trials:
    """
    A model's answers to some texts, to be held against those of files.

    Args:
        model: an LSG model in eval mode and float32.
        tokenizer: its tokenizer.
        mask_token_id (`int`): of the mask; where there is none any word's, where a masked LM is asked all the same.
    """

    def __init__(self, model, tokenizer, mask_token_id):
        self.architecture = type(model).__name__
        self.pools_with_global = model.config.pools_with_global
        self.share = 0.9 if model.config.sparsity_type in CHOOSING_TYPES else 1.0
        self.mask_token_id = mask_token_id
        self.inputs = list(self._inputs(model.config, tokenizer))
        self.answers = [self._answers(model, inputs) for inputs in self.inputs]

    def difference(self, path):
        """
        Args:
            path (`Path`): of an ONNX file.

        Returns:
            `float`: the greatest difference of an answer, as a part of the greatest answer to that text, or as it is
            where that is below 1. Where sparse tokens are chosen by their content, two may be equal but for the last
            digit, and another be chosen than by PyTorch: then the greatest but a tenth of a text's.
        """
        return max(self._difference(here, there) for here, there in self._pairs(path))

    def cosine(self, path):
        """
        Args:
            path (`Path`): of an ONNX file.

        Returns:
            `float`: the mean cosine of its answers (a vector each) and the model's.
        """
        cosines = [
            (here * there).sum(-1) / np.linalg.norm(here, axis=-1) / np.linalg.norm(there, axis=-1)
            for here, there in self._pairs(path, np.float64)
        ]
        return float(np.mean(np.concatenate([np.atleast_1d(of_text) for of_text in cosines], None)))

    def _difference(self, here, there):
        differences = np.abs(here - there).ravel()
        kept = int(self.share * (len(differences) - 1))
        return float(np.partition(differences, kept)[kept] / max(1, np.abs(there).max()))

    def _pairs(self, path, dtype=np.float32):
        options = onnxruntime.SessionOptions()
        options.enable_cpu_mem_arena = False  # which would keep all logits of 4,096 tokens twice
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for inputs, answers in zip(self.inputs, self.answers):
            outputs = session.run(None, {name: x.numpy() for name, x in inputs.items()})
            for output, answer in zip(outputs, answers):
                yield self._meant(output, inputs).astype(dtype), answer.astype(dtype)

    def _inputs(self, config, tokenizer):
        block_size, maximum = config.block_size, config.max_sequence_length
        words = torch.tensor(tokenizer(TEXT, add_special_tokens=False, verbose=False)["input_ids"])
        words = words.repeat(-(-maximum // len(words)))
        words[::40] = self.mask_token_id
        shapes = [(1, 1), (2, block_size // 2 + 1), (2, 2 * block_size), (4, 2 * block_size + 1)]
        for batch_size, length in [*shapes, (4, 5 * block_size + 3), (1, maximum)]:
            if length > maximum:
                continue
            input_ids = words[:length].repeat(batch_size, 1)
            attention_mask = torch.ones_like(input_ids)
            attention_mask[1:2, length - length // 3 :] = 0
            attention_mask[2:3, : length // 3] = 0
            input_ids[attention_mask == 0] = config.pad_token_id
            hole = slice(length // 2, length // 2 + block_size // 2)
            input_ids[3:4, hole], attention_mask[3:4, hole] = words[1], 0
            inputs = input_ids, attention_mask, torch.zeros_like(input_ids)
            inputs[2][:, length // 2 :] = 1
            if self.architecture == "LSGXLMRobertaForMultipleChoice":
                inputs = [x[:, None].repeat(1, 2, 1) for x in inputs]
            yield dict(zip(input_names(config, tokenizer), inputs))

    @torch.no_grad()
    def _answers(self, model, inputs):
        if self.architecture == "LSGXLMRobertaForMaskedLM":
            features = model.roberta(**inputs).last_hidden_state
            return [model.lm_head(features[inputs["input_ids"] == self.mask_token_id]).numpy()]
        outputs = model(**inputs)
        return [self._meant(outputs[name].numpy(), inputs) for name in OUTPUTS[self.architecture]]

    def _meant(self, output, inputs):
        if self.architecture == "LSGXLMRobertaForMaskedLM":  # of all tokens or of the masks
            return output[inputs["input_ids"].numpy() == self.mask_token_id] if output.ndim == 3 else output
        seen = inputs["attention_mask"].numpy() != 0
        if self.architecture in PER_TOKEN:
            return output[seen]
        return output if self.pools_with_global else output[seen[..., 0]]  # padding for `<s>` means nothing
