"""Masked-LM loss after a little further training at the full length, of everything and of the global tokens alone."""

from functools import partial

from masked_lm import LENGTH, PER_LANGUAGE, long_documents, measure, summary
from pretrain import MASKED, MaskedTrainer
from training import fit
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, XLMRobertaForMaskedLM

from models import Way, dense, lsg, source_length, stock


STEPS = 500  # each of one document of `LENGTH` tokens
EVERYTHING = {"learning_rate": 1e-4}
GLOBALS = {"learning_rate": 1e-2}  # far more than for all weights: a few vectors that start as a word's


def trainings(source):
    """`[(way, fields)]`: what is trained, read in the same way before and after, and fields of its training."""
    short = source_length(source)
    convert = partial(lsg, XLMRobertaForMaskedLM, source, LENGTH)
    yield Way("LSG norm /2", convert), EVERYTHING
    yield Way("chunks", partial(stock, XLMRobertaForMaskedLM, source), short, short - 2), EVERYTHING
    yield Way("LSG local only", partial(convert, sparsity_type="none")), EVERYTHING
    for count in (1, 16):
        yield Way(f"LSG norm /2, {count} globals alone", partial(_only_globals, source, count)), GLOBALS
    yield Way("dense tiled", partial(dense, XLMRobertaForMaskedLM, source, LENGTH)), EVERYTHING


def _only_globals(source, count):
    model = lsg(XLMRobertaForMaskedLM, source, LENGTH, num_global_tokens=count)
    model.requires_grad_(False)
    model.base_model.embeddings.global_embeddings.requires_grad_(True)
    return model


def run(folder, source, results):
    """Adds every training that `results["further"]` lacks."""
    tokenizer = AutoTokenizer.from_pretrained(source, model_max_length=LENGTH)
    rows = list(long_documents(folder, tokenizer, is_test=True, per_language=PER_LANGUAGE))
    texts = [input_ids for _, input_ids in long_documents(folder, tokenizer, is_test=False)][:STEPS]
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKED)
    for way, fields in trainings(source):
        if way.name in results["further"]:
            continue
        rows_of_texts = [way.windows(input_ids[0]) for input_ids in texts]
        output = folder / f"further-{results.path.stem}" / way.name.replace("/", "")
        model = way.load()
        fit(
            model,
            tokenizer,
            [{"input_ids": row.tolist()} for rows_of_text in rows_of_texts for row in rows_of_text],
            collator,
            output,
            MaskedTrainer,
            per_device_train_batch_size=len(rows_of_texts[0]),
            **fields,
        )
        model = type(model).from_pretrained(output).eval()
        results["further"][way.name] = measure(model, way, rows, tokenizer)
        results.save()
        print(summary(way.name, results["further"][way.name]), flush=True)
