# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""
Makes the two self-contained files that travel with a checkpoint from the small files of this package, as transformers
makes `modeling_x.py` from `modular_x.py`. They import torch and transformers, nothing else.

`python lsg_xlmr/conversion/drop_in.py FOLDER` writes them to `FOLDER`.
"""

import ast
import sys
from pathlib import Path


# The source files of each drop-in file, in the order in which their definitions must stand.
SOURCES = {
    "configuration_lsg.py": ("configuration_lsg.py",),
    "modeling_lsg_xlm_roberta.py": (
        "cpu/memory.py",
        "cpu/threads.py",
        "cpu/dropout.py",
        "attention/sparsity.py",
        "attention/pattern.py",
        "attention/eager.py",
        "attention/full.py",
        "attention/windowed.py",
        "attention/flex.py",
        "attention/blocks.py",
        "attention/blockwise.py",
        "attention/compiled.py",
        "attention/encoder_attention.py",
        "attention/causal_pattern.py",
        "attention/causal_attention.py",
        "model/cache.py",
        "model/checks.py",
        "model/embeddings.py",
        "model/encoder.py",
        "model/lazy_logits.py",
        "model/labels.py",
        "model/losses.py",
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
    """One module with the imports, then the definitions, of all `sources`."""
    imports, sections, licence = set(), [], None
    for source in sources:
        text = (PACKAGE / source).read_text(encoding="utf-8")
        licence = text.splitlines()[0]
        nodes = ast.parse(text).body
        docstring, nodes = nodes[0].value.value.strip(), nodes[1:]
        merged = [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
        for node in merged:
            module = _module(source, node)
            if module not in sources:
                imports.update((module, alias.name, alias.asname) for alias in node.names)
        body = text.split("\n", merged[-1].end_lineno)[-1].strip("\n")
        if len(sources) > 1:
            body = "\n".join(f"# {line}".rstrip() for line in docstring.splitlines()) + f"\n\n\n{body}"
        sections.append(body)
    title = docstring.splitlines()[0] if len(sources) == 1 else "XLM-RoBERTa with LSG attention, in one file."
    note = "# Made from the files of lsg_xlmr/ by `python lsg_xlmr/conversion/drop_in.py .`: edit those, not this one."
    return "\n".join((licence, note, f'"""{title}"""', "", _import_block(imports), "\n", "\n\n\n".join(sections), ""))


def _module(source, node):
    """The module that the file `source` imports from: of this package a source file or, apart from it, `.name`."""
    if isinstance(node, ast.Import):
        return ""
    if not node.level:
        return node.module
    path = Path(source).parents[node.level - 1] / f"{node.module.replace('.', '/')}.py"
    return f".{path.stem}" if path.as_posix() in SOURCES else path.as_posix()


def _import_block(imports):
    """Import statements, standard library first, relative last, one per module."""
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
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def _group(module):
    return 2 if module.startswith(".") else 0 if module.split(".")[0] in sys.stdlib_module_names else 1


def _from_import(module, names):
    parts = [name + (f" as {alias}" if alias else "") for name, alias in names]
    line = f"from {module} import " + ", ".join(parts)
    if len(line) <= LINE_LENGTH:
        return line
    return f"from {module} import (\n" + "".join(f"    {part},\n" for part in parts) + ")"


if __name__ == "__main__":
    write_drop_in_files(sys.argv[1])
