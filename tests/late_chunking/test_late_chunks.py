"""Several vectors of a text: against states that were computed one text, and one pass, at a time."""

import pytest
import torch
from repository import TINY
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    XLMRobertaModel,
)

from lsg_xlmr import LSGXLMRobertaForMaskedLM, LSGXLMRobertaModel, late_chunks
from lsg_xlmr.conversion import LSGConverter


LENGTH = 512
SENTENCES = ("The Seine flows through France. ", "In Japan, people speak Japanese. ", "Rome is the capital of Italy. ")
TEXTS = ["Paris is the capital of France.", SENTENCES[0] * 9, SENTENCES[1] * 40 + SENTENCES[2] * 5, "Rome"]
TOLERANCE = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module", params=["lsg", "stock"])
def model(request):
    """The small checkpoint for 512 tokens, with LSG attention in blocks of 16, and as it is."""
    if request.param == "stock":
        return XLMRobertaModel.from_pretrained(TINY).eval()
    fields = {"block_size": 16, "sparse_block_size": 16}
    return LSGConverter(LENGTH).convert_from_pretrained(TINY, "LSGXLMRobertaModel", **fields)[0].eval()


@torch.no_grad()
def states_of(model, ids):
    return model(torch.tensor([ids])).last_hidden_state[0]


