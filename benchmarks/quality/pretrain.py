"""
A small XLM-RoBERTa, really trained on real text: its vocabulary, and its masked language model.

`pretrain` writes an ordinary checkpoint of about nine million parameters and 512 positions. Stopped, it goes on from
the last of its checkpoints.
"""

import io
import random
import sys
from pathlib import Path

import sentencepiece
import torch
from corpus import load
from training import SEED, fit
from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)


sys.path.append(str(Path(__file__).parents[2] / "examples"))

from train_tiny_xlm_roberta import look_around, masked_loss, save_tokenizer  # noqa: E402


MAX_LENGTH = 512  # tokens, `<s>` and `</s>` included
VOCAB_SIZE = 16_000
TOKENS = 30_000_000  # of the training
BATCH = 16  # sequences of MAX_LENGTH tokens
MASKED = 0.2  # share of the tokens


def train_tokenizer(documents, folder):
    """The SentencePiece vocabulary of `documents`, in XLM-RoBERTa's layout in `folder`; made unless it is there."""
    if (folder / "tokenizer_config.json").exists():
        return AutoTokenizer.from_pretrained(folder)
    folder.mkdir(parents=True, exist_ok=True)
    words = (document.text.split(" ") for document in documents)
    pieces = (" ".join(text[i : i + 50]) for text in words for i in range(0, len(text), 50))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=pieces,
        model_writer=model,
        model_type="unigram",
        vocab_size=VOCAB_SIZE - 2,  # <pad> and <mask> come on top
        character_coverage=0.9998,
        normalization_rule_name="nmt_nfkc",
        input_sentence_size=150_000,
        shuffle_input_sentence=True,
        max_sentence_length=20_000,
        num_threads=2,
        minloglevel=1,
    )
    return save_tokenizer(model.getvalue(), folder)


def sequences(documents, tokenizer, length, seed):
    """Lists of `length` tokens `<s> ... </s>`: the documents of a language one after the other, in random order."""
    rng = random.Random(seed)
    rows = []
    for language in sorted({document.language for document in documents}):
        texts = [document.text for document in documents if document.language == language]
        rng.shuffle(texts)
        stream = []
        for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
            stream += [*ids, tokenizer.eos_token_id]
        size = length - 2
        rows += [
            [tokenizer.bos_token_id, *stream[start : start + size], tokenizer.eos_token_id]
            for start in range(rng.randrange(size), len(stream) - size, size)
        ]
    rng.shuffle(rows)
    return rows


class MaskedTrainer(Trainer):
    """A `Trainer` that scores the vocabulary at the masks alone."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with self.accelerator.autocast():  # which would come with `model(...)` alone
            loss = masked_loss(model, inputs)
        return (loss, {}) if return_outputs else loss


def pretrain(folder):
    """`folder/source`, the checkpoint; made of the corpus in `folder` unless it is there."""
    output, vocabulary = folder / "source", folder / "vocabulary"
    if output.exists():
        return output
    documents = [document for document in load(folder) if not document.is_test]
    tokenizer = train_tokenizer(documents, vocabulary)
    per_epoch = sequences(documents, tokenizer, MAX_LENGTH, SEED)
    epochs = -(-TOKENS // (MAX_LENGTH * len(per_epoch)))
    rows = [row for epoch in range(epochs) for row in sequences(documents, tokenizer, MAX_LENGTH, SEED + epoch)]
    rows = rows[: TOKENS // MAX_LENGTH]
    print(f"{len(per_epoch) * MAX_LENGTH:,} tokens of text, {len(rows) * MAX_LENGTH:,} of training", flush=True)

    torch.manual_seed(SEED)
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=1024,
        hidden_dropout_prob=0.0,  # a text is seen twice
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=MAX_LENGTH + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        initializer_range=0.06,
    )
    model = XLMRobertaForMaskedLM(config)
    look_around(model, num_heads=2)  # of the four: learned from noise, that would take longer than all the rest
    return fit(
        model,
        tokenizer,
        [{"input_ids": row} for row in rows],
        DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKED),
        output,
        MaskedTrainer,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-3,
        weight_decay=0.01,
    )
