# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""A source's tokenizer, as one that every version of transformers reads alike, whichever model it was made for."""

from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import Unigram
from transformers import AutoTokenizer, CamembertTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import SLOW_TO_FAST_CONVERTERS

from .families import own_config
from .messages import first_sentence, quiet_transformers


# What is not handed on: what a tokenizer was made of, where it was found, how the source cut and padded its texts.
LEFT_OUT = ("vocab", "merges", "vocab_file", "merges_file", "tokenizer_file", "unk_id")
LEFT_OUT += ("name_or_path", "is_local", "local_files_only")
LEFT_OUT += ("max_length", "stride", "truncation_strategy", "pad_to_multiple_of")


def read_tokenizer(source):
    """
    Args:
        source ([`Source`]): whose tokenizer it is.

    Returns:
        a `PreTrainedTokenizerFast`; one of a class of its own if that is written in Python.

    Raises:
        ValueError: it cannot be read, or there is none.
    """
    folder = source.tokenizer_folder
    if CamembertTokenizer.model is None:  # in transformers 5.0, which then reads no SentencePiece model of it
        CamembertTokenizer.model = Unigram
    try:
        with quiet_transformers():
            config = own_config(source.own_config)
            tokenizer = _whole(AutoTokenizer.from_pretrained(str(folder), config=config), folder)
    except Exception as error:  # sentencepiece, tokenizers and json each raise their own
        raise ValueError(
            f"The tokenizer of {source.name!r} cannot be read: {first_sentence(error)}. Get its files again."
        ) from error
    # Without files transformers gives a tokenizer that knows nothing but the special tokens.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ValueError(
            f"{source.name!r} has no tokenizer. Put the tokenizer's files beside the weights: tokenizer_config.json "
            "and tokenizer.json, or sentencepiece.bpe.model, vocab.txt, vocab.json and merges.txt."
        )
    return tokenizer


def _whole(tokenizer, folder):
    """
    A class of its own, such as `XLMRobertaTokenizer`, makes its tokenizer anew of the words in `tokenizer.json`: in
    transformers 5.0 without the normalization of the text and the second `</s>` between two, in a folder of another
    model_type by that model's rules. `PreTrainedTokenizerFast` takes the file as it is.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return tokenizer
    backend = _backend(tokenizer, folder)
    backend.no_truncation()
    backend.no_padding()
    arguments = {name: value for name, value in tokenizer.init_kwargs.items() if name not in LEFT_OUT}
    arguments |= {"model_input_names": tokenizer.model_input_names}
    arguments |= {"added_tokens_decoder": tokenizer.added_tokens_decoder}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **arguments)


def _backend(tokenizer, folder):
    if (folder / "tokenizer.json").is_file():
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    vocab_file = getattr(tokenizer, "vocab_file", None)
    if vocab_file is not None and Path(vocab_file).suffix == ".model":  # of SentencePiece
        return SLOW_TO_FAST_CONVERTERS[type(tokenizer).__name__](tokenizer).converted()
    return tokenizer.backend_tokenizer
