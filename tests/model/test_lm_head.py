"""With `sparse_prediction` the LM head gives the same answers, from no more positions than are asked about."""

import pytest
import torch
from repository import TINY
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, pipeline

from lsg_xlmr import LSGXLMRobertaForMaskedLM
from lsg_xlmr.cli import main
from lsg_xlmr.model.lazy_logits import LazyLogits


SOURCE = str(TINY)
VOCAB_SIZE = AutoConfig.from_pretrained(SOURCE).vocab_size
LONG = 43


@pytest.fixture
def positions(monkeypatch):
    """How many positions each call of an LM head of this test worked on."""
    counts = []
    forward = torch.nn.Linear.forward

    def counted(self, features):
        if self.out_features in (99, VOCAB_SIZE):
            counts.append(features.shape[:-1].numel())
        return forward(self, features)

    monkeypatch.setattr(torch.nn.Linear, "forward", counted)
    return counts


@pytest.fixture
def models(tiny_config):
    """The same weights without and with `sparse_prediction`."""
    dense = LSGXLMRobertaForMaskedLM(tiny_config())
    sparse = LSGXLMRobertaForMaskedLM(tiny_config(sparse_prediction=True))
    sparse.load_state_dict(dense.state_dict())
    return dense.eval(), sparse.eval()


@pytest.mark.parametrize("num_items_in_batch", [None, 31])
def test_labels(models, token_ids, positions, num_items_in_batch):
    ids = token_ids(2, LONG)
    labels = torch.where(torch.rand(2, LONG) < 0.2, ids, -100)
    results = []
    for model in models:
        positions.clear()
        outputs = model(ids, labels=labels, num_items_in_batch=num_items_in_batch)
        outputs.loss.backward()
        results.append((outputs, [parameter.grad for parameter in model.parameters()], list(positions)))
    (dense, dense_grads, of_dense), (sparse, sparse_grads, of_sparse) = results
    num_labelled = int((labels != -100).sum())
    assert (of_dense, of_sparse) == ([2 * LONG], [num_labelled])
    assert sparse.logits.shape == (num_labelled, 99)
    torch.testing.assert_close(sparse.loss, dense.loss, rtol=0, atol=1e-5)
    torch.testing.assert_close(sparse.logits, dense.logits[labels != -100], rtol=0, atol=1e-5)
    torch.testing.assert_close(sparse_grads, dense_grads, rtol=1e-4, atol=1e-5)


def test_another_ignore_index(tiny_config, token_ids):
    model = LSGXLMRobertaForMaskedLM(tiny_config(sparse_prediction=True, sparse_pred_ignore_index=1)).eval()
    ids = token_ids(1, LONG)
    labels = torch.ones_like(ids)
    labels[0, :3] = 7
    assert model(ids, labels=labels).logits.shape == (3, 99)


def test_logits_are_computed_where_they_are_looked_at(models, token_ids, positions):
    ids = token_ids(2, LONG)
    with torch.no_grad():
        expected, logits = (model(ids).logits for model in models)
        assert isinstance(logits, LazyLogits) and logits.shape == expected.shape
        row = torch.tensor([3, 9])
        mask = torch.rand(2, LONG) < 0.1
        looks = {
            "one position": (lambda x: x[1, 5].softmax(-1), 1),
            "several": (lambda x: x[0, row, :].softmax(-1), 2),
            "in every text": (lambda x: x[:, row] + 0, 4),
            "by a mask": (lambda x: x[mask].argmax(-1), int(mask.sum())),
            "a slice": (lambda x: x[1:, 4:6].topk(3).values, 2),
            "with a new dimension": (lambda x: x[1].unsqueeze(0)[0, 7] * 1, 1),
            "in double": (lambda x: x.double()[0, 0] * 1, 1),
            "some words": (lambda x: x[0, 2, 5:9] * 1, 1),
            "one word everywhere": (lambda x: x[..., 5] * 1, 2 * LONG),
            "new dimension at the end": (lambda x: x.unsqueeze(-1) * 1, 2 * LONG),
            "everything": (lambda x: x.argmax(-1), 2 * LONG),
            "the best of some": (lambda x: x[0, row].argmax(-1, keepdim=True), 2),
            "one after the other": (lambda x: x[0, 3] + x[0, row].sum(0) + x[0, 3].tolist()[0], 3),
            "a view, then others": (lambda x: x[0, 3].exp() + x[1, 2:4].exp(), 3),
            "two of them": (lambda x: torch.cat([x, x])[0, 0], 2 * LONG),
        }
        for name, (look, num_positions) in looks.items():
            logits = models[1](ids).logits
            positions.clear()
            found = look(logits)
            assert type(found) is torch.Tensor and sum(positions) == num_positions, name
            torch.testing.assert_close(found, look(expected), rtol=0, atol=1e-5, msg=name)


