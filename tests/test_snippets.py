"""Every block of code in the pages is run by the check of the project, or says why not."""

import subprocess
import sys

import pytest
from repository import ROOT


sys.path.insert(0, str(ROOT / ".ci"))
from snippets import blocks  # noqa: E402


CHECK = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
PAGES = ["README.md", "SECURITY.md", "benchmarks/README.md", *sorted(f"docs/{x.name}" for x in ROOT.glob("docs/*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_says_why_not(page):
    text, found = (ROOT / page).read_text(encoding="utf-8"), blocks(ROOT / page)
    fences = [line for line in text.splitlines() if line.strip().startswith("```") and line.strip("` ")]
    assert [language for language, _, _ in found] == [line.strip("` ") for line in fences], "not seen by the check"
    assert text.count("not run: ") == sum(why is not None for _, _, why in found), "a reason stands before no block"
    for language, code, why in found:
        if why is None:
            assert language in ("bash", "python"), f"nothing runs a block of {language}: {code}"
            printed = subprocess.run(
                [sys.executable, ".ci/snippets.py", page, language],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=True,
            )
            assert code in printed.stdout
            assert page == "README.md" or page.startswith("docs/"), "the check runs no blocks of this page"


def test_the_check_runs_all_of_the_readmes_commands_and_the_pages_of_docs():
    commands = [why for language, _, why in blocks(ROOT / "README.md") if language == "bash" and why is None]
    for number in range(1, len(commands) + 1):
        assert f"commands README.md {number}" in CHECK
    assert "snippets README.md" in CHECK
    assert "for page in docs/*.md" in CHECK
    assert 'commands "$page"' in CHECK and 'snippets "$page"' in CHECK


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("examples/*.py")))
def test_every_example_is_run_by_a_test(name):
    """By its name, or as what another example imports."""
    tests = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/test_*.py"))
    examples = {path.name: path.read_text(encoding="utf-8") for path in ROOT.glob("examples/*.py")}
    module = name.removesuffix(".py")
    imported = any(f"from {module} import" in text or f"import {module}" in text for text in examples.values())
    assert name in tests or imported or module.startswith("finetune_") and module.split("_")[1] in tests
