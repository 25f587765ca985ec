# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
Makes the two self-contained files that travel with a checkpoint from the small files of this package, as transformers
makes `modeling_x.py` from `modular_x.py`. They import torch and transformers, nothing else.

`python lsg_xlmr/conversion/drop_in.py FOLDER` writes them to `FOLDER`.
"""

import ast
import re
import sys
from pathlib import Path


# The source files of each drop-in file, in the order in which they are best read: what attention sees, which
# implementation computes it, the implementations, what makes them fast on CPU, and the models. Base classes and
# decorators stand before what they are used by.
SOURCES = {
    "configuration_lsg.py": ("configuration_lsg.py",),
    "modeling_lsg_xlm_roberta.py": (
        "attention/lengths.py",
        "attention/pattern.py",
        "attention/causal_pattern.py",
        "attention/sparsity.py",
        "attention/encoder_attention.py",
        "attention/causal_attention.py",
        "attention/eager.py",
        "attention/full.py",
        "attention/windowed.py",
        "attention/flex.py",
        "attention/packed.py",
        "attention/block_mask.py",
        "attention/blocks.py",
        "attention/blockwise.py",
        "attention/compiled.py",
        "cpu/libraries.py",
        "cpu/plain.py",
        "cpu/threads.py",
        "cpu/products.py",
        "cpu/dropout.py",
        "cpu/memory.py",
        "model/checks.py",
        "model/cache.py",
        "model/mask.py",
        "model/padded_rows.py",
        "model/embeddings.py",
        "model/dense.py",
        "model/encoder.py",
        "model/labels.py",
        "model/losses.py",
        "model/frozen_head.py",
        "model/lazy_logits.py",
        "model/trained_rows.py",
        "model/modeling_lsg_xlm_roberta.py",
        "model/encoder_decoder.py",
    ),
}
LINE_LENGTH = 119
PACKAGE = Path(__file__).parents[1]


def drop_in_files():
    """
    Returns:
        `dict[str, str]`: the text of each drop-in file by its name.
    """
    return {name: _merge(name, sources) for name, sources in SOURCES.items()}


def write_drop_in_files(save_directory):
    """Write the drop-in files to `save_directory`, which must exist."""
    for name, text in drop_in_files().items():
        Path(save_directory, name).write_text(text, encoding="utf-8")


def _merge(name, sources):
    """One module with the imports, then the definitions, of all `sources`, each under its name if there are some."""
    imports, docstrings, bodies = set(), [], []
    for source in sources:
        text = (PACKAGE / source).read_text(encoding="utf-8")
        licence = text.splitlines()[0]
        nodes = ast.parse(text).body
        docstrings.append(nodes[0].value.value.strip())
        merged = [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
        for node in merged:
            module = _module(source, node)
            if module not in sources:
                imports.update((module, alias.name, alias.asname) for alias in node.names)
        bodies.append(text.split("\n", merged[-1].end_lineno)[-1].strip("\n"))
    note = "# Made from the files of lsg_xlmr/ by `python lsg_xlmr/conversion/drop_in.py .`: edit those, not this one."
    head, import_block = f"{licence}\n{note}\n", f"\n\n{_import_block(imports)}\n\n\n"
    if len(sources) == 1:
        return head + f'"""{docstrings[0].splitlines()[0]}"""' + import_block + bodies[0] + "\n"
    names = [source.removesuffix(".py") for source in sources]
    sections = [_section(*parts) for parts in zip(names, docstrings, bodies)]
    # The contents are as long whatever numbers they hold.
    before = (head + _contents(names, docstrings, names) + import_block).count("\n")
    firsts = [1 + before + sum(text.count("\n") + 3 for text in sections[:i]) for i in range(len(sections))]
    return head + _contents(names, docstrings, firsts) + import_block + "\n\n\n".join(sections) + "\n"


def _contents(names, docstrings, firsts):
    """The module's docstring: of each section its first line, its name and the first sentence of its docstring."""
    width = max(map(len, names))
    rows = [("line", "section", "what it is")]
    for name, docstring, first in zip(names, docstrings, firsts):
        sentence = re.split(r"[.:](?:\s|$)", " ".join(docstring.split()), maxsplit=1)[0]
        rows.append((first, name, sentence))
    table = [f"{first:>5}  {name:<{width}}  {sentence}" for first, name, sentence in rows]
    return "\n".join(('"""', "XLM-RoBERTa with LSG attention, in one file.", "", *table, '"""'))


def _section(name, docstring, body):
    heading = f"# ==== {name} ".ljust(LINE_LENGTH, "=")
    return "\n".join((heading, *(f"# {line}".rstrip() for line in docstring.splitlines()), "", "", body))


def _module(source, node):
    """The module that the file `source` imports from: of this package a source file or, apart from it, `.name`."""
    if isinstance(node, ast.Import):
        return ""
    if not node.level:
        return node.module
    path = Path(source).parents[node.level - 1] / f"{node.module.replace('.', '/')}.py"
    return f".{path.stem}" if path.as_posix() in SOURCES else path.as_posix()


def _import_block(imports):
    """
    Import statements, standard library first, then relative ones, whose file says where a package is too old for the
    others; one per module.
    """
    groups = {0: [], 1: [], 2: []}
    for module in sorted({module for module, _, _ in imports}):
        names = sorted(((name, alias) for origin, name, alias in imports if origin == module), key=_import_order)
        if module:
            groups[_group(module)].append(_from_import(module, names))
        else:
            for name, alias in names:
                groups[_group(name)].append(f"import {name}" + (f" as {alias}" if alias else ""))
    blocks = [sorted(lines, key=lambda line: line.startswith("from")) for lines in groups.values() if lines]
    return "\n\n".join("\n".join(lines) for lines in blocks)


def _import_order(name_and_alias):
    """Constants, then classes, then the rest, as isort has it."""
    name = name_and_alias[0]
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name.lower(), name


def _group(module):
    return 1 if module.startswith(".") else 0 if module.split(".")[0] in sys.stdlib_module_names else 2


def _from_import(module, names):
    parts = [name + (f" as {alias}" if alias else "") for name, alias in names]
    line = f"from {module} import " + ", ".join(parts)
    if len(line) <= LINE_LENGTH:
        return line
    return f"from {module} import (\n" + "".join(f"    {part},\n" for part in parts) + ")"


if __name__ == "__main__":
    write_drop_in_files(sys.argv[1])
