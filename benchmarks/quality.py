"""
How well a converted model fills masks in long documents, without training: `python benchmarks/quality.py`.

The held-out sentences of `examples/train_tiny_xlm_roberta.py` stand at random places among other sentences, in
documents of 512 tokens for the stock model and of 512 to 4,096 for the converted one; each has one word masked, and
counts as right when that word comes first. Writes `quality.json` and draws `docs/quality.png`.
"""

import json
import random
import sys
from pathlib import Path

import matplotlib
import torch
from tqdm import tqdm
from transformers import XLMRobertaForMaskedLM

from lsg_xlmr.conversion import LSGConverter


ROOT = Path(__file__).parents[1]
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


def draw(results, path):
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, shares in results["lsg"].items():
        axes.plot(LENGTHS, [100 * shares[str(length)] for length in LENGTHS], marker="o", label=f"LSG, {name}")
    axes.axhline(100 * results["stock"], color="black", linestyle="--", label="source, 512 tokens")
    axes.set_xscale("log", base=2)
    axes.set_xticks(LENGTHS, [f"{length:,}" for length in LENGTHS])
    axes.set(xlabel="tokens in the document", ylabel="masks filled right, %", ylim=(90, 100))
    axes.set_title("Held-out facts among other sentences, converted without training")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main():
    stock = XLMRobertaForMaskedLM.from_pretrained(SOURCE).eval()
    model, tokenizer = LSGConverter().convert_from_pretrained(SOURCE)
    results = {"questions": NUM_QUESTIONS, "stock": share_right(stock, tokenizer, 512), "lsg": {}}
    for sparsity_type in tqdm(SPARSITY_TYPES):
        model.config.sparsity_type = sparsity_type
        results["lsg"][sparsity_type] = {str(length): share_right(model, tokenizer, length) for length in LENGTHS}
    Path(__file__).with_name("quality.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    draw(results, ROOT / "docs" / "quality.png")
    print(f"source, 512 tokens: {results['stock']:.1%}")
    print("| sparsity type | " + " | ".join(f"{length:,}" for length in LENGTHS) + " |")
    print("| --- |" + " ---: |" * len(LENGTHS))
    for name, shares in results["lsg"].items():
        print(f"| {name} | " + " | ".join(f"{share:.1%}" for share in shares.values()) + " |")


if __name__ == "__main__":
    main()
