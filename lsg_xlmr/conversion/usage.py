# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Python that uses a converted checkpoint, as its model card and the command line show it."""

from .architectures import ARCHITECTURES


LONG_TEXT = '"This is a test sequence. " * 300'
SETTINGS = {
    "num_global_tokens": 16,
    "block_size": 64,
    "sparse_block_size": 64,
    "sparsity_factor": 4,
    "sparsity_type": "pooling",
}
# What to print of each class of sentence-transformers.
EMBEDDERS = {
    "SentenceTransformer": f"model.encode([{LONG_TEXT}]{{prompt}}).shape",
    "SparseEncoder": f"model.encode([{LONG_TEXT}]{{prompt}}).shape",
    "MultiVectorEncoder": f"model.encode([{LONG_TEXT}]{{prompt}})[0].shape",
    "CrossEncoder": f'model.predict([("What is this?", {LONG_TEXT})])',
}


def embedder_class(model, source):
    """The class of sentence-transformers (`str`) that loads the result, `None` if a class of transformers does."""
    architecture = type(model).__name__.removeprefix("LSG")
    if not source.is_embedder or architecture not in ("XLMRobertaModel", source.architecture.removeprefix("LSG")):
        return None
    name = str(source.embedder_config.get("model_type"))
    return name if name in EMBEDDERS else "SentenceTransformer"


def loading_snippet(model, name, source):
    """Python lines that load the checkpoint `name` of the class of `model`, converted from `source`."""
    embedder = embedder_class(model, source)
    if embedder:
        return f'from sentence_transformers import {embedder}\n\nmodel = {embedder}("{name}", trust_remote_code=True)'
    return _loaded_by(ARCHITECTURES[type(model).__name__][0], name)


def settings_snippet(model, name, source):
    """Python lines that load it with other settings."""
    embedder = embedder_class(model, source)
    if embedder:
        fields = "".join(f"        {field!r}: {value!r},\n" for field, value in SETTINGS.items()).replace("'", '"')
        return (
            f'from sentence_transformers import {embedder}\n\nmodel = {embedder}(\n    "{name}",\n'
            f"    trust_remote_code=True,\n    config_kwargs={{\n{fields}    }},\n)"
        )
    fields = "".join(f"    {field}={value!r},\n" for field, value in SETTINGS.items()).replace("'", '"')
    return (
        f'from transformers import AutoModel\n\nmodel = AutoModel.from_pretrained(\n    "{name}",\n'
        f"    trust_remote_code=True,\n{fields})"
    )


def usage(model, tokenizer, name, source):
    """Yields text in Markdown with snippets that fit the model's class, each runnable alone."""
    snippet = loading_snippet(model, name, source)
    embedder = embedder_class(model, source)
    if embedder:
        yield from _with_sentence_transformers(snippet, embedder, source)
        return
    architecture = type(model).__name__
    yield f"```python\n{snippet}\n```\n"
    if architecture == "LSGXLMRobertaForMaskedLM" and tokenizer.mask_token is not None:
        yield "Fill a mask:\n"
        yield (
            "```python\nfrom transformers import pipeline\n\n"
            f'fill_mask = pipeline("fill-mask", model="{name}", trust_remote_code=True)\n'
            f'print(fill_mask("Paris is the {tokenizer.mask_token} of France.")[0]["sequence"])\n```\n'
        )
    if architecture == "LSGXLMRobertaModel":
        yield "One vector for a long text:\n"
        yield _long_text("AutoModel", name, "outputs.last_hidden_state[:, 0].shape")
    if architecture in ("LSGXLMRobertaForTokenClassification", "LSGXLMRobertaForQuestionAnswering"):
        yield "A long text, cut where it is longer still:\n"
        yield _long_text(ARCHITECTURES[architecture][0], name, "outputs[0].shape")
    else:
        trained = architecture == "LSGXLMRobertaForSequenceClassification"
        yield "Classify a long text" + (":\n" if trained else "; the classifier is new and must be trained first:\n")
        yield _long_text("AutoModelForSequenceClassification", name, "outputs.logits")


def _with_sentence_transformers(snippet, embedder, source):
    modules = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in source.modules[1:]]
    after = f" What follows the encoder is the source's own: {', '.join(modules)}." if any(modules) else ""
    yield f"With sentence-transformers, on a long text.{after}\n"
    yield f"```python\n{snippet}\nprint({EMBEDDERS[embedder].format(prompt='')})\n```\n"
    prompts = source.embedder_config.get("prompts")
    prompts = {key: text for key, text in prompts.items() if text} if isinstance(prompts, dict) else {}
    if prompts and embedder != "CrossEncoder":
        default = source.embedder_config.get("default_prompt_name")
        yield (
            f"Its prompts are {', '.join(f'`{key}` ({text!r})' for key, text in prompts.items())}"
            + (f"; without a name it is `{default}`.\n" if default else ".\n")
        )
        printed = EMBEDDERS[embedder].format(prompt=f', prompt_name="{next(iter(prompts))}"')
        yield f"```python\n{snippet}\nprint({printed})\n```\n"


def _loaded_by(auto_class, name):
    return (
        f"from transformers import {auto_class}, AutoTokenizer\n\n"
        f'model = {auto_class}.from_pretrained("{name}", trust_remote_code=True)\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")'
    )


def _long_text(auto_class, name, printed):
    return (
        f"```python\n{_loaded_by(auto_class, name)}\n"
        f'inputs = tokenizer({LONG_TEXT}, truncation=True, return_tensors="pt")\n'
        f"outputs = model(**inputs)\nprint({printed})\n```\n"
    )
