"""The wings of `lsg_xlmr/`: each imports only what stands below it."""

import ast

import pytest
from repository import ROOT


PACKAGE = ROOT / "lsg_xlmr"
# From the ground up: a wing is a folder, or a file that stands alone.
WINGS = (
    *("version", "configuration_lsg", "cpu", "attention", "model", "conversion", "onnx", "late_chunking"),
    *("evaluation", "arguments", "cli", "evaluate", "__init__", "__main__"),
)


def parts(path):
    return path.relative_to(PACKAGE).with_suffix("").parts


def imported(path):
    """What a file imports of the package, each as the parts of its path below `lsg_xlmr/`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".") if node.module else []
            if node.level:
                module = ["lsg_xlmr", *parts(path)[: -node.level], *module]
            # `from . import x` imports the file x, if there is one
            modules = [
                [*module, alias.name] if PACKAGE.joinpath(*module[1:], f"{alias.name}.py").is_file() else module
                for alias in node.names
            ]
        else:
            continue
        yield from (tuple(module[1:]) or ("__init__",) for module in modules if module[0] == "lsg_xlmr")


FILES = sorted(path for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(parts(path)))
def test_imports_only_what_stands_below(path):
    wing = WINGS.index(parts(path)[0])
    above = {module for module in imported(path) if WINGS.index(module[0]) > wing}
    assert not above


def test_there_are_these_rooms():
    folders = {parts(path)[0] for path in FILES if len(parts(path)) > 1}
    assert folders == {"cpu", "attention", "model", "conversion", "onnx", "late_chunking", "evaluation"}
    assert {parts(path)[0] for path in FILES} == set(WINGS)


def test_the_imports_of_files_run_in_no_circle():
    below = {parts(path): set(imported(path)) for path in FILES}
    while below:
        free = {module for module, needed in below.items() if not needed & (below.keys() - {module})}
        assert free, f"a circle among {sorted('/'.join(module) for module in below)}"
        below = {module: needed for module, needed in below.items() if module not in free}
