# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
Draws which tokens each token sees, and what attention one word of a long text pays to all others.

    python examples/show_pattern.py --model tiny-lsg-4096 --output pattern.png

The upper panels are taken from the model's own attention weights on a real text, one for each sparsity type, with
small blocks so that every token can be seen: what is local, sparse and global, and what is not seen at all. The lower
one is what the masked word of a text of 3,000 tokens pays, in each layer. It needs `matplotlib`.
"""

import argparse
from pathlib import Path

import torch
from extras import ecosystem
from transformers import AutoModelForMaskedLM, AutoTokenizer


SPARSITY_TYPES = ("none", "norm", "pooling", "bos_pooling", "lsh", "stride", "block_stride")
AVERAGING = ("pooling", "bos_pooling", "lsh")  # a sparse token of these is an average of several
KINDS = {
    "not seen": "white",
    "local": "#4c72b0",
    "sparse": "#c44e00",
    "sparse, in an average": "#f4b183",
    "global": "#55a868",
}
BLOCK_SIZE, SPARSITY_FACTOR = 16, 4
PATTERN_LENGTH, LONG_LENGTH = 160, 3000  # tokens
SENTENCES = "The Seine flows through France. Rome is the capital of Italy. In Japan people speak Japanese. "
QUESTION = "Paris is the <mask> of France. "


def load(name, **fields):
    """The masked LM of the folder `name`, with `fields` of its configuration."""
    model = AutoModelForMaskedLM.from_pretrained(name, trust_remote_code=True, **fields)
    return model.eval()


@torch.no_grad()
def attention(model, input_ids):
    """
    What each token pays to each, `(layers, heads, tokens, globals + tokens)`; globals come first. What the weights of
    a token lack of 1 it pays to the globals, here in equal parts.
    """
    weights = torch.stack(model(input_ids, output_attentions=True).attentions)[:, 0]
    num_global_tokens = model.config.num_global_tokens
    to_globals = (1 - weights.sum(-1, keepdim=True)) / num_global_tokens
    return torch.cat([to_globals.expand(*weights.shape[:-1], num_global_tokens), weights], -1)


def kinds(weights, config):
    """Index in `KINDS` of each pair of query and key, of one head's `weights`, `(queries, keys)`."""
    query, key = torch.arange(len(weights)), torch.arange(weights.shape[1]) - config.num_global_tokens
    blocks = [place.div(config.block_size, rounding_mode="floor") for place in (query, key)]
    is_local, is_global = (blocks[0][:, None] - blocks[1]).abs() <= 1, key < 0
    found = torch.where(is_local, 1, 3 if config.sparsity_type in AVERAGING else 2)
    return found.masked_fill(weights == 0, 0).masked_fill(is_global, 4)


def long_text(tokenizer, length):
    """Token ids, `(1, length)`, with the question in the middle."""
    sentences, question = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (SENTENCES, QUESTION))
    half = (sentences * length)[: (length - len(question)) // 2 - 1]
    ids = [tokenizer.bos_token_id, *half, *question, *half, tokenizer.eos_token_id]
    return torch.tensor([ids])


def draw(name, output):
    """Draws the panels for the checkpoint in the folder `name` and writes them to the file `output`."""
    with ecosystem():
        import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    tokenizer = AutoTokenizer.from_pretrained(name)
    figure = pyplot.figure(figsize=(14, 9), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(2, 1.1))
    axes = upper.subplots(2, 4).flat
    for sparsity_type, axis in zip(SPARSITY_TYPES, axes):
        model = load(
            name,
            sparsity_type=sparsity_type,
            block_size=BLOCK_SIZE,
            sparse_block_size=BLOCK_SIZE,
            sparsity_factor=SPARSITY_FACTOR,
            num_global_tokens=4,
        )
        weights = attention(model, long_text(tokenizer, PATTERN_LENGTH))[0, 0]
        colours = ListedColormap(list(KINDS.values()))
        axis.imshow(kinds(weights, model.config), cmap=colours, vmin=0, vmax=len(KINDS) - 1, interpolation="nearest")
        axis.set(title=sparsity_type, xlabel="key", ylabel="query")
    legend = next(axes)
    legend.axis("off")
    patches = [Patch(facecolor=colour, edgecolor="grey", label=kind) for kind, colour in KINDS.items()]
    legend.legend(handles=patches, loc="center", title=f"blocks of {BLOCK_SIZE}, one head, 4 globals")

    model = load(name)
    input_ids = long_text(tokenizer, LONG_LENGTH)
    place = int((input_ids[0] == tokenizer.mask_token_id).nonzero())
    globals_first = model.config.num_global_tokens
    weights = attention(model, input_ids)[:, :, place].mean(1)  # layers, keys
    axis = lower.subplots()
    for layer, paid in enumerate(weights[:, globals_first:]):
        seen = paid.nonzero()[:, 0]
        axis.plot(seen, paid[seen], ".", markersize=3, label=f"layer {layer + 1}")
    axis.axvline(place, color="grey", linewidth=0.5)
    axis.set_yscale("log")
    axis.set(
        xlabel=f"token; the masked word is number {place:,}",
        ylabel="share of the attention",
        xlim=(0, LONG_LENGTH),
        ylim=(1e-7, 1.5),
    )
    paid = ", ".join(f"{share:.1%}" for share in weights[:, :globals_first].sum(1))
    axis.set_title(
        f"What one masked word pays in a text of {input_ids.shape[1]:,} tokens; to the global token: {paid}"
    )
    axis.legend(markerscale=3, fontsize=8)
    figure.savefig(output, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of a converted masked language model")
    parser.add_argument("--output", type=Path, default=Path("pattern.png"), help="default: %(default)s")
    args = parser.parse_args()
    draw(args.model, args.output)
    print(f"Wrote {args.output}.")


if __name__ == "__main__":
    main()
