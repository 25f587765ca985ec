"""Layers by bitsandbytes, torchao and peft: one call each, whatever the number of threads, as on one thread."""

import pytest
import torch
from torch import nn

from lsg_xlmr import LSGXLMRobertaModel
from lsg_xlmr.cpu import threads as own_threads
from lsg_xlmr.cpu.plain import is_plain
from lsg_xlmr.model.encoder import LSGEncoder


pytestmark = pytest.mark.ecosystem


@pytest.fixture(autouse=True)
def restored_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make_model(tiny_config):
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}
    return LSGXLMRobertaModel(tiny_config(**shape, initializer_range=0.05)).eval()


def replace_linears(model, make):
    for module in list(model.encoder.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, make(child))
    return model


def in_four_bits(model):
    bnb = pytest.importorskip("bitsandbytes")

    def make(linear):
        made = bnb.nn.Linear4bit(
            linear.in_features, linear.out_features, compute_dtype=torch.float32, quant_type="nf4"
        )
        made.load_state_dict(linear.state_dict())
        return made

    return replace_linears(model, make).to("cpu")  # which quantizes


def in_eight_bits(model):
    bnb = pytest.importorskip("bitsandbytes")

    def make(linear):
        made = bnb.nn.Linear8bitLt(linear.in_features, linear.out_features, has_fp16_weights=False, threshold=6.0)
        made.load_state_dict(linear.state_dict())
        return made

    return replace_linears(model, make).to("cpu")


def weights_in_eight_bits(model):
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model.encoder, Int8WeightOnlyConfig())
    return model


def all_in_eight_bits(model):
    pytest.importorskip("torchao")
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(model.encoder, Int8DynamicActivationInt8WeightConfig())
    return model


def adapted(model):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["query", "value", "dense"], init_lora_weights=False)
    return peft.get_peft_model(model, config).eval()


CHANGES = [in_four_bits, in_eight_bits, weights_in_eight_bits, all_in_eight_bits, adapted]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_any_number_of_threads(tiny_config, token_ids, monkeypatch, change):
    ids = token_ids(2, 43)

    def answer(model, num_threads):
        torch.set_num_threads(num_threads)
        with torch.no_grad():
            return model(ids).last_hidden_state

    whole = change(make_model(tiny_config))
    (encoder,) = (module for module in whole.modules() if isinstance(module, LSGEncoder))
    assert not is_plain(encoder.layer)
    answer(whole, 1)
    expected = answer(whole, 1)  # too short for pieces
    assert (expected - answer(make_model(tiny_config), 1)).abs().max() > 1e-3
    monkeypatch.setattr(own_threads, "POSITIONS", 5)
    monkeypatch.setattr(own_threads, "POSITIONS_SHARED", 7)
    for first in (4, 1):
        model = change(make_model(tiny_config))
        for num_threads in (first, 4, 1, 4, 4, 1):
            torch.testing.assert_close(answer(model, num_threads), expected, rtol=0, atol=1e-4)
