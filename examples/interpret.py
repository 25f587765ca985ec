# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
Draws which tokens of a text of 1,000 tokens one masked word rests on: by integrated gradients, and by rollout.

    python examples/interpret.py --model tiny-lsg-4096 --output interpret.png

It needs `captum` and `matplotlib`; `docs/interpret.md` says what is to be known of both.
"""

import argparse
from pathlib import Path

import torch
from extras import ecosystem
from transformers import AutoModelForMaskedLM, AutoTokenizer


QUESTION = "Paris is the <mask> of France. "
LENGTH, NEAR = 1000, 8  # tokens: of the text, and on either side of the masked word in the lower panels
BEFORE, AFTER = "The Seine flows through France. ", "In Japan people speak Japanese. "


def text(tokenizer, length):
    """Token ids `(1, length)`, with the masked word in the middle."""
    before, question, after = (
        tokenizer(part, add_special_tokens=False)["input_ids"] for part in (BEFORE, QUESTION, AFTER)
    )
    room = length - 2 - len(question)
    ids = (before * length)[: room // 2] + question + (after * length)[: room - room // 2]
    return torch.tensor([[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]])


def attributions(model, input_ids, kept, place, word, steps):
    """
    What each token adds to the score of `word` at `place`, `(tokens,)`, and what all together lack. The tokens at the
    places `kept` stand in the baseline as in the text; the others are padding there.
    """
    with ecosystem():
        from captum.attr import LayerIntegratedGradients

    def score(input_ids, mask):
        return model(input_ids, attention_mask=mask).logits[:, place, word]

    baseline = torch.full_like(input_ids, model.config.pad_token_id)
    baseline[:, kept] = input_ids[:, kept]
    values, delta = LayerIntegratedGradients(score, model.roberta.embeddings).attribute(
        input_ids,
        baseline,
        additional_forward_args=(torch.ones_like(input_ids),),
        n_steps=steps,
        internal_batch_size=5,
        return_convergence_delta=True,
    )
    return values.sum(-1)[0].detach(), delta.item()


@torch.no_grad()
def rollout(model, input_ids):
    """What of each token is in each after all layers, `(tokens, tokens)` (Abnar and Zuidema, 2020)."""
    residual = torch.eye(input_ids.shape[1])
    result = residual
    for layer in model(input_ids, output_attentions=True).attentions:
        weights = layer[0].mean(0) + residual
        result = weights / weights.sum(-1, keepdim=True) @ result
    return result


def draw(name, output, steps):
    """Draws the panels for the checkpoint in the folder `name`, writes them to `output`; returns what is lacking."""
    with ecosystem():
        import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForMaskedLM.from_pretrained(name, trust_remote_code=True, sparsity_type="pooling").eval()
    input_ids = text(tokenizer, LENGTH)
    place = int((input_ids[0] == tokenizer.mask_token_id).nonzero())
    with torch.no_grad():
        word = int(model(input_ids).logits[0, place].argmax())
    answer = tokenizer.decode([word]).strip()
    values, delta = attributions(model, input_ids, [0, place, -1], place, word, steps)
    seen = rollout(model, input_ids)[place]
    seen[place] = 0  # most is its own, which would hide the rest
    labels = tokenizer.convert_ids_to_tokens(input_ids[0])
    near = range(place - NEAR, place + NEAR + 1)
    figure, axes = pyplot.subplots(2, 2, figsize=(14, 7), layout="constrained", width_ratios=(1.3, 1))
    titles = f'score of "{answer}", by token', "rollout of the masked word, without its own share"
    for row, rows, title, colour in zip(axes, (values, seen), titles, ("#4c72b0", "#c44e00")):
        row[0].vlines(range(LENGTH), 0, rows, color=colour, linewidth=1)
        row[0].set_yscale("symlog", linthresh=0.01 * float(rows.abs().max()))
        row[0].set(title=title, xlabel=f"token; the masked word is number {place}", xlim=(-5, LENGTH + 5))
        row[1].bar(range(len(near)), rows[near.start : near.stop], color=colour)
        row[1].set_xticks(range(len(near)), [labels[i].replace("▁", "") or "▁" for i in near], rotation=60, ha="right")
        row[1].set_title("around it")
        for axis in row:
            axis.axhline(0, color="grey", linewidth=0.5)
    figure.savefig(output, dpi=100)
    return delta


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of a converted masked language model")
    parser.add_argument("--output", type=Path, default=Path("interpret.png"), help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=50, help="of integrated gradients; default: %(default)s")
    args = parser.parse_args()
    delta = draw(args.model, args.output, args.steps)
    print(f"Wrote {args.output}. The attributions lack {delta:.4f} of the score.")


if __name__ == "__main__":
    main()
