"""What the parts with a trained head have in common: passages, their training, and how a head reads a long text."""

import time
from functools import partial

import torch
from passages import passage
from starts import fitted, with_type
from tqdm import tqdm
from training import SEED, fit
from transformers import Trainer, default_data_collator

from lsg_xlmr.conversion import ARCHITECTURES
from models import Way, dense, lsg, source_length, stock


LENGTHS = (512, 1024, 2048, 4096)  # tokens
STEPS = 400  # of the fine-tuning, each of BATCH examples of the source's length
BATCH = 16
FURTHER_STEPS = 40  # of the converted model's, each of FURTHER_BATCH examples of the longest length
FURTHER_BATCH = 4
LSG_FIELDS = {
    "LSG": {},
    "LSG pool_with_global=False": {"pool_with_global": False},
    "LSG local only": {"sparsity_type": "none"},
    "LSG 16 globals": {"num_global_tokens": 16},
}


def fine_tune(model_class, source, output, examples, tokenizer, trainer_class=Trainer, **config):
    """
    Args:
        examples: `(length, count) -> list[dict]`.
        config: fields of the model's configuration.

    Returns:
        the folders of the model trained on short examples, and of the same converted and trained a little on long
        ones.
    """
    torch.manual_seed(SEED)
    settings = (
        (
            lambda: model_class.from_pretrained(source, **config),
            *(output, source_length(source), STEPS, BATCH, 2e-4),
        ),
        (
            lambda: lsg(model_class, output, LENGTHS[-1]),
            *(output.with_name(f"{output.name}-further"), LENGTHS[-1], FURTHER_STEPS, FURTHER_BATCH, 5e-5),
        ),
    )
    return [
        fit(
            *(load(), tokenizer, examples(length, steps * batch), default_data_collator, folder, trainer_class),
            per_device_train_batch_size=batch,
            learning_rate=learning_rate,
        )
        for load, folder, length, steps, batch, learning_rate in settings
    ]


def lsg_ways(model_class, source, further, folder):
    """
    The `Way`s of a head converted, which read all tokens at once: with other settings, with another start of the
    first global token, and trained `further`. `folder` is that of the corpus.
    """
    for name, fields in LSG_FIELDS.items():
        yield Way(name, partial(lsg, model_class, source, LENGTHS[-1], **fields))
    yield Way("LSG start with type", partial(with_type, model_class, source, LENGTHS[-1]))
    yield Way("LSG start fitted", partial(fitted, model_class, source, LENGTHS[-1], folder))
    yield Way("LSG trained further", partial(stock, ARCHITECTURES[f"LSG{model_class.__name__}"][1], further))


def text_ways(model_class, source, further, folder):
    """The `Way`s to give a long text one answer."""
    short = source_length(source)
    original = partial(stock, model_class, source)
    yield Way("truncated", original, short)
    yield Way("chunks averaged", original, short, short - 2)
    yield Way("sliding averaged", original, short, (short - 2) // 2)
    yield Way("dense tiled", partial(dense, model_class, source, LENGTHS[-1]))
    yield from lsg_ways(model_class, source, further, folder)


@torch.no_grad()
def read_texts(model, way, answer, contents, lengths, tokenizer):
    """
    Returns:
        `({length: (n, k)}, {length: seconds})`: what `answer(model, rows)`, `(windows, tokens)` to `(windows, k)`,
        says of the beginning of each of `contents`: the mean of its windows.
    """
    answers, seconds = {}, {}
    edges = tokenizer.bos_token_id, tokenizer.eos_token_id
    for length in tqdm(lengths, desc=way.name, leave=False):
        start = time.perf_counter()
        texts = [passage(ids, 0, length, edges) for ids in contents]
        answers[length] = torch.stack([way.answers(model, answer, text).mean(0) for text in texts])
        seconds[length] = round(time.perf_counter() - start, 2)
    return answers, seconds
