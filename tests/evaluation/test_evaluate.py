"""`lsg-evaluate` through its command line: every head, going on, the time, and what it refuses."""

import json
import signal
from pathlib import Path

import pytest
import torch
from evaluated import SETTING, options
from transformers import AutoTokenizer

from lsg_xlmr.evaluate import main
from lsg_xlmr.evaluation import measure


NAME = "LSG block_size=8, sparse_block_size=8"
HEADS = {
    "XLMRobertaForMaskedLM": ["loss of masked words, nats", "masked words filled right"],
    "XLMRobertaForSequenceClassification": ["documents classified right", "answers as sliding windows give them"],
    "XLMRobertaForTokenClassification": ["F1 of the tags", "tags as sliding windows give them"],
    "XLMRobertaForQuestionAnswering": [
        *("F1 of the answers' words", "answers exactly right", "answers as sliding windows give them"),
    ],
    "XLMRobertaModel": ["documents found first, one vector each", "documents found first, several vectors each"],
    "BertForQuestionAnswering": ["answers as sliding windows give them"],
    "BertForMaskedLM": ["loss of masked words, nats", "masked words filled right"],
    "RobertaForTokenClassification": ["tags as sliding windows give them"],
}
SLOW = ("RobertaForTokenClassification", "BertForMaskedLM", "BertForQuestionAnswering")


def known(architecture, documents, write_pairs):
    """The options for a head of that name, and what they name."""
    if architecture == "XLMRobertaForSequenceClassification":
        documents(label=["LABEL_0", "LABEL_1", "LABEL_0", 1])
        return ["--labels", "label"]
    if architecture == "XLMRobertaForTokenClassification":
        texts = [row["text"] for row in documents()]
        documents(tags=[[f"LABEL_{i % 2}" for i, _ in enumerate(text.split())] for text in texts])
        return ["--labels", "tags"]
    rows = documents()
    if architecture.endswith("QuestionAnswering"):
        has_answer = architecture.startswith("XLM")
        answers = [row["text"].split(". ")[-1] if has_answer else None for row in rows]
        write_pairs([{"question": "Where?", "id": row["id"], "answer": x} for row, x in zip(rows, answers)])
        return ["--pairs", "pairs.jsonl"]
    if architecture == "XLMRobertaModel":
        write_pairs([{"question": row["text"][:60], "id": row["id"]} for row in rows])
        return ["--pairs", "pairs.jsonl", "--prompts", "{'query': 'query: ', 'document': 'passage: '}"]
    return []


@pytest.mark.parametrize("architecture", [pytest.param(x, marks=[pytest.mark.slow] * (x in SLOW)) for x in HEADS])
def test_every_head(architecture, source, documents, write_pairs, capsys):
    source(architecture)
    assert main(options(*known(architecture, documents, write_pairs))) == 0
    printed = capsys.readouterr().out
    results = json.loads(Path("out/results.json").read_text())
    assert list(results["scores"]) == HEADS[architecture]
    for title, rows in results["scores"].items():
        assert any(name.startswith(NAME) for name in rows) and any(name.startswith("source") for name in rows)
        for row in rows.values():
            low, high = row["interval"]
            assert low <= row["value"] + 1e-9 and row["value"] <= high + 1e-9
            assert row.get("documents") == 4 or row.get("questions") == 4
            assert row["way"] in results["costs"]
        assert title in printed
    assert all(cost["seconds"] > 0 for cost in results["costs"].values())
    assert 0 <= results["short"][NAME]["64"] <= 1
    assert "In short: too few to say." in printed
    page = Path("out/report.md").read_text()
    assert "**In short: too few to say.**" in page and "4 of 4 documents were looked at" in page
    assert sorted(path.name for path in Path("out/measured").iterdir()) == sorted(
        f"{'-'.join(way.replace(',', '').replace('=', '-').replace('_', '-').split())}.jsonl"
        for way in results["costs"]
    )


