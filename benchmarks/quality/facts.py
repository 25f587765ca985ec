"""
How well the tiny checkpoint of `models/`, converted, fills masks in long documents, without training.

The held-out sentences of `examples/train_tiny_xlm_roberta.py` stand at random places among other sentences, in
documents of 512 tokens for the stock model and of 512 to 4,096 for the converted one; each has one word masked, and
counts as right when that word comes first.
"""

import random
import sys
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoTokenizer, XLMRobertaForMaskedLM

from lsg_xlmr.conversion import LSGConverter


ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "examples"))

from train_tiny_xlm_roberta import load_facts, split_sentences, write_sentences  # noqa: E402


SOURCE = ROOT / "models" / "tiny-xlm-roberta"
LENGTHS = (512, 1024, 2048, 4096)  # tokens
SPARSITY_TYPES = ("none", "norm", "pooling", "bos_pooling", "lsh", "stride", "block_stride")
TOKENS_PER_QUESTION = 100
NUM_QUESTIONS = 600
SEED = 0


def documents(tokenizer, length):
    """`NUM_QUESTIONS` held-out questions in documents of `length` tokens: `(input_ids, labels)`, int64, `n length`."""
    rng = random.Random(SEED)
    trained, held_out = split_sentences(write_sentences(load_facts()))
    neighbours = [sentence.text for sentence in trained]
    questions = [rng.choice(sentence.questions) for sentence in held_out]
    rng.shuffle(questions)
    questions = (questions * 2)[:NUM_QUESTIONS]
    per_document = length // TOKENS_PER_QUESTION
    for start in range(0, len(questions), per_document):
        asked = questions[start : start + per_document]
        texts = [(text, None) for text in rng.choices(neighbours, k=length // 7)]
        for question in asked:  # in the first three quarters, so that none is cut off
            texts.insert(rng.randrange(len(texts) * 3 // 4), question)
        ids, labels = [tokenizer.bos_token_id], [-100]
        for text, answer in texts:
            pieces = tokenizer(text, add_special_tokens=False)["input_ids"]
            ids += pieces
            answer_id = -100 if answer is None else tokenizer.convert_tokens_to_ids(f"▁{answer}")
            labels += [answer_id if piece == tokenizer.mask_token_id else -100 for piece in pieces]
        yield (
            torch.tensor([[*ids[: length - 1], tokenizer.eos_token_id]]),
            torch.tensor([[*labels[: length - 1], -100]]),
        )


@torch.no_grad()
def share_right(model, tokenizer, length):
    """Share of the questions, in [0, 1], whose word comes first."""
    right = total = 0
    for input_ids, labels in documents(tokenizer, length):
        asked = labels != -100
        answers = model(input_ids).logits[asked].argmax(-1)
        right += int((answers == labels[asked]).sum())
        total += int(asked.sum())
    return right / total


def run(folder, source, results):
    """Adds every sparsity type that `results["facts"]` lacks; whatever `source` is, of the tiny checkpoint."""
    facts = results["facts"]
    if "source" not in facts:
        stock = XLMRobertaForMaskedLM.from_pretrained(SOURCE).eval()
        tokenizer = AutoTokenizer.from_pretrained(SOURCE)
        facts["source"] = {"512": share_right(stock, tokenizer, 512)}
    model, tokenizer = LSGConverter().convert_from_pretrained(SOURCE)
    for sparsity_type in tqdm([name for name in SPARSITY_TYPES if name not in facts]):
        model.config.sparsity_type = sparsity_type
        facts[sparsity_type] = {str(length): share_right(model, tokenizer, length) for length in LENGTHS}
        results.save()
