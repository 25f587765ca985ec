"""The README's Python snippets, in order, in a folder where its first command has been run."""

import re

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
