# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""The model card (README.md) of a converted checkpoint."""

import inspect
from pathlib import Path

from huggingface_hub import ModelCardData, metadata_load
from yaml import YAMLError

from ..configuration_lsg import LSGConfig
from .usage import embedder_class, settings_snippet, usage


PIPELINE_TAGS = {
    "LSGXLMRobertaModel": "feature-extraction",
    "LSGXLMRobertaForMaskedLM": "fill-mask",
    "LSGXLMRobertaForCausalLM": "text-generation",
    "LSGXLMRobertaForSequenceClassification": "text-classification",
    "LSGXLMRobertaForTokenClassification": "token-classification",
    "LSGXLMRobertaForQuestionAnswering": "question-answering",
    "LSGXLMRobertaForMultipleChoice": "multiple-choice",
}
ONNX_HEADING = "\n\n## ONNX\n\n"


def model_card(model, tokenizer, converter, name, source):
    """
    Args:
        model, tokenizer: what [`LSGConverter.convert_from_pretrained`] returned.
        converter (`LSGConverter`): the converter that made them.
        name (`str`): where the checkpoint is loaded from in the snippets.
        source ([`Source`]): what was converted.

    Returns:
        `str`: the text of README.md.
    """
    config = model.config
    title = f"[{source.name}](https://huggingface.co/{source.name})"
    if source.is_local:
        title = Path(source.name).resolve().name
    settings = {
        field: getattr(config, field) for field in inspect.signature(LSGConfig).parameters if field != "kwargs"
    }
    return "\n".join(
        (
            f"---\n{_header(model, source).to_yaml()}\n---\n",
            f"# {Path(name).name}\n",
            f"{title} with LSG (local + sparse + global) attention in the place of full attention: a "
            f"`{type(model).__name__}` for inputs of up to {config.max_sequence_length} tokens. Time and memory grow "
            "in proportion to the length. The method is that of Condevaux and Harispe, "
            '["LSG Attention: Extrapolation of pretrained Transformers to long sequences"]'
            "(https://arxiv.org/abs/2210.15497).\n",
            "The attention is in the two Python files beside the weights, so it is loaded with "
            "`trust_remote_code=True`, by transformers 5.0 or newer.\n",
            "## What was done\n",
            *_steps(converter, model, source),
            "",
            "## LSG settings\n",
            "| parameter | value |\n| --- | --- |",
            *(f"| `{field}` | `{value!r}` |" for field, value in settings.items()),
            "\nAny of them can be changed at load, without converting again:\n",
            f"```python\n{settings_snippet(model, name, source)}\n```\n",
            "## Usage\n",
            *usage(model, tokenizer, name, source),
        )
    )


def _header(model, source):
    return ModelCardData(
        library_name="sentence-transformers" if embedder_class(model, source) else "transformers",
        pipeline_tag=_pipeline_tag(model, source),
        **_known(source),
        base_model=None if source.is_local else source.name,
        tags=["xlm-roberta", "lsg", "long-context", "custom_code"],
    )


def _pipeline_tag(model, source):
    embedder, own = embedder_class(model, source), PIPELINE_TAGS[type(model).__name__]
    if embedder == "CrossEncoder":
        return "text-ranking" if model.config.num_labels == 1 else own
    return {None: own, "SentenceTransformer": "sentence-similarity"}.get(embedder, "feature-extraction")


def _known(source):
    """What the source's own card says that holds for the result."""
    try:
        folder = source.files if (source.files / "README.md").is_file() else source.part
        header = metadata_load(folder / "README.md") or {}
    except (OSError, ValueError, YAMLError):  # no card, or none that can be read: no reason not to convert
        header = {}
    return {name: header[name] for name in ("license", "language") if name in header}


def _steps(converter, model, source):
    if source.model_type != "xlm-roberta":
        yield f"- The source is a `{source.model_type}` model: the same function, whose weights have other names."
    config = model.config
    positions = source.config.get("max_position_embeddings", 514) - config.pad_token_id - 1
    new = config.max_sequence_length
    if new > positions:
        yield f"- The {positions} position embeddings were repeated up to {new}."
    elif new < positions:
        yield f"- The {positions} position embeddings were cut to the first {new}."
    else:
        yield f"- The {positions} position embeddings are the source's."
    words = "random vectors like those of words" if converter.random_global_init else "the mask token's embedding"
    if converter.resize_lsg and source.is_lsg:
        yield "- The global tokens are the source's."
    else:
        yield (
            f"- The global tokens were made of {words} plus position embeddings {converter.global_positional_stride} "
            "tokens apart; the first"
            + (
                " was kept."
                if converter.keep_first_global_token and source.is_lsg
                else " is the token that begins a text plus the first position."
            )
        )
    if not config.num_global_tokens:
        alike = f": texts of up to {min(2 * config.block_size, positions, new)} tokens are read as by the source"
        yield (
            f"- None of them is in use (`num_global_tokens=0`){'' if source.is_lsg else alike}. "
            "`num_global_tokens=1` at load brings the first one in."
        )
    yield "- All other weights are the source's. Nothing was trained: fine-tuning on long texts improves the result."
    architecture = (config.architectures or [""])[0].removeprefix("LSG")
    before = source.architecture.removeprefix("LSG")
    if architecture != before and not embedder_class(model, source):
        yield f"- The source is a `{before}`: weights that only a `{architecture}` has are new and must be trained."


def with_onnx_section(text, report):
    """
    Args:
        text (`str`): of a README.md.
        report ([`OnnxReport`]): of the ONNX files beside it.

    Returns:
        `str`: the text with a last section about the files, in the place of one that it may have.
    """
    return text.split(ONNX_HEADING)[0].rstrip() + ONNX_HEADING + "\n".join(_onnx_section(report)) + "\n"


def _onnx_section(report):
    yield (
        "`onnx/model.onnx` opens in ONNX Runtime, with no torch, no transformers and no `trust_remote_code`. It takes "
        "`input_ids` and `attention_mask` (int64, `(batch, length)`, padded anyhow) of any length that the model has, "
        "and `token_type_ids` where the tokenizer gives them. "
        "Its answers were tried against PyTorch's at several lengths and paddings: they differ by "
        f"{report.difference:.0e} at most, as a part of the greatest.\n"
    )
    if report.int8_cosine is not None:
        yield (
            "`onnx/model_quantized.onnx` is the same with 8-bit weights (dynamic quantization). The cosine of its "
            f"answers to the float32 model's is {report.int8_cosine:.4f} in the mean.\n"
        )
    if report.float16_cosine is not None:
        yield (
            "`onnx/model_fp16.onnx` is the same in float16, for GPUs: its inputs and answers are of the same types as "
            f"those of `onnx/model.onnx`. The cosine of the answers is {report.float16_cosine:.6f} in the mean.\n"
        )
    yield (
        "```python\n"
        "import numpy as np\nfrom onnxruntime import InferenceSession\nfrom tokenizers import Tokenizer\n\n"
        'text = Tokenizer.from_file("tokenizer.json").encode("A long text.")\n'
        'session = InferenceSession("onnx/model.onnx")\n'
        'inputs = {"input_ids": text.ids, "attention_mask": text.attention_mask, "token_type_ids": text.type_ids}\n'
        "names = [x.name for x in session.get_inputs()]\n"
        "outputs = session.run(None, {name: np.array([inputs[name]]) for name in names})\n```"
    )
