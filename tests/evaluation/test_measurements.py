"""What `lsg-evaluate` measures, against the same computed another way."""

import math
import random

import pytest
import torch
from evaluated import SETTING
from family_folders import write_model, write_wordpiece
from transformers import XLMRobertaForMaskedLM, XLMRobertaModel

from lsg_xlmr.arguments import dictionary
from lsg_xlmr.evaluation.documents import Document, read_documents
from lsg_xlmr.evaluation.head import long_text
from lsg_xlmr.evaluation.known import Question
from lsg_xlmr.evaluation.masked_words import MaskedWords
from lsg_xlmr.evaluation.scores import Row, Score
from lsg_xlmr.evaluation.spans import LONGEST, Spans, normalized, word_f1
from lsg_xlmr.evaluation.subject import Subject
from lsg_xlmr.evaluation.tags import Tags
from lsg_xlmr.evaluation.vectors import Vectors, hold_out, packed, unpacked
from lsg_xlmr.evaluation.verdict import best_setting, in_short, verdict
from lsg_xlmr.evaluation.ways import Way, cut_windows
from lsg_xlmr.late_chunking import late_chunks


@pytest.fixture
def subject(source):
    """A function that gives the `Subject` of a source of the class named."""

    def make(architecture):
        source(architecture)
        return Subject("source", {"small": dictionary(SETTING)}, 256)

    return make


def test_windows_repeat_the_prefix():
    input_ids = torch.arange(40)
    rows, choice = cut_windows(input_ids, 12, 10, prefix=4)
    assert torch.equal(rows[:, :4], input_ids[:4].expand(len(rows), 4)) and (rows[:, -1] == 39).all()
    assert rows.shape == (5, 12)  # 7 of 35 tokens in each, none left out, however long the stride
    assert torch.equal(rows[choice[:, 0], choice[:, 1]], input_ids)


@torch.no_grad()
def test_masked_words_are_the_loss_of_the_source(subject, documents):
    head = MaskedWords(subject("XLMRobertaForMaskedLM"), [])
    text = head.item(Document("a", documents()[0]["text"]))
    model = XLMRobertaForMaskedLM.from_pretrained("source").eval()
    record = head.read(model, next(iter(head.ways())), text)
    rows, choice = cut_windows(text.extra["masked"], 64, 62)
    logits = model(rows).logits[choice[:, 0], choice[:, 1]]
    losses = torch.nn.functional.cross_entropy(logits, text.input_ids, reduction="none")[text.extra["masks"]]
    assert record["masks"] == [int(text.extra["masks"].sum())] and len(losses) > 5
    torch.testing.assert_close(record["loss"], [float(losses.sum())], atol=1e-3, rtol=1e-5)


