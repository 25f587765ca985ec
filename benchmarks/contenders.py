"""
The models compared, all of one shape, with random weights from one seed.

The shape is XLM-RoBERTa base's: hidden size 768, heads of 64, an intermediate size of four times the hidden size;
heads other than the bare encoder are those of the model's work. Everything else is the default of
each model's own configuration; imports are inside the functions, because the published LSG and the others live in
different environments.
"""

HEAD_DIM = 64
ROOM_TO_DECODE = 256  # tokens that all repeats add to the context
# What a work needs of a model, by the end of the class's name; the bare encoder for all others.
HEADS = {
    "fill mask": "ForMaskedLM",
    "masked-LM training": "ForMaskedLM",
    "classification training": "ForSequenceClassification",
    "load": "ForMaskedLM",
    "causal-LM training": "ForCausalLM",
    "decoding": "ForCausalLM",
}


def stock(case):
    """XLM-RoBERTa, dense attention."""
    import transformers

    model_class = getattr(transformers, "XLMRoberta" + HEADS.get(case["work"], "Model"))
    return model_class(transformers.XLMRobertaConfig(**_roberta_shape(case)))


def lsg(case):
    """XLM-RoBERTa with LSG attention, from this repository."""
    import lsg_xlmr

    model_class = getattr(lsg_xlmr, "LSGXLMRoberta" + HEADS.get(case["work"], "Model"))
    options = _lsg_options(case) | {"sparse_prediction": case["sparse_prediction"]}
    return model_class(lsg_xlmr.LSGConfig(**options, **_roberta_shape(case)))


def floor(case):
    """[`lsg`] with the attention product left out: whatever the attention, this model is not faster than that."""
    from lsg_xlmr.model import encoder

    encoder.lsg_attention = lambda inputs, _: ((inputs.query + inputs.key + inputs.value).transpose(1, 2), None)
    return lsg(case)


def unchecked(case):
    """[`lsg`] that does not look at what it is given."""
    from lsg_xlmr.model import embeddings, modeling_lsg_xlm_roberta as modeling

    for module, names in ((embeddings, ("check_ids", "check_place")), (modeling, ("check_ids", "check_states"))):
        for name in names:
            setattr(module, name, lambda *_: None)
    return lsg(case)


def published(case):
    """XLM-RoBERTa with LSG attention, as published in lsg-converter."""
    from lsg_converter.xlm_roberta.modeling_lsg_xlm_roberta import LSGXLMRobertaConfig, LSGXLMRobertaModel

    return LSGXLMRobertaModel(LSGXLMRobertaConfig(**_lsg_options(case), **_roberta_shape(case)))


def longformer(case):
    """Longformer: windows of 512, no global token."""
    from transformers import LongformerConfig, LongformerModel

    return LongformerModel(LongformerConfig(**_roberta_shape(case)))


def bigbird(case):
    """BigBird: blocks of 64, 3 random ones. Up to 704 tokens it switches to full attention by itself."""
    from transformers import BigBirdConfig, BigBirdModel

    shape = _roberta_shape(case)
    return BigBirdModel(BigBirdConfig(attention_type="block_sparse", block_size=64, num_random_blocks=3, **shape))


def modernbert(case):
    """
    ModernBERT: windows of 128, every third layer dense. Its MLP has three matrices instead of two, so an intermediate
    size of two thirds gives the same weights and multiply-adds per token.
    """
    from transformers import ModernBertConfig, ModernBertModel

    shape = _roberta_shape(case) | {"intermediate_size": 4 * case["hidden_size"] * 2 // 3}
    del shape["type_vocab_size"]
    special_tokens = {"cls_token_id": 0, "sep_token_id": 2}
    return ModernBertModel(ModernBertConfig(**shape, **special_tokens))


MODELS = {
    model.__name__: model for model in (stock, lsg, floor, unchecked, published, longformer, bigbird, modernbert)
}


def _roberta_shape(case):
    shape = {
        "hidden_size": case["hidden_size"],
        "num_attention_heads": case["hidden_size"] // HEAD_DIM,
        "intermediate_size": 4 * case["hidden_size"],
        "num_hidden_layers": case["num_layers"],
        "vocab_size": case["vocab_size"],
        "type_vocab_size": 1,
        "max_position_embeddings": case["length"] + 2,  # RoBERTa's positions start at 2
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    }
    if HEADS.get(case["work"]) == "ForCausalLM":
        shape |= {"is_decoder": True, "use_cache": True}
        shape["max_position_embeddings"] += ROOM_TO_DECODE
    if case["attn_implementation"]:
        shape["attn_implementation"] = case["attn_implementation"]
    return shape


def _lsg_options(case):
    return {"sparsity_type": case["sparsity_type"]} if case["sparsity_type"] else {}