def mean_of(states, offsets, start, end):
    """The mean of the tokens that begin in the span; `<s>` and `</s>` go with the first and the last of the text."""
    inside = [i for i in range(1, len(states) - 1) if start <= offsets[i][0] < end]
    inside = [0] * (1 in inside) + inside + [len(states) - 1] * (len(states) - 2 in inside)
    return states[inside].mean(0)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_windows_are_means_of_the_texts_tokens(model, tokenizer, batch_size):
    found = late_chunks(model, TEXTS, tokenizer, window=50, batch_size=batch_size)
    for text, (vectors, spans) in zip(TEXTS, found, strict=True):
        encoding = tokenizer(text, return_offsets_mapping=True)
        states, offsets = states_of(model, encoding["input_ids"]), encoding["offset_mapping"]
        assert len(spans) == -(-(len(offsets) - 2) // 50)
        expected = torch.stack([mean_of(states, offsets, *span) for span in spans])
        torch.testing.assert_close(vectors, expected, **TOLERANCE)
        sizes = [sum(start <= first < end for first, _ in offsets[1:-1]) for start, end in spans]
        assert max(sizes) <= 51 and max(sizes) - min(sizes) <= 2
        # Nothing but blanks lies between two windows.
        assert "".join(text[start:end] for start, end in spans).replace(" ", "") == text.replace(" ", "")


def test_the_vectors_of_spans(model, tokenizer):
    text = TEXTS[2]
    # In no order, overlapping, from within words on, up to blanks, and the same again.
    spans = [(33, 66), (0, 33), (20, len(text)), (0, len(text)), (3, 8), (1, 9), (0, 33)]
    ((vectors, found),) = late_chunks(model, [text], tokenizer, spans=[spans])
    assert found == spans
    encoding = tokenizer(text, return_offsets_mapping=True)
    states = states_of(model, encoding["input_ids"])
    expected = torch.stack([mean_of(states, encoding["offset_mapping"], *span) for span in spans])
    torch.testing.assert_close(vectors, expected, **TOLERANCE)
    windows = late_chunks(model, TEXTS, tokenizer, window=20)
    again = late_chunks(model, TEXTS, tokenizer, spans=[spans for _, spans in windows])
    for (vectors, _), (others, _) in zip(windows, again, strict=True):
        torch.testing.assert_close(vectors, others, **TOLERANCE)


@pytest.mark.parametrize(
    "prompt, max_length, overlap", [("", 100, 20), ("passage: ", 100, 60), ("", 100, 0), ("passage: ", 64, None)]
)
def test_a_text_beyond_the_maximum_is_read_in_passes(model, tokenizer, prompt, max_length, overlap):
    text = (SENTENCES[0] + SENTENCES[1]) * 20
    encoding = tokenizer(prompt + text, return_offsets_mapping=True)
    ids = encoding["input_ids"]
    head = 1 + len(tokenizer.tokenize(prompt.strip()))
    content = ids[head:-1]
    room = max_length - head - 1
    least = room // 8 if overlap is None else overlap
    passes = next(k for k in range(1, 99) if room + (k - 1) * (room - least) >= len(content))
    assert passes > 3
    firsts = [(len(content) - room) * i // (passes - 1) for i in range(passes)]
    assert all(other - one <= room - least for one, other in zip(firsts, firsts[1:]))
    read = [states_of(model, ids[:head] + content[first : first + room] + ids[-1:]) for first in firsts]
    expected = []
    for place in range(len(content)):
        # The pass in which the token stands farthest from both ends; of two as good the second.
        margin, number = max((min(place - first, first + room - 1 - place), i) for i, first in enumerate(firsts))
        assert margin >= least // 2 - 1 or number in (0, passes - 1)
        expected.append(read[number][head + place - firsts[number]])
    expected = torch.stack([*read[0][:head], *expected, read[-1][-1]])
    options = {"prompt": prompt, "max_length": max_length, "overlap": overlap}
    ((vectors, spans),) = late_chunks(model, [text], tokenizer, window=len(content), **options)
    torch.testing.assert_close(vectors[0], expected.mean(0), **TOLERANCE)
    assert spans == [(0, len(text) - 1)]
    ((vectors, spans),) = late_chunks(model, [text], tokenizer, window=1, **options)
    places = [offsets[0] - len(prompt) for offsets in encoding["offset_mapping"][head:-1]]
    for vector, (start, end) in list(zip(vectors, spans, strict=True))[1:-1]:
        inside = [head + i for i, place in enumerate(places) if start <= place < end]
        torch.testing.assert_close(vector, expected[inside].mean(0), **TOLERANCE)


def test_a_prompt_is_in_no_span(model, tokenizer):
    text = "Paris is the capital of France."
    ids = tokenizer("query: " + text)["input_ids"]
    states, begin = states_of(model, ids), len(tokenizer("query:")["input_ids"]) - 1
    ((vectors, spans),) = late_chunks(model, [text], tokenizer, spans=[[(0, 5), (6, len(text))]], prompt="query: ")
    torch.testing.assert_close(vectors[0], states[: begin + 1].mean(0), **TOLERANCE)
    torch.testing.assert_close(vectors[1], states[begin + 1 :].mean(0), **TOLERANCE)
    ((_, spans),) = late_chunks(model, [text], tokenizer, window=1, prompt="query: ")
    assert text[slice(*spans[0])] == "Paris"
    # A word that begins in the prompt is the text's.
    ((_, spans),) = late_chunks(model, ["is"], tokenizer, window=9, prompt="Par")
    assert spans == [(0, 2)]


def test_texts_without_tokens_have_no_chunks(model, tokenizer):
    found = late_chunks(model, ["", "Rome", " \n"], tokenizer, window=5)
    assert [vectors.shape for vectors, _ in found] == [(0, 128), (1, 128), (0, 128)]
    assert [spans for _, spans in found] == [[], [(0, 4)], []]
    found = late_chunks(model, ["", "Rome"], tokenizer, spans=[[], []])
    assert [vectors.shape for vectors, _ in found] == [(0, 128)] * 2
    assert late_chunks(model, [], tokenizer, window=5) == []


def test_what_is_written_like_a_special_token_is_text(model, tokenizer):
    text = "<s> Paris </s> <mask>"
    ((vectors, spans),) = late_chunks(model, [text], tokenizer, window=1)
    assert [text[start:end] for start, end in spans] == ["<s>", "Paris", "</s>", "<mask>"]
    states = states_of(model, tokenizer(text)["input_ids"])
    torch.testing.assert_close(vectors[1:3], states[2:4], **TOLERANCE)


def test_another_model_in_half_precision_trained_meanwhile(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "paris", "is", "big", "and", "rome", "old"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"), model_max_length=16)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37
    )
    model = BertModel(config).to(torch.bfloat16).train()
    texts = ["Paris is big and Rome old " * 2, "Rome"]
    (vectors, spans), _ = late_chunks(model, texts, tokenizer, window=4)
    assert model.training and vectors.dtype == torch.bfloat16 and not vectors.requires_grad
    states = states_of(model.eval(), tokenizer(texts[0])["input_ids"]).float()
    expected = torch.stack([states[:5].mean(0), states[5:9].mean(0), states[9:].mean(0)])
    torch.testing.assert_close(vectors.float(), expected, atol=1e-2, rtol=1e-2)
    assert [texts[0][start:end] for start, end in spans] == [
        "Paris is big and",
        "Rome old Paris is",
        "big and Rome old",
    ]


@pytest.mark.parametrize("trim_offsets", [True, False])
def test_tokens_of_bytes_and_of_blanks(trim_offsets):
    """As RoBERTa's tokenizer has them: a character may be of several tokens, and a blank one of its own."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<s>", "<pad>", "</s>", "<unk>", *letters]
    backend = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=trim_offsets)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", model_max_length=60)
    config = RobertaConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = RobertaModel(config).eval()
    cases = {"ab \U0001f389\U0001f389  \u00e9 c  ": ["a", "b", "\U0001f389", "\U0001f389", "\u00e9", "c"]}
    cases |= {"  x": ["x"], "a  b": ["a", "b"], "x\n": ["x"], " ": [], "": []}
    for text, chunks in cases.items():
        ((_, spans),) = late_chunks(model, [text], tokenizer, window=1)
        assert [text[start:end] for start, end in spans] == chunks
        ((_, spans),) = late_chunks(model, [text], tokenizer, window=1, prompt="to: ")
        assert [text[start:end] for start, end in spans] == chunks
        if chunks:
            ((vectors, _),) = late_chunks(model, [text], tokenizer, spans=[[(0, len(text))]])
            expected = states_of(model, tokenizer(text)["input_ids"]).mean(0)
            torch.testing.assert_close(vectors[0], expected, **TOLERANCE)


BAD = {
    "one text": (TypeError, "got one str: put it in a list", {"texts": "Rome"}),
    "no text": (TypeError, r"got int in texts\[1\]", {"texts": ["Rome", 3]}),
    "window 0": (ValueError, "`window` must be a whole number of 1 or more, got 0", {"window": 0}),
    "window -5": (ValueError, "got -5", {"window": -5}),
    "window 2.5": (ValueError, "got 2.5", {"window": 2.5}),
    "batch_size 0": (ValueError, "`batch_size` must be a whole number of 1 or more, got 0", {"batch_size": 0}),
    "neither": (ValueError, "either `window`.* or `spans`.*got neither", {"window": None}),
    "both": (ValueError, "got both", {"spans": [[(0, 4)]]}),
    "spans of other texts": (ValueError, "a list for each text, got 2 for 1", {"window": None, "spans": [[], []]}),
    "outside": (ValueError, r"has \(0, 9\) for texts\[0\].*end <= 8, its", {"window": None, "spans": [[(0, 9)]]}),
    "before": (ValueError, r"has \(-1, 3\)", {"window": None, "spans": [[(-1, 3)]]}),
    "empty": (ValueError, r"has \(3, 3\).*leave empty spans out", {"window": None, "spans": [[(3, 3)]]}),
    "backwards": (ValueError, r"has \(3, 1\)", {"window": None, "spans": [[(0, 3), (3, 1)]]}),
    "no pair": (ValueError, r"must have \(start, end\)", {"window": None, "spans": [[(3, 4, 5)]]}),
    "blank": (ValueError, r"has \(4, 5\).*no token begins", {"window": None, "spans": [[(4, 5)]]}),
    "within a token": (
        ValueError,
        r"has \(2, 4\).*begin others where words do",
        {"window": None, "spans": [[(2, 4)]]},
    ),
    "no room": (ValueError, "of 2 tokens has no room .* 2 of the prompt.*greater `max_length`", {"max_length": 2}),
    "a long prompt": (ValueError, "no room.*or a shorter `prompt`", {"prompt": "Rome " * 20, "max_length": 20}),
    "no number": (ValueError, "`max_length` must be a whole number of 1 or more, got 10.0", {"max_length": 10.0}),
    "half an overlap": (ValueError, "`overlap` must be a whole number of 0 or more, got 1.5", {"overlap": 1.5}),
    "a prompt": (TypeError, "`prompt` must be a str, got 5", {"prompt": 5}),
    "no texts": (TypeError, "`texts` must be a list of str, got one NoneType", {"texts": None}),
    "a list forgotten": (
        TypeError,
        r"has \(0, 4\) for texts\[0\], and must have a list of pairs",
        {"window": None, "spans": [(0, 4)]},
    ),
    "a slice": (TypeError, "and must have a list of pairs", {"window": None, "spans": [[slice(0, 3)]]}),
    "no spans": (TypeError, "the spans of each text, got 5", {"window": None, "spans": 5}),
    "overlap": (ValueError, "room for 8 .* 2 of the.*`overlap` is 8: it must", {"max_length": 10, "overlap": 8}),
    "negative": (ValueError, "`overlap` must be a whole number of 0 or more, got -1", {"overlap": -1}),
    "no tokenizer": (TypeError, "must be a fast one.*got NoneType", {"tokenizer": None}),
}


@pytest.mark.parametrize("error, message, fields", BAD.values(), ids=BAD)
def test_what_is_refused(model, tokenizer, error, message, fields):
    fields = {"texts": ["Rome old"], "tokenizer": tokenizer, "window": 5, **fields}
    with pytest.raises(error, match=message):
        late_chunks(model, **fields)


def test_whatever_can_be_gone_through_and_any_whole_number(model, tokenizer):
    class Three:  # as numpy's
        def __index__(self):
            return 3

    (expected,) = late_chunks(model, ["Rome old"], tokenizer, spans=[[(0, 4), (5, 8)]])
    spans = (iter(pair) for pair in [[[0, 4], [5, 8]]])
    (found,) = late_chunks(model, (text for text in ["Rome old"]), tokenizer, spans=spans)
    assert found.spans == expected.spans == [(0, 4), (5, 8)]
    assert torch.equal(found.vectors, expected.vectors)
    assert len(late_chunks(model, ["Rome old"], tokenizer, window=Three(), max_length=Three())[0].spans) > 0


def test_models_and_tokenizers_that_do_not_do(tokenizer, tiny_config):
    class Slow:
        is_fast = False

    model = LSGXLMRobertaForMaskedLM(tiny_config())
    with pytest.raises(TypeError, match="got Slow: AutoTokenizer.from_pretrained of the model's folder gives one"):
        late_chunks(model, ["Rome"], Slow(), window=5)
    small = LSGXLMRobertaForMaskedLM(tiny_config(vocab_size=len(tokenizer)))
    with pytest.raises(ValueError, match="LSGXLMRobertaForMaskedLM gives no last hidden state.*base_model"):
        late_chunks(small, ["Rome"], tokenizer, window=5)
    assert isinstance(small.base_model, LSGXLMRobertaModel)
    assert len(late_chunks(small.base_model, ["Rome"], tokenizer, window=5)[0].spans) == 1


def test_a_tokenizer_that_knows_no_length(model):
    tokenizer = AutoTokenizer.from_pretrained(TINY, model_max_length=None)
    tokenizer.model_max_length = int(1e30)
    with pytest.raises(ValueError, match="has no `model_max_length`: give `max_length`"):
        late_chunks(model, ["Rome"], tokenizer, window=5)
    assert len(late_chunks(model, ["Rome"], tokenizer, window=5, max_length=LENGTH)) == 1
