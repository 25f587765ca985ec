"""What `lsg-evaluate` is given and cannot take: one line with the way out, and nothing is measured."""

import json
from pathlib import Path

import pytest
from evaluated import SETTING, options

from lsg_xlmr.evaluate import main


TEXT = "This is a text. " * 40


def lines(name, *rows):
    content = "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    Path(name).write_text(content, encoding="utf-8")


MASKED, CLASSES, TAGS, READER = (
    f"XLMRobertaFor{kind}"
    for kind in ("MaskedLM", "SequenceClassification", "TokenClassification", "QuestionAnswering")
)
ONE = {"id": "a", "text": TEXT}
DOCUMENTS = {
    "no documents": (lambda: Path("documents.jsonl").write_text(""), "There are no documents in 'documents.jsonl'"),
    "no file": (lambda: Path("documents.jsonl").unlink(), "There are no documents in 'documents.jsonl': it does not"),
    "another ending": (
        lambda: (
            Path("documents.jsonl").unlink(),
            Path("documents.jsonl").mkdir(),
            Path("documents.jsonl/a.csv").touch(),
        ),
        "it takes files that end in .txt, .md, .jsonl, .parquet",
    ),
    "a name not in UTF-8": (
        lambda: (
            Path("documents.jsonl").unlink(),
            Path("documents.jsonl").mkdir(),
            Path("documents.jsonl/caf\udce9.txt").write_text(TEXT),
        ),
        r"The name of the file 'caf\udce9.txt' is not UTF-8: rename it.",
    ),
    "not UTF-8": (
        lambda: Path("documents.jsonl").write_bytes(b'{"text": "caf\xe9"}\n'),
        "documents.jsonl is not UTF-8 (byte 13 is 0xe9): convert it",
    ),
    "broken": (lambda: lines("documents.jsonl", ONE, '{"text": '), "documents.jsonl, line 2 is no JSON"),
    "a list": (lambda: lines("documents.jsonl", "[1]"), "documents.jsonl, line 1 is no JSON object"),
    "no column": (
        lambda: lines("documents.jsonl", {"body": "x", "n": 1}),
        "no column 'text'; those there are 'body', 'n'",
    ),
    "no string": (lambda: lines("documents.jsonl", {"text": 3}), "row 1: `text` must be a string, got 3"),
    "half a character": (
        lambda: lines("documents.jsonl", ONE, '{"id": "b", "text": "a \\ud800"}'),
        r"documents.jsonl, line 2 has '\ud800', half of a character: write both halves, or leave it out",
    ),
    "an id": (
        lambda: lines("documents.jsonl", {**ONE, "id": 1.5}),
        "row 1: `id` must be a string or a whole number, got 1.5",
    ),
    "twice": (lambda: lines("documents.jsonl", ONE, ONE), "Two documents have the id 'a'"),
}
LABELS = {
    "a column": (
        CLASSES,
        "label",
        {},
        "--labels label is no file, and no column of the documents; those there are none.",
    ),
    "other columns": (CLASSES, "label", {"kind": "LABEL_0"}, "those there are 'kind'."),
    "a class": (
        CLASSES,
        "label",
        {"label": "sport"},
        "'sport' of document 'a' is none of the model's: 'LABEL_0', 'LABEL_1'",
    ),
    "a number": (CLASSES, "label", {"label": 2}, "The label 2 of document 'a' is none of the model's"),
    "bool": (CLASSES, "label", {"label": True}, "The label True of document 'a' is none of the model's"),
    "a list": (CLASSES, "label", {"label": ["LABEL_0"]}, "document 'a' must be one class"),
    "digits": (CLASSES, "label", {"label": "0"}, "'LABEL_0', 'LABEL_1'; or their numbers, from 0 to 1."),
    "null": (CLASSES, "label", {"label": None}, "1 of 1 documents have no label: a."),
    "tags": (TAGS, "label", {"label": ["LABEL_0"]}, "Document 'a' has 1 tags for 160 words"),
    "no tags": (TAGS, "label", {"label": "LABEL_0"}, "must be a list of tags, got 'LABEL_0'"),
    "another head": (MASKED, "label", {"label": "LABEL_0"}, "--labels is for classifiers and taggers"),
}
PAIRS = {
    "unknown": ({"question": "What?", "id": "b"}, "pairs.jsonl, row 1 asks for the document 'b', which is not there"),
    "a column": ({"question": "What?"}, "there is no column 'id'; those there are 'question'"),
    "no id": (
        {"question": "What?", "id": None},
        "pairs.jsonl, row 1: `id` must be a string or a whole number, got None",
    ),
    "empty": ({"question": " ", "id": "a"}, "`question` must be a string"),
    "an answer": ({"question": "What?", "id": "a", "answer": 3}, "`answer` must be a string or a list of them"),
    "long": ({"question": "What is it? " * 9, "id": "a"}, "which leaves less than half of the 64"),
}


