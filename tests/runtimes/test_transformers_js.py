"""transformers.js on node and in Chromium: pipelines and the page of `examples/browser`, against PyTorch."""

import json
import subprocess
import sys

import pytest
import torch
from repository import ROOT
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer


pytestmark = pytest.mark.runtimes

SHORT = "Paris is the capital of France."
LONG = "The Seine flows through France. " * 220
MASKED = "Paris is the <mask> of France."


@pytest.fixture(scope="module")
def address(site):
    """Of `site` served by `python -m http.server`."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", site]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    port = server.stdout.readline().split(" port ")[1].split()[0]  # Serving HTTP on 127.0.0.1 port 40000 (...)
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait()


@pytest.fixture
def ask(runtimes):
    """A function that gives what a script of `benchmarks/serving` answers to a question."""

    def ask_script(script, version, **question):
        command = ["node", ROOT / "benchmarks" / "serving" / script, runtimes / version / "node_modules"]
        done = subprocess.run(command, input=json.dumps(question), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return ask_script


@pytest.fixture
def page(ask, address):
    """A function that gives what the page shows of a text."""

    def run_page(folder, text, parameters="", **question):
        url = f"{address}/examples/browser/?library=node_modules&model={folder}{parameters}"
        return ask("by_browser.cjs", "newest", url=url, text=text, **question)

    return run_page


@torch.no_grad()
def embedding(folder, text):
    inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    states = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()(**inputs).last_hidden_state
    return torch.nn.functional.normalize(states[0].mean(0), dim=0)


@torch.no_grad()
def best_words(folder, text):
    """The id and the probability of the best word for each mask."""
    inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    logits = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()(**inputs).logits
    mask_token_id = AutoTokenizer.from_pretrained(folder).mask_token_id
    return [
        tuple(x.item() for x in row.softmax(-1).max(-1))[::-1] for row in logits[inputs.input_ids == mask_token_id]
    ]


@pytest.mark.parametrize("version", ["oldest", "newest"])
def test_feature_extraction(site, ask, version):
    texts, options = [SHORT, LONG], {"pooling": "mean", "normalize": True}
    expected = torch.stack([embedding(site / "embedder", text) for text in texts])
    for dtype in ("fp32", "q8"):
        question = {"folder": str(site / "embedder"), "task": "feature-extraction", "dtype": dtype, "options": options}
        found = torch.tensor(ask("by_node.cjs", version, texts=texts, **question)["answers"])
        if dtype == "fp32":
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        else:
            assert (found * expected).sum(-1).min() > 0.99


@pytest.mark.parametrize("version", ["oldest", "newest"])
@pytest.mark.parametrize("dtype, tolerance", [("fp32", 1e-5), ("q8", 0.02)])
def test_fill_mask(site, ask, version, dtype, tolerance):
    texts = [MASKED, LONG + MASKED]
    folder = site / "all-logits"
    question = {"folder": str(folder), "task": "fill-mask", "dtype": dtype, "texts": texts}
    for text, found in zip(texts, ask("by_node.cjs", version, **question)["answers"], strict=True):
        ((word, probability),) = best_words(folder, text)
        assert found[0]["token"] == word
        assert found[0]["score"] == pytest.approx(probability, abs=tolerance)


@pytest.mark.parametrize("dtype, tolerance", [("fp32", 2e-5), ("q8", 0.02)])
def test_the_page_embeds_long_documents(site, page, dtype, tolerance):
    documents, query = ["Rome is the capital of Italy. " * 300, LONG], "Which river flows through France?"
    found = page("embedder", "\n---\n".join(documents), f"&dtype={dtype}", query=query)
    assert found["loaded"].startswith("embedder is ready") and found["done"] == "Done."
    vectors = [embedding(site / "embedder", text) for text in documents]
    sought = embedding(site / "embedder", query)
    tokenizer = AutoTokenizer.from_pretrained(site / "embedder")
    heads, *rows = found["rows"]
    assert heads == ["similarity", "document", "tokens", "seconds", "vector of 128 numbers"]
    # The Seine's document, the second, is the nearest.
    for i, row in zip((1, 0), rows, strict=True):
        similarity, beginning, tokens, _, numbers = row
        assert float(similarity) == pytest.approx((vectors[i] @ sought).item(), abs=5 * tolerance)
        assert beginning == documents[i][:100] and int(tokens) == len(tokenizer(documents[i]).input_ids)
        shown = torch.tensor([float(x) for x in numbers.split(", ")])
        torch.testing.assert_close(shown, vectors[i], atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", ["masked-lm", "all-logits"])
def test_the_page_fills_masks(site, page, name):
    text = f"{MASKED} {LONG} Rome is the <mask> of Italy."
    (heads, *rows) = page(name, text)["rows"]
    assert heads == ["mask at token", "words", "tokens of the text", "seconds"]
    tokenizer = AutoTokenizer.from_pretrained(site / name)
    ids = tokenizer(text).input_ids
    places = [i for i, token in enumerate(ids) if token == tokenizer.mask_token_id]
    for place, (word, probability), row in zip(places, best_words(site / name, text), rows, strict=True):
        assert row[0] == str(place) and row[2] == str(len(ids))
        best, percent, *_ = row[1].split()
        assert best == tokenizer.decode([word]).strip()
        assert float(percent) / 100 == pytest.approx(probability, abs=0.02)


@pytest.mark.parametrize(
    "folder, text, line",
    [
        ("embedder", LONG * 2, "The text has 7922 tokens, and the model takes 4096 at most: shorten it."),
        ("masked-lm", SHORT, "There is no <mask> in the text: put one where a word is missing."),
        ("missing", "", "This server has no missing/config.json: start it where the folder lies."),
        ("", "", "Name the folder of a checkpoint in the address: ?model=tiny-lsg-onnx"),
        (
            "headless",
            "",
            "headless is a LSGXLMRobertaForTokenClassification; this page runs embedders and masked LMs.",
        ),
    ],
)
def test_the_page_says_in_a_line_what_is_wrong(site, page, folder, text, line):
    (site / "headless").mkdir(exist_ok=True)
    config = {"architectures": ["LSGXLMRobertaForTokenClassification"]}
    (site / "headless" / "config.json").write_text(json.dumps(config))
    found = page(folder, text)
    assert found.get("done", found["loaded"]) == line


def test_the_page_asks_jsdelivr_for_the_version_that_is_tested(runtimes):
    installed = json.loads((runtimes / "newest/node_modules/@huggingface/transformers/package.json").read_text())
    assert f"@huggingface/transformers@{installed['version']}'" in (ROOT / "examples/browser/worker.js").read_text()
