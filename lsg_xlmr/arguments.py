# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""The arguments of the command line, from options or from a JSON file."""

import argparse
import ast
import json
from pathlib import Path

from transformers.hf_argparser import string_to_bool

from .conversion.messages import first_line


class Parser(argparse.ArgumentParser):
    """A wrong argument ends the process with exit code 2 and one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def parse_arguments(argv):
    """
    Args:
        argv (`list[str]`): the options, or the name of one JSON file that holds them.

    Returns:
        `argparse.Namespace`; a wrong one ends the process with exit code 2 and one line.
    """
    parser = Parser(
        prog="lsg-convert",
        description="Converts a checkpoint of XLM-RoBERTa, RoBERTa, CamemBERT or BERT to LSG attention, for long "
        "inputs. No training is done.",
        epilog="Instead of options, one JSON file that holds them can be given.",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    flag = {"nargs": "?", "const": True, "default": False, "type": string_to_bool, "metavar": "BOOL"}
    add("--initial_model", help="folder or hub name of the checkpoint to convert")
    add("--model_name", help="folder to write")
    add(
        "--max_sequence_length",
        type=int,
        help="longest input in tokens; 4096 or the source's, whichever is longer, if not given",
    )
    add("--architecture", help="class of the result, such as LSGXLMRobertaForMaskedLM; the source's if not given")
    add("--random_global_init", **flag, help="draw the global tokens from the distribution of the word embeddings")
    add("--global_positional_stride", type=int, default=64, help="tokens between the positions of global tokens")
    add("--keep_first_global_token", **flag, help="keep the first global token of an LSG source")
    add("--resize_lsg", **flag, help="keep all global tokens of an LSG source, change its length only")
    add("--model_kwargs", type=dictionary, default={}, help="fields of LSGConfig, as \"{'block_size': 64}\"")
    add(
        "--onnx",
        nargs="*",
        type=_onnx_type,
        metavar="TYPE",
        help="write onnx/model.onnx too and, of type int8 and float16, onnx/model_quantized.onnx and "
        "onnx/model_fp16.onnx; without --initial_model into the LSG checkpoint that --model_name is already",
    )
    add(
        "--logits",
        choices=("masks", "all"),
        default="masks",
        help="of which tokens the ONNX files of a masked LM give the logits: of the masks, (masks, vocab_size), or of "
        "all, as pipelines that know nothing of LSG expect them",
    )
    add(
        "--run_test",
        **flag,
        help="load the result, run its head on short and long input, compare it with the source's",
    )
    add("--seed", type=int, default=123, help="seed of what is drawn: random global tokens, new heads")
    add("--dtype", choices=("float32", "float16", "bfloat16"), help="type of the weights; the source's if not given")
    add(
        "--verify",
        metavar="FOLDER",
        help="convert nothing: tell whether the code in a checkpoint's folder is that of this release, and run none",
    )
    add("--overwrite", **flag, help="replace the folder to write if it is not empty")
    add("--debug", **flag, help="show the traceback of an error")
    add("--token", help="access token of the Hugging Face hub")
    add(
        "--push_to_hub",
        nargs="?",
        const="",
        type=_repository,
        metavar="REPO",
        help="push the result to this repository, by default one of the folder's name",
    )
    if len(argv) == 1 and argv[0].endswith(".json"):
        argv = _json_arguments(parser, argv[0])
    options = parser.parse_args(argv)
    for name in ("initial_model", "model_name", "verify"):
        if getattr(options, name) == "":
            parser.error(f"--{name} is empty: name a folder")
    if options.onnx is not None:
        options.onnx = None if None in options.onnx else ["float32", *options.onnx]
    if options.onnx is None and options.logits != "masks":
        parser.error("--logits is of ONNX files: it needs --onnx")
    if options.verify is not None:
        _stands_alone(parser, options, {"verify", "debug"}, "--verify: it checks a folder that is there")
    elif options.model_name is None:
        parser.error("the following arguments are required: --model_name")
    elif options.initial_model is None:
        if options.onnx is None:
            parser.error("the following arguments are required: --initial_model")
        allowed = {"onnx", "logits", "model_name", "overwrite", "run_test", "debug"}
        reason = f"--onnx without --initial_model: {options.model_name} is exported as it is"
        _stands_alone(parser, options, allowed, reason)
    return options


def _stands_alone(parser, options, allowed, reason):
    """Ends the process if anything but the `allowed` options is given."""
    for other in sorted(vars(options).keys() - allowed):
        if getattr(options, other) != parser.get_default(other):
            parser.error(f"--{other} does not go with {reason}")


def _json_arguments(parser, path):
    """The options in a JSON file as arguments, so that they meet the same checks."""
    try:
        options = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_each_once)
    except (OSError, ValueError, RecursionError) as error:
        parser.error(f"{path} cannot be read as a JSON file: {first_line(error)}")
    if not isinstance(options, dict):
        parser.error(f"{path} must hold one JSON object of options")
    given = {name: value for name, value in options.items() if value is not None}
    return [
        argument
        for name, value in given.items()
        for argument in ([f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"])
    ]


def _each_once(pairs):
    """The object of a JSON file, which may hold a name twice."""
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice!r} stands in it twice")
    return dict(pairs)


def _repository(text):
    return {"true": "", "false": None}.get(text.lower(), text)  # as a JSON file may say it


def _onnx_type(text):
    value = {"true": "float32", "false": None}.get(text.lower(), text)  # as a JSON file may say it
    if value not in ("float32", "int8", "float16", None):
        raise argparse.ArgumentTypeError(f"{text!r} is none of float32, int8 and float16")
    return value


def dictionary(text):
    """The `dict` that `text` is, as Python or JSON write it."""
    try:
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = json.loads(text.replace("'", '"'))  # true and null, as the published converter takes them
    except (ValueError, RecursionError, MemoryError):  # the last two of what is nested too deep
        value = None
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise argparse.ArgumentTypeError(f"{text!r} is no dict such as \"{{'block_size': 64}}\"")
    return value
