"""Prefix tuning by peft, with stock XLM-RoBERTa beside it."""

import pytest
import torch
from repository import DATA
from transformers import XLMRobertaForSequenceClassification, XLMRobertaForTokenClassification

from lsg_xlmr import LSGConverter
from lsg_xlmr.model import encoder
from lsg_xlmr.model.cache import CACHE


pytestmark = pytest.mark.ecosystem
peft = pytest.importorskip("peft")

if CACHE != "past_key_values":  # peft 0.21 looks for that name, and refuses the stock model too
    pytest.skip("this peft does not know this transformers' caches", allow_module_level=True)

SOURCE = DATA / "parity_conversion" / "source"
TASKS = {
    "SEQ_CLS": ("LSGXLMRobertaForSequenceClassification", XLMRobertaForSequenceClassification),
    "TOKEN_CLS": ("LSGXLMRobertaForTokenClassification", XLMRobertaForTokenClassification),
}


def prefixed(model, task):
    model = peft.get_peft_model(model, peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=6))
    torch.manual_seed(1)
    torch.nn.init.normal_(model.prompt_encoder["default"].embedding.weight)
    return model.eval()


@pytest.fixture(params=TASKS)
def models(request):
    """The LSG model and the stock one with the same prefix, by one name of a task."""
    torch.manual_seed(0)
    fields = {"block_size": 16, "sparse_block_size": 16, "pool_with_global": False}
    model, _ = LSGConverter(max_sequence_length=200).convert_from_pretrained(SOURCE, TASKS[request.param][0], **fields)
    stock = TASKS[request.param][1].from_pretrained(SOURCE)
    stock.load_state_dict(
        {k: v for k, v in model.state_dict().items() if "position" not in k and "global" not in k}, strict=False
    )
    return request.param, prefixed(model, request.param), prefixed(stock, request.param)


def labels_of(task, ids):
    return torch.tensor([0, 1]) if task == "SEQ_CLS" else ids % 2


def test_within_two_blocks_it_is_stock_but_for_the_global_token(models, monkeypatch):
    key_mask = encoder.key_mask
    monkeypatch.setattr(
        encoder, "key_mask", lambda *args, **kwargs: key_mask(*args, **kwargs).index_fill(1, torch.tensor([0]), False)
    )
    task, model, stock = models
    ids = torch.randint(5, 90, (2, 24))
    mask = torch.ones_like(ids)
    mask[1, -5:] = 0
    with torch.no_grad():
        found, expected = (m(input_ids=ids, attention_mask=mask).logits for m in (model, stock))
        without = model.get_base_model()(input_ids=ids, attention_mask=mask).logits
    assert not torch.allclose(found, without, rtol=0, atol=1e-4)
    kept = mask.bool() if task == "TOKEN_CLS" else slice(None)
    torch.testing.assert_close(found[kept], expected[kept], rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [24, 150])
def test_it_trains(models, length):
    task, model, _ = models
    ids = torch.randint(5, 90, (2, length))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels_of(task, ids)}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(30):
        loss = model(**inputs).loss
        loss.backward()
        assert model.prompt_encoder["default"].embedding.weight.grad.abs().max() > 0
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
