# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Masked words of long documents: how well they are filled, by position."""

import torch
from torch.nn.functional import cross_entropy

from .head import Head, long_text
from .scores import Score


BUCKET = 512  # tokens
MASKED = 0.15  # share of the tokens


def hide(input_ids, mask_token_id, seed):
    """
    `(masked input_ids, masks)` of documents of one length, `(..., tokens)`: of all but the first and the last token a
    share of `MASKED` is masked, the same for every model; `masks` is bool.
    """
    masks = torch.rand(input_ids.shape, generator=torch.Generator().manual_seed(seed)) < MASKED
    masks[..., 0] = masks[..., -1] = False
    return input_ids.masked_fill(masks, mask_token_id), masks


def fill(model, way, masked, masks):
    """The logits, `(masks, vocab_size)` float32, for what is masked of a document, `(tokens,)`, read in this `way`."""
    head = model.lm_head if hasattr(model, "lm_head") else model.cls  # BERT's
    return head(way.hidden_states(model, masked)[masks]).float()


def by_position(logits, input_ids, masks):
    """
    Of what was filled in a document, `(tokens,)`: the number of masks, the sum of their losses in nats and the number
    filled right (`dict` of lists), in each `BUCKET` of positions.
    """
    labels, bucket = input_ids[masks], masks.nonzero()[:, 0] // BUCKET
    losses = cross_entropy(logits, labels, reduction="none")
    right = (logits.argmax(-1) == labels).float()
    buckets = -(-len(input_ids) // BUCKET)
    return {
        key: torch.zeros(buckets).index_add_(0, bucket, values).tolist()
        for key, values in (("masks", torch.ones_like(losses)), ("loss", losses), ("right", right))
    }


class MaskedWords(Head):
    """Of a masked LM: one token in seven is masked, in every way the same, and filled."""

    kept = "the share of the masks in short texts that get the source's word"

    def __init__(self, subject, documents, labels=None, pairs=None):
        super().__init__(subject, documents, labels, pairs)
        if subject.tokenizer.mask_token_id is None:
            raise ValueError(
                f"The tokenizer of {subject.name!r} has no mask, so no words can be masked: --architecture "
                "XLMRobertaModel evaluates its encoder as an embedder."
            )

    def item(self, document):
        text = long_text(document, self.subject)
        if text:
            masked, masks = hide(text.input_ids, self.subject.tokenizer.mask_token_id, text.seed)
            text.extra = {"masked": masked, "masks": masks}
        return text

    def source_ways(self):
        return self.subject.source_ways("chunks", "sliding")

    def read(self, model, way, text):
        return by_position(fill(model, way, **text.extra), text.input_ids, text.extra["masks"])

    def short(self, model, text, length):
        short = {name: text.beginning(length, values) for name, values in text.extra.items()}
        return fill(model, self.subject.whole, **short).argmax(-1).tolist()

    def scores(self, measured):
        yield Score("loss of masked words, nats", lower_is_better=True, digits=3).fill(
            measured, lambda record: (sum(record["loss"]), sum(record["masks"]))
        )
        yield Score("masked words filled right", percent=True, decides=False).fill(
            measured, lambda record: (sum(record["right"]), sum(record["masks"]))
        )

    def positions(self, measured):
        """The loss in each bucket of positions, over all documents (`dict` of lists), to be drawn."""
        found = {}
        for way, records in measured.items():
            buckets = max(len(record["masks"]) for record in records.values())
            sums = {
                key: torch.tensor([record[key] + [0.0] * (buckets - len(record[key])) for record in records.values()])
                for key in ("loss", "masks")
            }
            found[way] = (sums["loss"].sum(0) / sums["masks"].sum(0)).tolist()
        return found
