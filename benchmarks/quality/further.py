"""Masked-LM loss after a little further training at the full length, of everything and of the global tokens alone."""

from functools import partial

from masked_lm import LENGTH, PER_LANGUAGE, long_documents, measure, summary
from pretrain import MASKED, MaskedTrainer
from training import fit
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, XLMRobertaForMaskedLM

from models import cut_windows, dense, lsg, read_whole, read_windows, source_length, stock


STEPS = 500  # each of one document of `LENGTH` tokens
EVERYTHING = {"learning_rate": 1e-4}
GLOBALS = {"learning_rate": 1e-2}  # far more than for all weights: a few vectors that start as a word's


def trainings(source):
    """`{name: (load, read, windows, fields)}`: `windows` is the length of the windows that documents are cut into."""
    short = source_length(source)
    model_class = XLMRobertaForMaskedLM
    chunks = partial(read_windows, length=short, stride=short - 2)
    return {
        "chunks": (partial(stock, model_class, source), chunks, short, EVERYTHING),
        "dense tiled": (partial(dense, model_class, source, LENGTH), read_whole, LENGTH, EVERYTHING),
        "LSG norm /2": (partial(lsg, model_class, source, LENGTH), read_whole, LENGTH, EVERYTHING),
        "LSG local only": (
            partial(lsg, model_class, source, LENGTH, sparsity_type="none"),
            read_whole,
            LENGTH,
            EVERYTHING,
        ),
        **{
            f"LSG norm /2, {count} globals alone": (
                partial(_only_globals, source, count),
                read_whole,
                LENGTH,
                GLOBALS,
            )
            for count in (1, 16)
        },
    }


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
    for name, (load, read, windows, fields) in trainings(source).items():
        if name in results["further"]:
            continue
        cut = [cut_windows(input_ids[0], windows, windows - 2)[0] for input_ids in texts]
        model, output = load(), folder / f"further-{results.path.stem}" / name.replace("/", "")
        fit(
            model,
            tokenizer,
            [{"input_ids": row.tolist()} for rows_of_text in cut for row in rows_of_text],
            collator,
            output.with_name(f"{output.name} steps"),
            output,
            MaskedTrainer,
            per_device_train_batch_size=len(cut[0]),
            **fields,
        )
        model = type(model).from_pretrained(output).eval()
        results["further"][name] = measure(model, read, rows, tokenizer)
        results.save()
        print(summary(name, results["further"][name]), flush=True)