@torch.no_grad()
def test_several_classes_and_labels_from_a_file(source, documents, capsys):
    fields = {"problem_type": "multi_label_classification", "num_labels": 3}
    model = source("XLMRobertaForSequenceClassification", **fields)
    rows, right, hits, count = documents(), 0, 0, 0
    tokenizer = AutoTokenizer.from_pretrained("source")
    with open("labels.jsonl", "w") as file:
        for i, row in enumerate(rows):
            inputs = tokenizer(row["text"], truncation=True, max_length=64, return_tensors="pt")
            found = set((model(**inputs).logits[0] > 0).nonzero().flatten().tolist())
            wanted = found if i < 3 else found ^ {0}
            print(json.dumps({"id": row["id"], "label": [f"LABEL_{number}" for number in wanted]}), file=file)
            right, hits, count = (
                right + (found == wanted),
                hits + 2 * len(found & wanted),
                count + len(found) + len(wanted),
            )
    assert main(options("--labels", "labels.jsonl")) == 0
    scores = json.loads(Path("out/results.json").read_text())["scores"]
    assert list(scores) == ["documents classified right", "F1 of the classes", "answers as sliding windows give them"]
    assert scores["documents classified right"]["source, truncated to 64"]["value"] == right / 4 == 0.75
    assert scores["F1 of the classes"]["source, truncated to 64"]["value"] == pytest.approx(hits / count)
    capsys.readouterr()
    Path("labels.jsonl").write_text('{"id": "d9", "label": []}\n')
    assert main(options("--labels", "labels.jsonl")) == 2
    assert "labels.jsonl has labels of d9, which are no ids of the documents" in capsys.readouterr().err
    Path("labels.jsonl").write_text('{"id": "d0", "label": []}\n' * 2)
    assert main(options("--labels", "labels.jsonl")) == 2
    assert "labels.jsonl, row 2 is a second label of document 'd0'" in capsys.readouterr().err
    Path("out/results.json").write_text("{")
    documents(label=[[]] * 4)
    assert main(options("--labels", "label")) == 2
    assert "out/results.json is no file of an evaluation" in capsys.readouterr().err


def test_it_goes_on_where_it_was_stopped(source, documents, capsys, monkeypatch):
    source("XLMRobertaForMaskedLM")
    documents()
    read, count = measure._read, []

    def stop_at_six(*args):
        count.append(args)
        if len(count) == 6:
            signal.raise_signal(signal.SIGINT)
        return read(*args)

    monkeypatch.setattr(measure, "_read", stop_at_six)
    assert main(options()) == 130
    told = capsys.readouterr()
    assert "loss of masked words" in told.out  # of what was measured
    assert "stopped; what was measured is in out, and the same command goes on." in told.err
    with open("out/measured/source-sliding-windows.jsonl", "a") as file:
        file.write('{"id": "d1", "sec')  # a line that a kill cut off
    monkeypatch.setattr(measure, "_read", lambda *args: count.append(args) or read(*args))
    assert main(options()) == 0
    assert len(count) - 6 == 3 * 4 - 5
    whole = json.loads(Path("out/results.json").read_text())["scores"]
    assert main([*options("--settings", SETTING, "local"), "--minutes", "1e-9"]) == 0  # another setting, no time
    assert len(count) - 6 == 3 * 4 - 5
    told = capsys.readouterr().out
    assert "There was too little time for LSG local" in told
    assert json.loads(Path("out/results.json").read_text())["scores"] == whole
    Path("out/measured/LSG-local.jsonl").write_text("[1]\n")
    assert main(options("--settings", SETTING, "local")) == 2
    assert "out/measured/LSG-local.jsonl is damaged: delete it" in capsys.readouterr().err
    assert main([*options(), "--output", "again"]) == 0
    again = json.loads(Path("again/results.json").read_text())["scores"]
    for title, rows in whole.items():
        for name, row in rows.items():
            assert again[title][name]["value"] == pytest.approx(row["value"], abs=1e-5)