def refused(capsys, arguments):
    try:
        code = main(arguments)
    except SystemExit as error:
        code = error.code
    told = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()
    assert code == 2
    assert told[-1].startswith("lsg-evaluate: ")
    assert not Path("out").exists()
    return told[-1]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents(name, source, capsys):
    source(MASKED)
    lines("documents.jsonl", ONE)
    write, expected = DOCUMENTS[name]
    write()
    assert expected in refused(capsys, options())


@pytest.mark.parametrize("name", LABELS)
def test_labels(name, source, capsys):
    architecture, label, columns, expected = LABELS[name]
    source(architecture)
    lines("documents.jsonl", {**ONE, **columns})
    assert expected in refused(capsys, options("--labels", label))


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name, source, write_pairs, capsys):
    row, expected = PAIRS[name]
    source(READER)
    lines("documents.jsonl", ONE)
    write_pairs([row])
    assert expected in refused(capsys, options("--pairs", "pairs.jsonl"))


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--settings", "wide"], "'wide' is none of defaults, local, 64/64"),
        (["--settings", "{'block_siz': 8}"], "LSGConfig has no field 'block_siz'"),
        (["--settings", "{'block_size': 7}"], "block_size"),
        (["--minutes", "0"], "--minutes: must be a number above 0, got '0'"),
        (["--minutes", "nan"], "--minutes: must be a number above 0, got 'nan'"),
        (["--minutes", "soon"], "--minutes: must be a number above 0, got 'soon'"),
        (["--max_documents", "0"], "--max_documents: must be a whole number of 1 or more, got '0'"),
        (
            ["--max_sequence_length", "64"],
            "--max_sequence_length 64 is no more than the 64 tokens that 'source' reads",
        ),
        (["--pairs", "none.jsonl"], "--pairs is for embedders and readers"),
        (["--pooling", "cls"], "--pooling is for embedders"),
        (["--architecture", "XLMRobertaForMultipleChoice"], "has no weights for the head"),
        (["--architecture", "XLMRobertaForCausalLM"], "of which nothing can be compared here"),
        (["--architecture", "T5"], "There is no LSG version of architecture 'T5'"),
        (["--architecture", "XLMRobertaForTokenClassification"], "has no weights for the head"),
        (["--output", "documents.jsonl"], "--output documents.jsonl is a file: name a folder"),
        (["--output", "documents.jsonl/out/er"], "lies in documents.jsonl, which is a file: name a folder"),
        (
            ["--architecture", "XLMRobertaModel", "--prompts", "{'passages': 'passage: '}"],
            "--prompts has 'passages': 'passage: ', and takes a text for query and one for document or",
        ),
        (
            ["--architecture", "XLMRobertaModel", "--prompts", f"{{'document': '{'passage: ' * 20}'}}"],
            "which leaves less than half of the 64 that the source reads for the text: shorten it",
        ),
        (["--output", "."], "--output . holds something else"),
        (["--output", "source/new"], "--output source/new lies in source, which is read: name a folder outside"),
    ],
)
def test_arguments(arguments, expected, source, capsys):
    source(MASKED)
    lines("documents.jsonl", ONE)
    assert expected in refused(capsys, options(*arguments))
    if "--output" in arguments:  # in the folder of the documents
        assert "--output out lies in ., which is read" in refused(capsys, ["source", ".", *options()[2:]])
    assert sorted(path.name for path in Path("source").iterdir()) == [
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    ]


@pytest.mark.parametrize(
    "write, expected",
    [
        (lambda: None, "'source' is neither a folder here nor a model"),
        (lambda: (Path("source").mkdir(), Path("source/config.json").write_text('{"model_type": "t5"}')), "'t5'"),
    ],
)
def test_the_converters_own_refusals(write, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines("documents.jsonl", ONE)
    write()
    assert expected in refused(capsys, options())


def test_ids_and_labels_as_pandas_writes_them(source, write_pairs):
    source(CLASSES)
    lines("documents.jsonl", {**ONE, "id": 1.0}, {**ONE, "id": "blank", "text": " "})
    lines("labels.jsonl", {"id": 1, "label": 0.0}, {"id": "blank", "label": None})
    assert main(options("--labels", "labels.jsonl")) == 0


def test_a_reader_needs_questions_and_a_reranker_is_none(source, capsys):
    source(READER)
    lines("documents.jsonl", ONE)
    assert "is a reader, which needs questions: --pairs FILE" in refused(capsys, options())
    source("XLMRobertaForSequenceClassification", num_labels=1)
    assert "gives one number for a text" in refused(capsys, options())


def test_what_is_lsg_already_is_told_so(source, capsys):
    from lsg_xlmr.cli import main as convert

    source(MASKED)
    lines("documents.jsonl", ONE)
    assert convert(["--initial_model", "source", "--model_name", "lsg", "--model_kwargs", SETTING]) == 0
    capsys.readouterr()
    assert "'lsg' has LSG attention already" in refused(capsys, ["lsg", *options()[1:]])