def test_argmax_takes_some_positions_at_a_time(models, token_ids, positions):
    ids = token_ids(3, 100)
    with torch.no_grad():
        expected = models[0](ids).logits.argmax(-1)
        logits = models[1](ids).logits
        positions.clear()
        torch.testing.assert_close(logits.argmax(dim=-1), expected, rtol=0, atol=0)
        assert sum(positions) == 300 and max(positions) < 200 and type(logits) is LazyLogits


@pytest.mark.parametrize("num_items_in_batch", [None, 31])
@pytest.mark.parametrize("training", [False, True])
def test_labels_without_gradients(models, token_ids, positions, training, num_items_in_batch):
    """`logits` are those of every position, as without `sparse_prediction`, whatever mode the modules are in."""
    ids = token_ids(2, LONG)
    labels = torch.where(torch.rand(2, LONG) < 0.2, ids, -100)
    with torch.no_grad():
        dense, sparse = (
            model.train(training)(ids, labels=labels, num_items_in_batch=num_items_in_batch) for model in models
        )
        positions.clear()
        assert type(sparse.logits) is LazyLogits and sparse.logits.shape == dense.logits.shape
        torch.testing.assert_close(sparse.loss, dense.loss, rtol=0, atol=1e-5)
        torch.testing.assert_close(sparse.logits.argmax(-1), dense.logits.argmax(-1), rtol=0, atol=0)
        torch.testing.assert_close(sparse.logits, dense.logits, rtol=0, atol=1e-5)


def test_the_loss_without_gradients_takes_the_labelled_positions(models, token_ids, positions):
    ids = token_ids(2, LONG)
    labels = torch.where(torch.rand(2, LONG) < 0.2, ids, -100)
    with torch.no_grad():
        models[1](ids, labels=labels).loss.item()
    assert sum(positions) == int((labels != -100).sum())


@pytest.mark.parametrize("training", [False, True])
def test_labels_with_gradients(models, token_ids, training):
    """`logits` are those of the labelled positions, whatever mode the modules are in."""
    ids = token_ids(2, LONG)
    labels = torch.where(torch.rand(2, LONG) < 0.2, ids, -100)
    assert models[1].train(training)(ids, labels=labels).logits.shape == (int((labels != -100).sum()), 99)


def test_by_default_logits_are_ordinary(models, token_ids):
    with torch.no_grad():
        assert type(models[0](token_ids(1, LONG)).logits) is torch.Tensor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("converted") / "tiny-lsg"
    assert main(["--initial_model", SOURCE, "--model_name", str(target)]) == 0
    return str(target)


@pytest.mark.parametrize("as_object", [False, True], ids=["by name", "as an object"])
def test_fill_mask_pipeline(folder, positions, as_object):
    """Every option gives what it gives without `sparse_prediction`."""
    options = {"sparse_prediction": True}
    plain = pipeline("fill-mask", model=folder, trust_remote_code=True)
    if as_object:
        model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True, **options)
        sparse = pipeline("fill-mask", model=model, tokenizer=AutoTokenizer.from_pretrained(folder))
    else:
        sparse = pipeline("fill-mask", model=folder, trust_remote_code=True, model_kwargs=options)
    one = "Paris is the <mask> of France."
    several = "Paris is the <mask> of <mask>."
    long = "Paris is the capital of France. " * 100 + one
    calls = {
        "one": ((one,), {}, 1),
        "top_k": ((one,), {"top_k": 2}, 1),
        "targets": ((one,), {"targets": ["capital", "France"]}, 1),
        "several masks": ((several,), {}, 2),
        "long": ((long,), {}, 1),
        "a list": (([one, several],), {}, 3),
        "a batch": (([one, several, long, one],), {"batch_size": 2}, 5),
    }
    for name, (arguments, keywords, num_masks) in calls.items():
        expected = plain(*arguments, **keywords)
        positions.clear()
        found = sparse(*arguments, **keywords)
        assert sum(positions) == num_masks, name
        assert_same_answers(found, expected)


def assert_same_answers(found, expected):
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, wanted in zip(found, expected):
            assert_same_answers(one, wanted)
        return
    assert found["score"] == pytest.approx(expected["score"], abs=1e-5)
    assert (found["token"], found["sequence"]) == (expected["token"], expected["sequence"])