def test_time_is_bounded(source, documents, capsys, monkeypatch):
    source("XLMRobertaForMaskedLM")
    documents(10)
    ticks = iter(range(10**6))
    monkeypatch.setattr(measure, "clock", lambda: next(ticks))
    # A tick for the beginning, one for each way, one for each reading: two documents in three ways are over at tick 9,
    # eight more in two ways at 27, and in the last there is time for six.
    assert main(options("--minutes", str(35 / 60))) == 0
    told = capsys.readouterr().out
    assert "2 of 10 documents were left out for want of time: run the same command again, and it goes on." in told
    results = json.loads(Path("out/results.json").read_text())
    lines = [len(path.read_text().splitlines()) for path in Path("out/measured").iterdir()]
    assert sorted(lines) == [8, 10, 10]
    assert results["scores"]["loss of masked words, nats"][NAME]["documents"] == 8
    assert main([*options("--minutes", "1e-9"), "--output", "other"]) == 0
    assert "Nothing was measured in 1e-09 minutes: give more by --minutes." in capsys.readouterr().out


def test_without_globals_short_texts_stay_as_they_were(source, documents):
    source("XLMRobertaModel")
    documents()
    assert main(options("--settings", "no-globals", SETTING)) == 0
    short = json.loads(Path("out/results.json").read_text())["short"]
    assert abs(short["LSG no-globals"]["64"] - 1) < 1e-6 and short[NAME]["64"] < 1 - 1e-6


def test_short_documents_need_no_conversion(source, documents, capsys):
    source("XLMRobertaForMaskedLM")
    documents(sentences=2)
    assert main(options()) == 0
    told = capsys.readouterr().out
    assert "Of 4 documents none has more than the 64 tokens that source reads as it is" in told
    assert "Keep the source." in told


def test_one_document_has_no_interval(source, documents, capsys):
    source("XLMRobertaForMaskedLM")
    documents(1)
    assert main(options("--settings", SETTING, "local")) == 0
    told = capsys.readouterr().out
    assert "1 of 1 document were looked at" in told and "converted 256. 1 document of" in told
    assert "Settings" not in told and " to " not in told.split("| LSG local")[0].split("95 %")[1]
    (rows, *_) = json.loads(Path("out/results.json").read_text())["scores"].values()
    assert rows["LSG local"]["interval"] is None and Path("out/report.md").is_file()


@pytest.mark.parametrize("architecture", ["XLMRobertaForQuestionAnswering", "XLMRobertaModel"])
def test_questions_of_short_documents(architecture, source, documents, write_pairs, capsys):
    source(architecture)
    rows = documents(5)
    rows[0]["text"], rows[1]["text"] = "It is short.", " "
    Path("documents.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_pairs([{"question": "Where?", "id": "d0"}, {"question": "When?", "id": "d1"}])
    assert main(options("--pairs", "pairs.jsonl")) == 0
    told = capsys.readouterr().out
    assert "Without text, and left out: 1 document (d1)." in told
    assert "Of 1 document that --pairs asks for none has more than the 64 tokens" in told
    assert not Path("out").exists()  # nothing was measured
    write_pairs([{"question": f"Where is {i}?", "id": f"d{i}"} for i in range(3)])
    assert main(options("--pairs", "pairs.jsonl")) == 0
    notes = json.loads(Path("out/results.json").read_text())["notes"]
    assert f"{2 if 'Question' in architecture else 4} of 4 documents were looked at, drawn with seed 0." in notes
    assert "Left out, since the source reads them whole: 1 document." in notes
    assert "Left out with documents that the source reads whole: 1 question of --pairs." in notes
    assert "Left out with documents without text: 1 question of --pairs." in notes


@pytest.mark.parametrize("kind", ["text", pytest.param("seed", marks=pytest.mark.slow)])
def test_other_arguments_and_documents_are_noticed(kind, source, documents, capsys):
    source("XLMRobertaForMaskedLM")
    documents()
    assert main(options()) == 0
    if kind == "text":
        documents(5)
        expected = "--output out holds another evaluation: the content of DOCUMENTS changed. Name a new"
        arguments = options()
    else:
        expected = "--output out holds another evaluation: --seed was 0 and is 1. Name a new folder"
        arguments = options("--seed", "1")
    before = Path("out/results.json").read_bytes()
    capsys.readouterr()
    assert main(arguments) == 2
    assert expected in capsys.readouterr().err
    assert Path("out/results.json").read_bytes() == before
