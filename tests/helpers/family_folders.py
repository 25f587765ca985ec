"""Small folders of each family that is XLM-RoBERTa but for the names of things, as people have them."""

import io
import json
import shutil

import torch
import transformers
from repository import DATA, TINY
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


SENTENCES = (DATA / "other_sentences.txt").read_text(encoding="utf-8").splitlines()
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "initializer_range": 0.3,
    "vocab_size": 1456,
    "max_position_embeddings": 66,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}
BERT_SHAPE = {**SHAPE, "max_position_embeddings": 64, "type_vocab_size": 2, "layer_norm_eps": 1e-12}


def write_model(folder, architecture, **fields):
    """
    Saves a model of transformers' class `architecture`, with random weights of which none is 0 or 1, to `folder`.

    Returns:
        the model, in eval mode.
    """
    model_class = getattr(transformers, architecture)
    shape = BERT_SHAPE if architecture.startswith("Bert") else SHAPE
    model = model_class(CONFIG_MAPPING[model_class.config_class.model_type](**{**shape, **fields})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return model


def write_xlm_roberta_tokenizer(folder, files=("tokenizer.json", "sentencepiece.bpe.model")):
    """XLM-RoBERTa's: `<s>` is 0 and `<pad>` 1."""
    for name in ("tokenizer_config.json", *files):
        shutil.copy(TINY / name, folder)


def write_wordpiece(folder):
    """
    BERT's, as vocab.txt: `[PAD]` is 0.

    Returns:
        a function that gives the ids of a text by the `tokenizers` library alone.
    """
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    tokenizer.train_from_iterator(SENTENCES, vocab_size=600, show_progress=False)
    tokenizer.save_model(str(folder))
    write_settings(folder, tokenizer_class="BertTokenizer", do_lower_case=True, model_max_length=64)
    tokenizer = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True)
    return lambda *texts: tokenizer.encode(*texts).ids


def write_bpe(folder):
    """
    RoBERTa's, as vocab.json and merges.txt.

    Returns:
        as [`write_wordpiece`].
    """
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(SENTENCES, vocab_size=600, special_tokens=SPECIAL, show_progress=False)
    tokenizer.save_model(str(folder))
    write_settings(folder, tokenizer_class="RobertaTokenizer", model_max_length=64)

    def ids(*texts):
        parts = [tokenizer.encode(text).ids for text in texts]
        return [0, *parts[0], 2] + [token_id for part in parts[1:] for token_id in (2, *part, 2)]

    return ids


def write_camembert_sentencepiece(folder):
    """
    CamemBERT's, as sentencepiece.bpe.model: `<s>` is 5 and `</s>` 6.

    Returns:
        as [`write_wordpiece`], by sentencepiece.
    """
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=model, vocab_size=500, minloglevel=2, hard_vocab_limit=False
    )
    (folder / "sentencepiece.bpe.model").write_bytes(model.getvalue())
    write_settings(folder, tokenizer_class="CamembertTokenizer", model_max_length=64)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())

    def ids(*texts):
        parts = [[3 if piece == 0 else piece + 4 for piece in processor.encode(text)] for text in texts]
        return [5, *parts[0], 6] + [token_id for part in parts[1:] for token_id in (6, *part, 6)]

    return ids


def write_settings(folder, **settings):
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def hide_global_tokens(model):
    """Within two blocks an encoder whose global tokens are hidden as keys sees what the stock one sees."""

    def without_global_keys(layer, states):
        tokens, mask, global_states, *others = states
        if mask is None:
            mask = torch.ones(tokens.shape[0], global_states.shape[1] + tokens.shape[1], dtype=torch.bool)
        is_token = torch.arange(mask.shape[1]) >= global_states.shape[1]
        return tokens, mask & is_token, global_states, *others

    for layer in model.base_model.encoder.layer:
        layer.register_forward_pre_hook(without_global_keys)
    return model
