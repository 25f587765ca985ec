# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
The models that are XLM-RoBERTa but for the names of things: how the configuration, the class and the weights of each
become XLM-RoBERTa's.

RoBERTa, CamemBERT and data2vec-text differ in their tokenizers alone. BERT counts positions from 0 where
XLM-RoBERTa's start after that of padding, and names its heads otherwise; the function is the same. So it is not in
XLM-RoBERTa-XL and RoBERTa-PreLayerNorm (another order of layer norms), MPNet and DeBERTa (relative positions), ELECTRA
and DistilBERT (other embeddings and heads), X-MOD (adapters) and Longformer.
"""

import re
from copy import deepcopy

import torch
import transformers
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from .architectures import ARCHITECTURES


logger = logging.get_logger(__name__)

# How the names of the classes begin, by model_type.
FAMILIES = {
    "xlm-roberta": "XLMRoberta",
    "roberta": "Roberta",
    "camembert": "Camembert",
    "data2vec-text": "Data2VecText",
    "bert": "Bert",
}
BERT_CLASSES = {"BertForPreTraining": "XLMRobertaForMaskedLM", "BertLMHeadModel": "XLMRobertaForCausalLM"}
LM_CLASSES = ("LSGXLMRobertaForMaskedLM", "LSGXLMRobertaForCausalLM")
LM_HEAD_ACTIVATIONS = ("gelu", "gelu_python")  # both are XLM-RoBERTa's, which has no other there
# How the names of weights begin, and what stands for it in XLM-RoBERTa; the first that fits counts.
PREFIXES = {
    "data2vec-text": {"data2vec_text.": "roberta."},
    "bert": {
        "bert.": "roberta.",
        "cls.predictions.transform.LayerNorm.": "lm_head.layer_norm.",
        "cls.predictions.transform.": "lm_head.",
        "cls.predictions.": "lm_head.",
    },
}
# BERT's classifier pools first; XLM-RoBERTa's has the pooler's layer in itself.
CLASSIFIER_PREFIXES = {"bert.pooler.": "classifier.", "classifier.": "classifier.out_proj."}


def as_xlm_roberta(config, name, tokenizer):
    """
    Args:
        config (`dict`): a `config.json`.
        name (`str`): whose it is.
        tokenizer (callable): gives the tokenizer; called where the configuration alone does not say all.

    Returns:
        `dict`: the configuration of the XLM-RoBERTa that is the same function.

    Raises:
        ValueError: there is none.
    """
    model_type, positions = config.get("model_type"), config.get("position_embedding_type") or "absolute"
    if model_type not in tuple(FAMILIES):
        raise ValueError(
            f"{name!r} is not an XLM-RoBERTa checkpoint: its model_type is {model_type!r}, which is another function. "
            f"What can be converted is {', '.join(FAMILIES)}."
        )
    if positions != "absolute":
        raise ValueError(
            f"{name!r} is not an XLM-RoBERTa checkpoint: its position_embedding_type is {positions!r}, and only "
            "'absolute' can be converted."
        )
    if config.get("auto_map") and "block_size" not in config:  # those with LSG attention are known
        logger.warning(
            f"{name} names code of its own (auto_map in config.json), which is not run: what is converted is the "
            f"{model_type} of transformers with its weights."
        )
    if model_type != "bert":
        return {**config, "model_type": "xlm-roberta"}
    length = config.get("max_position_embeddings", 512)
    if not isinstance(length, int):
        raise ValueError(f"max_position_embeddings in the config.json of {name!r} must be an int, got {length!r}.")
    tokenizer = tokenizer()
    # BERT's own says nothing of its positions, and with an XLM-RoBERTa vocabulary is mostly that of <s>.
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = config.get("pad_token_id") or 0
    first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
    return {
        **config,
        "model_type": "xlm-roberta",
        "pad_token_id": pad,
        "bos_token_id": tokenizer.cls_token_id if first is None else first,
        "eos_token_id": tokenizer.sep_token_id if last is None else last,
        "max_position_embeddings": length + pad + 1,
    }


def xlm_roberta_class(architecture, model_type):
    """
    Args:
        architecture (`str`): name of a class, with LSG before it or without.
        model_type (`str`): of the family.

    Returns:
        `str`: the name of XLM-RoBERTa's in its place, or `architecture` itself where there is none.
    """
    if model_type == "bert":
        name = BERT_CLASSES.get(architecture) or re.sub("^(LSG|)Bert", r"\1XLMRoberta", architecture)
    else:
        name = re.sub("^(LSG|)(Roberta|Camembert|Data2VecText)", r"\1XLMRoberta", architecture)
    return name if f"LSG{name.removeprefix('LSG')}" in ARCHITECTURES else architecture


def own_config(config):
    """The configuration of the class that `config` (`dict`), a `config.json` of a family, says."""
    return CONFIG_MAPPING[config["model_type"]].from_dict(deepcopy(config))


def stock_class(model_type, architecture):
    """
    Args:
        model_type (`str`): of a family.
        architecture (`str`): the name of a class of LSG or of XLM-RoBERTa.

    Returns:
        transformers' class that the family has in its place.
    """
    name = architecture.removeprefix("LSG").replace("XLMRoberta", FAMILIES[model_type])
    return getattr(transformers, "BertLMHeadModel" if name == "BertForCausalLM" else name)


def stock_config(model_type, config):
    """
    Args:
        model_type (`str`): of a family.
        config (`dict`): of an XLM-RoBERTa, as [`as_xlm_roberta`] returns it.

    Returns:
        the configuration of the model in the family that it was made of.
    """
    config = {**config, "model_type": model_type}
    if model_type == "bert":
        config["max_position_embeddings"] -= config["pad_token_id"] + 1
    return own_config(config)


def check_head(model_type, model_class, config):
    """
    Raises:
        ValueError: the head of the LSG `model_class` is another function than the family's.
    """
    if model_type == "bert" and model_class.__name__ in LM_CLASSES and config.hidden_act not in LM_HEAD_ACTIVATIONS:
        raise ValueError(
            f"{model_class.__name__} cannot have the language modeling head of this BERT: its activation is "
            f"{config.hidden_act!r}, and XLM-RoBERTa's is always 'gelu'. --architecture XLMRobertaModel converts the "
            "encoder."
        )


def load(model_type, model_class, name_or_path, config, **kwargs):
    """
    [`~transformers.PreTrainedModel.from_pretrained`] of an LSG class, for weights of any family.

    Args:
        model_type (`str`): of the family.
        model_class, config: of the LSG model, made for the source's positions.
        kwargs: what `from_pretrained` takes.

    Returns:
        the model and the loading info; its names are those of the source's weights.
    """
    if model_type not in PREFIXES:
        return model_class.from_pretrained(name_or_path, config=config, output_loading_info=True, **kwargs)
    stock, info = stock_class(model_type, model_class.__name__).from_pretrained(
        name_or_path, config=stock_config(model_type, config.to_dict()), output_loading_info=True, **kwargs
    )
    with no_init_weights():  # every weight comes from there, but for the global tokens', which a conversion makes
        model = model_class(config).to(stock.dtype)
    weights = _renamed(stock.state_dict(), model_type, model_class)
    if model_type == "bert":
        key = next(key for key in weights if key.endswith("embeddings.position_embeddings.weight"))
        padding = weights[key].new_zeros(config.pad_token_id + 1, config.hidden_size)
        weights[key] = torch.cat([padding, weights[key]])
    torch.nn.init.zeros_(model.base_model.embeddings.global_embeddings.weight)
    missing = model.load_state_dict(weights, strict=False, assign=True).missing_keys
    info["missing_keys"] = {*info["missing_keys"], *missing}
    return model.eval(), info


def _renamed(weights, model_type, model_class):
    """`weights` (`dict`) of a family's own class by their names in `model_class`."""
    prefixes = PREFIXES[model_type]
    if model_type == "bert" and model_class.__name__ == "LSGXLMRobertaForSequenceClassification":
        prefixes = {**CLASSIFIER_PREFIXES, **prefixes}
    return {_replaced(name, prefixes): weight for name, weight in weights.items()}


def _replaced(name, prefixes):
    old = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
    return prefixes.get(old, "") + name.removeprefix(old)