@torch.no_grad()
def test_vectors_are_the_means_of_the_sources(subject, documents):
    rows = documents()
    head = Vectors(subject("XLMRobertaModel"), [], prompts={"query": "query: ", "passage": "passage: "})
    text = head.item(Document("a", rows[0]["text"]))
    model = XLMRobertaModel.from_pretrained("source").eval()
    chunks, truncated = (head.read(model, way, text) for way in list(head.source_ways())[:2])
    tokenizer = head.subject.tokenizer
    rest, questions = hold_out(Document("a", rows[0]["text"]))
    ids = tokenizer(f"passage: {rest}", truncation=True, max_length=64, return_tensors="pt")["input_ids"]
    expected = model(ids).last_hidden_state.mean(1)
    torch.testing.assert_close(unpacked(truncated["one"]), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(unpacked(chunks["chunks"])[:1], expected, atol=1e-5, rtol=0)
    ids = torch.tensor(tokenizer(f"query: {questions[0]}")["input_ids"])[None]
    asked = unpacked(head.beside(model, text)["questions"])
    torch.testing.assert_close(asked[:1], model(ids).last_hidden_state.mean(1), atol=1e-5, rtol=0)
    converted = next(head.subject.converted_ways())
    record, model = head.read(converted.load(), converted, text), converted.load()
    for size in (16, 64, 256):
        (late,) = late_chunks(model, [rest], tokenizer, window=size, prompt="passage: ")
        name = "one" if size == 256 else f"late {size}"
        torch.testing.assert_close(unpacked(record[name]), late.vectors, atol=1e-5, rtol=0)
    prefix = tokenizer("passage: ")["input_ids"][:-1]
    assert text.input_ids[: text.prefix].tolist() == prefix and len(prefix) > 1


def test_the_nearest_document_counts():
    east, north, both = torch.tensor([[1.0, 0]]), torch.tensor([[0, 1.0]]), torch.tensor([[0.0, 2.0], [2.0, 0]])
    records = [
        {"id": "a", "one": packed(north), "chunks": packed(both[:1]), "questions": packed(torch.cat([east, north]))},
        {"id": "b", "one": packed(east), "chunks": packed(both), "questions": packed(east)},
    ]
    head = Vectors.__new__(Vectors)
    head.similarity, head.pairs = "cosine", None
    found, vectors = head._found(records, "one")
    assert found == {"a 0": (0, 1), "a 1": (1, 1), "b 0": (1, 1)} and vectors == 1
    found, vectors = head._found(records, "chunks")
    assert found["a 0"] == (0, 1) and found["b 0"] == (1, 1) and vectors == 1.5
    # One question of both documents, asked once: each of them is right.
    head.pairs = {"a": [Question("East?", []), Question("North?", [])], "b": [Question("East?", [])]}
    assert head._found(records, "one")[0] == {"a 0": (1, 1), "a 1": (1, 1)}


@pytest.mark.parametrize(
    "text",
    [
        "\n\n".join(f"Paragraph {i} tells of things. " + "And of others. " * 10 for i in range(9)),
        " ".join(f"Sentence {i} is here." for i in range(200)),
        "".join(chr(0x4E00 + i) for i in range(3000)),
    ],
)
def test_paragraphs_are_held_out(text):
    rest, paragraphs = hold_out(Document("a", text))
    assert len(paragraphs) == 3 and (rest, paragraphs) == hold_out(Document("a", text))
    assert all(len(paragraph) >= 100 and paragraph in text and paragraph not in rest for paragraph in paragraphs)
    assert abs(len(rest) + sum(map(len, paragraphs)) - len(text)) < 10
    assert hold_out(Document("a", "Too short.")) == ("Too short.", [])


def test_tags_stand_at_the_first_token_of_each_word(subject, documents):
    text = documents()[0]["text"].replace(". ", " .\u00a0\n ")  # other blanks too
    subject = subject("XLMRobertaForTokenClassification")
    tags = [i % 2 for i, _ in enumerate(text.split())]
    item = Tags(subject, [], labels={"a": tags}).item(Document("a", text))
    tokens = subject.tokenizer.convert_ids_to_tokens(item.input_ids)
    for word, place in zip(text.split(), item.extra["places"], strict=True):
        assert word.startswith(tokens[place].lstrip("▁")[:1])
    assert item.extra["tags"] == tags
    count = Tags(subject, [], labels={"a": tags})._counts(item, [1] * len(tokens))
    assert count["right"] == sum(tag == 1 for tag in tags)


@torch.no_grad()
def test_the_tags_of_special_tokens_do_not_count(subject, documents):
    head = Tags(subject("XLMRobertaForTokenClassification"), [])
    item = head.item(Document("a", documents()[0]["text"]))
    way = next(iter(head.source_ways()))
    model = way.load()
    tags = head.read(model, way, item)["tags"]
    states = way.hidden_states(model, item.input_ids)[1:-1]
    assert tags == model.classifier(states).argmax(-1).tolist() and len(tags) == len(item.input_ids) - 2
    assert len(head.short(model, item, 40)) == 38


@pytest.mark.slow
def test_tags_stand_where_another_tokenizer_says(tmp_path, documents):
    write_model(tmp_path / "bert", "BertForTokenClassification")
    write_wordpiece(tmp_path / "bert")
    subject = Subject(tmp_path / "bert", {"small": dictionary(SETTING)}, 256)
    text = f"{documents()[0]['text']} (The\u00a0end), now."
    words = subject.tokenizer(text.split(), is_split_into_words=True).word_ids()
    item = Tags(subject, [], labels={"a": [0] * len(text.split())}).item(Document("a", text))
    assert item.extra["places"] == [words.index(i) for i, _ in enumerate(text.split())]


@torch.no_grad()
def test_the_best_span(subject, write_pairs):
    class Reader:
        """Draws logits; the same for the same tokens."""

        def __call__(self, input_ids, **inputs):
            generator = torch.Generator().manual_seed(int(input_ids.sum()))
            self.start_logits, self.end_logits = torch.randn(2, *input_ids.shape, generator=generator)
            return self

    head = Spans(subject("XLMRobertaForQuestionAnswering"), [], pairs={"a": []})
    rows = torch.randint(5, 99, (5, 50))
    reader = Reader()
    found = head._best(reader, rows, 7)
    for (score, first, last), starts, ends in zip(found, reader.start_logits, reader.end_logits, strict=True):
        spans = {(i, j): starts[i] + ends[j] for i in range(7, 49) for j in range(i, min(49, i + LONGEST))}
        assert (first, last) == max(spans, key=spans.get) and score == pytest.approx(float(spans[first, last]))


@torch.no_grad()
def test_an_answer_is_found_in_every_window(subject, documents):
    text = documents()[0]["text"].replace("Seine", "")
    text = f"{text[:300]} Seine {text[300:]}"
    subject = subject("XLMRobertaForQuestionAnswering")
    wanted = subject.tokenizer("Seine", add_special_tokens=False)["input_ids"]
    assert text.count("Seine") == 1 and len(wanted) == 1

    class Reader:
        """Looks for the one word."""

        def __call__(self, input_ids, **inputs):
            self.start_logits = self.end_logits = (input_ids == wanted[0]).float()
            return self

    head = Spans(subject, [], pairs={"a": [Question("Where is it?", ["the Seine"])]})
    (item,) = head.items(Document("a", text))
    ways = {way.name: way for way in head.ways()}
    for name in ("source, chunks of 64", "source, sliding windows", "LSG small"):
        assert head.read(Reader(), ways[name], item) == {"answer": "Seine", "f1": 1.0, "exact": 1.0}
    assert head.read(Reader(), ways["source, truncated to 64"], item)["f1"] == 0


def test_words_of_answers():
    assert normalized("The  Seine, (a river)!") == ["seine", "river"]
    assert word_f1("the river Seine", "Seine") == pytest.approx(2 / 3)
    assert word_f1("Rome", "Paris") == 0 and word_f1("the", "") == 1


def rows(score, **values):
    for name, numbers in values.items():
        name = name.replace("_", " ")
        score.add(name, Row(name, name.startswith("LSG"), {str(i): (x, 1) for i, x in enumerate(numbers)}))
    return score


def test_intervals_are_those_of_a_mean():
    rng = random.Random(0)
    values = [rng.gauss(1, 2) for _ in range(400)]
    score = rows(Score("score"), LSG=values, source=[x - 0.5 for x in values])
    mean = sum(values) / 400
    half = 1.96 * math.sqrt(sum((x - mean) ** 2 for x in values) / 400) / 20
    assert score.value("LSG") == pytest.approx(mean)
    assert score.interval("LSG") == pytest.approx([mean - half, mean + half], abs=0.03)
    assert score.interval("LSG", "source") == pytest.approx([0.5, 0.5])  # in pairs
    twice = Score("questions", "questions")
    twice.add("LSG", Row("LSG", True, {f"a b{i} {n}": (x, 1) for i, x in enumerate(values) for n in range(2)}))
    assert twice.interval("LSG") == pytest.approx(score.interval("LSG"))  # asked twice is no more evidence
    score.add("late", Row("late", True, {"3": (1, 1), "400": (1, 1)}))
    assert score.units == ["3"]


@pytest.mark.parametrize(
    "lsg, other, lower, decision",
    [
        (0.7, 0.5, False, "convert"),
        (0.7, 0.5, True, "keep the source"),
        (0.5, 0.7, False, "keep the source"),
        (0.5, 0.5, False, "no difference beyond noise, and converted is quicker"),
    ],
)
def test_verdicts(lsg, other, lower, decision):
    rng = random.Random(0)
    noise = [rng.gauss(0, 0.2) for _ in range(100)]
    score = rows(
        Score("score", lower_is_better=lower, percent=True),
        LSG_defaults=[lsg + x for x in noise],
        LSG_lucky=[lsg + x for x in noise[1:] + noise[:1]],
        source=[other + x for x in reversed(noise)],
    )
    seconds = {"LSG defaults": 1.0, "LSG lucky": 1.0, "source": 2.0}
    found = verdict(score, seconds)
    assert found.decision == decision and "LSG defaults: " in found.line and "100 documents" in found.line
    assert in_short({"score": found}) == f"In short: {decision}."
    if decision.startswith("no"):
        assert "convert for the time" in found.line
        assert "nothing speaks for converting" in verdict(score, {**seconds, "LSG defaults": 2.0}).line
    score.is_agreement = True
    if decision == "keep the source":
        decision = "not known without labels"
    found = verdict(score, seconds)
    assert found.decision == decision
    few = rows(Score("few"), LSG=[1.0] * 19, source=[0.0] * 19)
    assert verdict(few, {"LSG": 1, "source": 1}).decision == "too few to say"
    both = in_short({"score": found, "few": verdict(few, {"LSG": 1, "source": 1})})
    assert both == f"In short: {decision} (score); too few to say (few)."
    assert verdict(rows(Score("none"), LSG=[1.0]), {}) is None


def test_of_few_documents_no_setting_is_better_and_one_has_no_interval():
    score = rows(Score("score"), LSG_a=[0] * 19, LSG_b=[1] * 19, source_a=[0] * 19, source_b=[1] * 19)
    assert score.best(is_converted=True) == "LSG a" and score.best(is_converted=False) == "source a"
    assert best_setting(score) is None
    assert "(0.0 to 0.0, 95 %".replace("0.0", "+0.0") in verdict(score, {"LSG a": 1, "source a": 1}).line
    one = rows(Score("score"), LSG=[1], source=[0])
    assert one.interval("LSG") is one.interval("LSG", "source") is None and one.told_interval("LSG") == ""
    assert "difference +1.0 (1 document): fewer than 20" in verdict(one, {"LSG": 1, "source": 1}).line


def test_the_source_must_be_better_by_more_than_chance_too():
    score = rows(Score("score"), LSG=[1] * 40, source_a=[0, 1] * 20, source_b=[1, 0] * 19 + [1, 1], source_c=[2] * 40)
    assert score.best(is_converted=False) == "source c"
    del score.rows["source c"]
    assert score.best(is_converted=False) == "source a"


def test_another_setting_must_be_better_by_more_than_chance():
    score = rows(Score("score"), LSG_a=[0, 1] * 20, LSG_b=[1, 0] * 20 + [], LSG_c=[1] * 40, source=[0] * 40)
    assert score.best(is_converted=True) == "LSG c"
    assert "LSG c (1.0), better than LSG a by more than noise; the others: LSG a (0.5)" in best_setting(score)
    del score.rows["LSG c"]
    assert score.best(is_converted=True) == "LSG a"
    assert "LSG a (0.5), none is better by more than noise; the others: LSG b (0.5)" in best_setting(score)
    del score.rows["LSG b"]
    assert best_setting(score) is None


def test_documents_of_every_kind(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.md").write_text("\ufeffB", encoding="utf-8")
    (tmp_path / "a.txt").write_text("A é", encoding="utf-8")
    (tmp_path / "rows.JSONL").write_text('{"text": "C", "id": 7, "kind": "x"}\n\n{"text": "D"}\n{"text": " "}\n')
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "c.txt").write_text("hidden")
    (tmp_path / "more.csv").touch()
    (tmp_path / "in" / "more.jsonl.gz").touch()
    corpus = read_documents(tmp_path)
    found = corpus.documents
    assert corpus.blank == ["rows.JSONL:4"] and corpus.passed_over == ["in/more.jsonl.gz", "more.csv"]
    assert [*corpus.told()] == [
        "Without text, and left out: 1 document (rows.JSONL:4).",
        "Not read, since their names end in none of .txt, .md, .jsonl, .parquet: 2 files (in/more.jsonl.gz, "
        "more.csv).",
    ]
    assert [(document.id, document.text) for document in found] == [
        *(("a.txt", "A é"), ("in/b.md", "B"), ("7", "C"), ("rows.JSONL:3", "D"))
    ]
    assert found[2].row == {"kind": "x"}


def test_a_document_that_the_source_reads_is_left_out(subject, documents):
    subject = subject("XLMRobertaForMaskedLM")
    text = documents()[0]["text"]
    assert long_text(Document("a", text[:80]), subject) is None
    assert len(long_text(Document("a", f"{text} " * 9), subject).input_ids) == 256
    whole = Way("whole", None)
    assert torch.equal(whole.windows(torch.arange(9)), torch.arange(9)[None])
