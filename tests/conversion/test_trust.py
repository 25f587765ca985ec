"""What the two files that run with `trust_remote_code` can do at most, by their syntax tree."""

import ast

import pytest
from repository import ROOT


CODE = ("configuration_lsg.py", "modeling_lsg_xlm_roberta.py")
IMPORTS = {
    "configuration_lsg.py": {"inspect", "math", "pathlib", "re", "shutil", "transformers"},
    "modeling_lsg_xlm_roberta.py": {
        *("collections", "concurrent", "contextlib", "contextvars", "copy", "dataclasses", "functools", "inspect"),
        *("itertools", "math", "os", "pathlib", "re", "threading", "types", "typing"),
        *("torch", "transformers", "configuration_lsg"),
    },
}
# What `os` is imported for: to be told of forks.
OF_OS = {"register_at_fork"}
RUNS_DATA = {"eval", "exec", "compile", "__import__", "breakpoint", "input", "open"}
ATTRIBUTES = {
    *(
        "environ",
        "getenv",
        "putenv",
        "system",
        "popen",
        "spawn",
        "fork",
        "kill",
        "remove",
        "unlink",
        "rmdir",
        "rmtree",
    ),
    *("socket", "urlopen", "load", "loads", "import_module", "exec_module", "load_module", "loadtxt", "ctypes"),
}


@pytest.fixture(params=CODE)
def name(request):
    return request.param


@pytest.fixture
def nodes(name):
    return list(ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))))


def test_imports_what_is_named_here_and_nothing_else(name, nodes):
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {module.split(".")[0] for module in modules} <= IMPORTS[name]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    inner = [node for function in functions for node in ast.walk(function) if isinstance(node, ast.Import)]
    assert not inner


def test_reads_no_environment_and_opens_no_socket(nodes):
    names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    names |= {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert not names & ATTRIBUTES


def test_takes_of_the_system_what_is_named_here(nodes):
    of_os = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
    }
    assert of_os <= OF_OS


def test_runs_no_code_from_data(nodes):
    called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & RUNS_DATA


def test_writes_nothing_but_copies_of_itself(name, nodes):
    written = [
        node
        for node in nodes
        if isinstance(node, ast.Attribute) and node.attr in {"copyfile", "write_text", "write_bytes", "save", "touch"}
    ]
    assert len(written) == (1 if name == "configuration_lsg.py" else 0)


def test_every_function_taken_by_its_name_is_a_literal(nodes):
    """`getattr` with a name that comes from data could call anything."""
    calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    for call in (call for call in calls if call.func.id == "getattr"):
        owner = ast.unparse(call.args[0])
        assert isinstance(call.args[1], ast.Constant) or owner in ("self", "torch.ops"), ast.unparse(call)
