# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""The command line of the conversion: `lsg-convert`, `python -m lsg_xlmr`, `python convert_checkpoint.py`."""

import logging
import signal
import sys
import threading
import time
import traceback
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers.utils import logging as transformers_logging

from .arguments import parse_arguments
from .conversion import LSGConverter, Source
from .conversion.check import check_checkpoint
from .conversion.folder import folder_size, save_checkpoint
from .conversion.messages import first_line, quiet_transformers
from .conversion.model_card import model_card, with_onnx_section
from .conversion.new_folder import new_folder
from .conversion.usage import loading_snippet
from .conversion.verify import verify
from .onnx.export import FILES, export_onnx, require_onnx, write_onnx


def main(argv=None):
    """
    Args:
        argv (`list[str]`, *optional*): the arguments; by default those of the process.

    Returns:
        `int`: 0; 1 if `--run_test` or `--verify` found something; 2 if nothing was done, for a reason told on stderr;
        130 or 143 if it was stopped by Ctrl-C or SIGTERM.
    """
    options = parse_arguments(sys.argv[1:] if argv is None else argv)
    try:
        with quiet(), stoppable(argv is None), logging_redirect_tqdm([logging.getLogger(__package__)]):
            if options.verify is not None:
                return 0 if _report(verify(options.verify)) else 1
            return _export(options) if options.initial_model is None else _convert(options)
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        expected = isinstance(error, (ValueError, OSError, ImportError))
        message = str(error) if expected else f"{type(error).__name__}: {error} (--debug shows where)"
        print(f"lsg-convert: {' '.join(message.split())}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print("lsg-convert: stopped; nothing half-written is left.", file=sys.stderr)
        return 128 + stopped.args[0]


class Stopped(BaseException):
    """Ctrl-C or SIGTERM, by its number: what is half written is cleaned up on its way."""


@contextmanager
def stoppable(is_whole_process):
    """Ctrl-C and SIGTERM are `Stopped` within; `is_whole_process` (`bool`) where nothing is done after it."""

    def stop(number, frame):
        for other in numbers:  # one is enough: a second would interrupt the cleaning
            signal.signal(other, signal.SIG_IGN)
        raise Stopped(number)

    # Signals belong to the main thread, and to the caller again at the end.
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except Stopped:
        if is_whole_process:  # it ends now, whatever else is pressed
            before.clear()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _convert(options):
    started = time.perf_counter()
    source, target = Source(options.initial_model, options.token), options.model_name
    if options.onnx:
        require_onnx()
    converter = LSGConverter(
        max_sequence_length=options.max_sequence_length,
        random_global_init=options.random_global_init,
        global_positional_stride=options.global_positional_stride,
        keep_first_global_token=options.keep_first_global_token,
        resize_lsg=options.resize_lsg,
        seed=options.seed,
        dtype=options.dtype,
    )
    name = Path(target).as_posix() if options.push_to_hub is None else _full_name(options)
    with (
        new_folder(target, options.overwrite, source.folders) as folder,
        source.unchanged(),
        tqdm(total=3 + bool(options.onnx), bar_format="{desc:<11}|{bar:30}| {elapsed}", leave=False) as bar,
    ):
        bar.set_description_str("Reading")
        source.read()
        bar.update()
        bar.set_description_str("Converting")
        model, tokenizer = converter.convert_from_pretrained(source, options.architecture, **options.model_kwargs)
        bar.update()
        bar.set_description_str("Writing")
        save_checkpoint(model, tokenizer, folder, source)
        card = model_card(model, tokenizer, converter, name, source)
        bar.update()
        if options.onnx:
            bar.set_description_str("ONNX")
            (folder / "onnx").mkdir()
            report = write_onnx(folder, folder / "onnx", **_onnx_options(options))
            card = with_onnx_section(card, report)
            bar.update()
        (folder / "README.md").write_text(card, encoding="utf-8")
    seconds = time.perf_counter() - started
    well = not options.run_test or _test(options, type(model).__name__, source)
    if well and options.push_to_hub is not None:
        _push(name, options)
    count, size = folder_size(target)
    print(
        f"Wrote {target}: {type(model).__name__} for {model.config.max_sequence_length} tokens, {count} files, "
        f"{size / 1e6:.1f} MB, in {seconds:.1f} s. Load it with\n\n"
        f"{loading_snippet(model, name, source)}"
    )
    if options.onnx:
        print(f"\n{_told(report)}")
    if not well:
        print(f"lsg-convert: the test failed, see above; {target} is left as it is.", file=sys.stderr)
    return 0 if well else 1


def _export(options):
    """Adds the ONNX files to a checkpoint that is there."""
    report = export_onnx(options.model_name, overwrite=options.overwrite, **_onnx_options(options))
    well = not options.run_test or _report(_onnx_findings(options, Source(options.model_name).architecture))
    print(f"Wrote {options.model_name}/onnx. {_told(report)}")
    return 0 if well else 1


def _onnx_options(options):
    return {"int8": "int8" in options.onnx, "float16": "float16" in options.onnx, "logits": options.logits}


def _told(report):
    """What there is to say of the ONNX files."""
    text = f"onnx/model.onnx gives PyTorch's answers but for {report.difference:.0e} of the greatest."
    if report.int8_cosine is not None:
        text += f" onnx/model_quantized.onnx has 8-bit weights; cosine to float32 {report.int8_cosine:.4f}."
    if report.float16_cosine is not None:
        text += f" onnx/model_fp16.onnx computes in float16; cosine to float32 {report.float16_cosine:.6f}."
    return text


def _test(options, architecture, source):
    trials = check_checkpoint(options.model_name, source, **options.model_kwargs)
    findings = list(tqdm(trials, "Testing", unit=" trials", leave=False))
    if options.onnx:
        findings.extend(_onnx_findings(options, architecture))
    return _report(findings)


def _onnx_findings(options, architecture):
    if architecture != "LSGXLMRobertaForMaskedLM":
        return []
    from .onnx.check import check_onnx_fill_mask

    files = [file for name, file in FILES.items() if name in options.onnx]
    return [check_onnx_fill_mask(options.model_name, file) for file in files]


def _report(findings):
    for line, well in findings:
        print(f"{'ok    ' if well else 'FAILED'} {line}")
    return all(well for _, well in findings)


def _full_name(options):
    """The full name on the hub, which also shows that the token is good, before the work is done."""
    name = options.push_to_hub or Path(options.model_name).resolve().name
    try:
        user = HfApi(token=options.token).whoami()["name"]
        return name if "/" in name else f"{user}/{name}"
    except Exception as error:  # of huggingface_hub, or of the client of whichever version
        raise ValueError(f"Cannot push to {name!r}: {first_line(error)}") from error


def _push(name, options):
    api = HfApi(token=options.token)
    try:
        api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=options.model_name)
    except Exception as error:  # of huggingface_hub, or of the client of whichever version
        raise ValueError(
            f"{options.model_name} is written, but not pushed to {name!r}: {first_line(error)}"
        ) from error


@contextmanager
def quiet():
    """What the libraries log and draw is kept down; their settings are put back at the end."""
    hub_logger, bars = logging.getLogger("huggingface_hub"), transformers_logging.is_progress_bar_enabled()
    hub_level = hub_logger.level
    hub_logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        with quiet_transformers():
            yield
    finally:
        hub_logger.setLevel(hub_level)
        if bars:
            transformers_logging.enable_progress_bar()
