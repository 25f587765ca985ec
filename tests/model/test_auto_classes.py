"""Transformers' Auto classes, with this package installed: its models for its configurations, all else as before."""

import pytest
import torch
import transformers
from transformers import XLMRobertaConfig

import lsg_xlmr
from lsg_xlmr import LSGConfig, LSGEncoderDecoderConfig


AUTO_MAP = {name: path.split(".")[-1] for name, path in LSGConfig.AUTO_MAP.items() if name != "AutoConfig"}


@pytest.mark.parametrize("auto_class, name", AUTO_MAP.items())
def test_a_model_of_a_configuration(tiny_config, tmp_path, auto_class, name):
    auto_class = getattr(transformers, auto_class)
    config = tiny_config()
    model = auto_class.from_config(config)
    assert type(model) is getattr(lsg_xlmr, name)
    fields = {name: value for name, value in config.to_dict().items() if name != "auto_map"}
    stock = auto_class.from_config(XLMRobertaConfig(**fields))
    assert type(stock).__name__ == name.removeprefix("LSG") and type(stock).__module__.startswith("transformers.")
    model.save_pretrained(tmp_path)
    remote = auto_class.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(remote).__name__ == name and type(remote).__module__.startswith("transformers_modules.")
    found = auto_class.from_pretrained(tmp_path, config=LSGConfig.from_pretrained(tmp_path))
    assert type(found) is type(model)
    for key, weight in model.state_dict().items():
        assert torch.equal(weight, found.state_dict()[key]) and torch.equal(weight, remote.state_dict()[key])


def test_an_encoder_decoder_of_a_configuration(tiny_config):
    parts = tiny_config(), tiny_config(is_decoder=True, add_cross_attention=True)
    config = LSGEncoderDecoderConfig.from_encoder_decoder_configs(*parts)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config)
    assert type(model) is lsg_xlmr.LSGEncoderDecoderModel
