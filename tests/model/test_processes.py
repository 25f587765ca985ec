"""One model in several threads and in forked processes."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from repository import ROOT
from transformers import AutoModelForMaskedLM
from transformers.utils import HF_MODULES_CACHE

from lsg_xlmr import LSGXLMRobertaForCausalLM, LSGXLMRobertaForMaskedLM


# What a server does that forks its workers after it has warmed the model up.
FORK = """
import multiprocessing, sys
import torch
from lsg_xlmr import LSGConfig, LSGXLMRobertaModel

def work(seed):
    torch.set_num_threads(1)  # as torch's own DataLoader does in its workers
    return answer(seed)

def answer(seed):
    ids = torch.randint(5, 99, (1, 400), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model(ids).last_hidden_state.sum(-1).tolist()

config = LSGConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37,
                   max_position_embeddings=514, block_size=8, sparse_block_size=8)
model = LSGXLMRobertaModel(config).eval()
expected = [answer(seed) for seed in range(8)]
with multiprocessing.get_context("fork").Pool(2) as pool:
    found = pool.map(work, range(8))
torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=1e-4)
torch.testing.assert_close(torch.tensor(answer(3)), torch.tensor(expected[3]), rtol=0, atol=1e-4)
"""


@pytest.mark.parametrize("model_class", [LSGXLMRobertaForMaskedLM, LSGXLMRobertaForCausalLM])
@pytest.mark.parametrize("sparsity_type", ["norm", "lsh"])
def test_eight_threads_give_what_one_gives(tiny_config, token_ids, model_class, sparsity_type):
    is_decoder = model_class is LSGXLMRobertaForCausalLM
    model = model_class(tiny_config(sparsity_type=sparsity_type, is_decoder=is_decoder)).eval()
    texts = [token_ids(1, 10 + 15 * i) for i in range(8)] * 4

    def answer(ids):
        with torch.no_grad():
            return model(ids).logits

    expected = [answer(ids) for ids in texts]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(answer, texts))
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_threads_with_gradients(tiny_config, token_ids):
    model = LSGXLMRobertaForMaskedLM(tiny_config()).eval()
    texts = [token_ids(1, 10 + 15 * i) for i in range(8)]

    def gradient(ids):
        loss = model(ids, labels=ids).loss
        return torch.autograd.grad(loss, model.roberta.embeddings.word_embeddings.weight)[0]

    expected = [gradient(ids) for ids in texts]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(gradient, texts))
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
def test_workers_forked_after_a_first_call():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", FORK], env=environment, capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]


# A fresh process: `{lines}` are those of the documentation.
UNPICKLE = """
import sys
import torch
{lines}
model = torch.load(sys.argv[1], weights_only=False)
torch.save(model(torch.arange(5, 45)[None]).logits.detach(), sys.argv[2])
"""


def lines_of_documentation(words):
    text = (ROOT / "docs/ecosystem.md").read_text(encoding="utf-8")
    return next(block for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if words in block)


@pytest.mark.parametrize("lines", ["", lines_of_documentation("\ninit_hf_modules()")], ids=["without", "with"])
def test_a_pickled_model_in_a_fresh_process(tiny_config, tmp_path, lines):
    LSGXLMRobertaForMaskedLM(tiny_config()).save_pretrained(tmp_path / "model")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "model", trust_remote_code=True).eval()
    torch.save(model, tmp_path / "model.pt")
    command = [sys.executable, "-c", UNPICKLE.format(lines=lines), tmp_path / "model.pt", tmp_path / "logits.pt"]
    environment = {**os.environ, "HF_MODULES_CACHE": HF_MODULES_CACHE}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    if not lines:
        assert "No module named 'transformers_modules'" in done.stderr
        return
    assert done.returncode == 0, done.stderr[-2000:]
    expected = model(torch.arange(5, 45)[None]).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, rtol=0, atol=1e-5)
