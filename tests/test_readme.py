"""The README's Python snippets, in order, in a folder where its first command has been run; and what git ignores."""

import re
import subprocess

import pytest
from repository import ROOT

from lsg_xlmr.cli import main


@pytest.mark.filterwarnings("ignore")
def test_snippets_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(ROOT / "models")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    arguments = re.search(r"lsg-convert (--initial_model models/tiny-xlm-roberta .*?) &&", readme)[1].split()
    assert main(arguments) == 0
    snippets = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert len(snippets) >= 6
    namespace = {}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "Paris is the capital of France." in printed
    assert "['roberta.embeddings.global_embeddings.weight']" in printed


# How the commands and snippets name what they write.
WRITTEN = re.compile(
    r"--(?:model_name|output|output_dir|plot)[ =]([\w./-]+)"
    r"|(?:save_pretrained|save_model|TrainingArguments)\(['\"]([\w./-]+)['\"]"
)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_what_a_page_tells_to_write_is_ignored_by_git(page):
    blocks = re.findall(r"```(?:bash|python)\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    written = sorted({"".join(names).removeprefix("./") for block in blocks for names in WRITTEN.findall(block)})
    for name in written:
        name = name if "." in name else f"{name}/"
        ignored = subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT)
        assert ignored.returncode == 0, f"{page} writes {name}, which is not in .gitignore"
    assert written or page != "README.md"
