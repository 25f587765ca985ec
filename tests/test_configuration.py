"""LSGConfig: defaults, what it accepts, what it refuses and how."""

import json
import shutil
from importlib.util import module_from_spec, spec_from_file_location

import pytest
from repository import ROOT
from transformers import XLMRobertaConfig

from lsg_xlmr import LSGConfig, LSGXLMRobertaConfig, LSGXLMRobertaForMaskedLM, LSGXLMRobertaModel


BAD_VALUES = [
    ("adaptive", 1),
    ("adaptive", None),
    ("block_size", 0),
    ("block_size", 128.0),
    ("block_size", "128"),
    ("block_size", True),
    ("sparse_block_size", -1),
    ("sparse_block_size", 48),
    ("sparsity_factor", 0),
    ("sparsity_factor", 3),
    ("sparsity_type", "norms"),
    ("sparsity_type", ["norm"]),
    ("num_global_tokens", -1),
    ("num_global_tokens", 513),
    ("mask_first_token", "yes"),
    ("pool_with_global", 0),
    ("lsh_num_pre_rounds", -1),
    ("lsh_seed", -1),
    ("lsh_seed", 1.5),
    ("block_size", 2**31 - 1),
    ("block_size", 10**30),
    ("sparsity_factor", 10**30),
    ("lsh_num_pre_rounds", 10**9),
    ("sparse_pred_ignore_index", 10**30),
    ("vocab_size", 0),
    ("vocab_size", 10**12),
    ("hidden_size", -1),
    ("num_hidden_layers", -1),
    ("num_attention_heads", -2),
    ("num_attention_heads", 0),
    ("intermediate_size", 0),
    ("type_vocab_size", 0),
    ("pad_token_id", None),
    ("pad_token_id", -3),
    ("pad_token_id", 250002),
    ("max_position_embeddings", 2),
    ("max_position_embeddings", 10**30),
    ("hidden_act", "telepathy"),
    *(
        (name, value)
        for name in LSGConfig.lsg_fields()
        for value in (None, "many", 2.5, [1], {}, -(2**70), float("nan"))
        if (name, value) != ("sparsity_type", None)  # another name of "none"
    ),
]


def suggestion(message):
    """The value the message says would do."""
    name, value = message.removesuffix(" would do.").split("; ")[-1].split("=")
    return {name: eval(value)}


def test_defaults():
    config = LSGConfig()
    assert isinstance(config, XLMRobertaConfig) and LSGXLMRobertaConfig is LSGConfig
    assert config.model_type == "xlm-roberta"
    assert (config.block_size, config.sparse_block_size, config.sparsity_factor) == (128, 128, 2)
    assert config.adaptive is True
    assert (config.sparsity_type, config.num_global_tokens) == ("norm", 1)
    assert (config.mask_first_token, config.pool_with_global, config.lsh_num_pre_rounds) == (False, True, 1)


@pytest.mark.parametrize("name, value", BAD_VALUES)
def test_a_bad_value_is_refused_wherever_it_comes_from(name, value, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "xlm-roberta", name: value}))
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "config.json").write_text(json.dumps({"model_type": "xlm-roberta"}))
    routes = [
        lambda: LSGConfig(**{name: value}),
        lambda: LSGConfig.from_pretrained(tmp_path),
        lambda: LSGConfig.from_pretrained(tmp_path / "good", **{name: value}),
    ]
    for route in routes:
        with pytest.raises(ValueError) as error:
            route()
        message = str(error.value)
        assert name in message and repr(value) in message and "must" in message
        LSGConfig(**suggestion(message))


def test_a_bad_value_set_later_is_refused_on_save_and_by_the_model(tmp_path):
    config = LSGConfig()
    config.block_size = 7
    for route in (lambda: config.save_pretrained(tmp_path / "out"), lambda: LSGXLMRobertaModel(config)):
        with pytest.raises(ValueError, match="must divide block_size=7"):
            route()
    assert not (tmp_path / "out").exists()


def test_fields_that_depend_on_each_other_can_change_together(tmp_path):
    LSGConfig(block_size=128, sparsity_factor=8).save_pretrained(tmp_path)
    config = LSGConfig.from_pretrained(tmp_path, block_size=6, sparse_block_size=6, sparsity_factor=3)
    assert (config.block_size, config.sparse_block_size, config.sparsity_factor) == (6, 6, 3)


def test_other_spellings():
    assert LSGConfig(lsg_num_pre_rounds=3).lsh_num_pre_rounds == 3
    assert LSGConfig.from_dict({}, lsg_num_pre_rounds=3).lsh_num_pre_rounds == 3
    assert LSGConfig.from_dict({"lsg_num_pre_rounds": 3}).lsh_num_pre_rounds == 3
    assert LSGConfig(sparsity_type=None).sparsity_type == "none"


def test_masking_the_first_token_forces_pooling_with_the_global():
    assert LSGConfig(mask_first_token=True, pool_with_global=False).pool_with_global is True
    assert LSGConfig.from_dict({"pool_with_global": False}, mask_first_token=True).pool_with_global is True


@pytest.mark.parametrize("off", [{"sparsity_type": "none"}, {"sparse_block_size": 0}], ids=str)
def test_without_a_sparse_part_its_rules_do_not_apply(off):
    assert not LSGConfig(block_size=100, sparsity_factor=3, **off).has_sparse_tokens


def test_saved_and_loaded(tmp_path):
    config = LSGConfig(block_size=64, sparse_block_size=32, sparsity_type="pooling", num_global_tokens=7)
    config.save_pretrained(tmp_path)
    loaded = LSGConfig.from_pretrained(tmp_path)
    different = {k: v for k, v in loaded.to_dict().items() if config.to_dict().get(k) != v}
    assert set(different) <= {"_name_or_path", "auto_map"}


@pytest.fixture
def module(tmp_path):
    """The configuration as the one file of a checkpoint that a process has fetched, and the checkpoint's folder."""
    fetched, folder = tmp_path / "fetched", tmp_path / "checkpoint"
    fetched.mkdir(), folder.mkdir()
    for name in ("configuration_lsg.py", "modeling_lsg_xlm_roberta.py"):
        shutil.copy(ROOT / name, folder)
    spec = spec_from_file_location("fetched_configuration", ROOT / "lsg_xlmr" / "configuration_lsg.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.__file__ = str(fetched / "configuration_lsg.py")
    shutil.copy(ROOT / "configuration_lsg.py", fetched)
    return module, folder


def test_the_code_travels_from_where_the_configuration_was_loaded(module, tmp_path):
    module, folder = module
    config = module.LSGConfig(name_or_path=str(folder))
    config.save_pretrained(tmp_path / "saved")
    config.save_pretrained(folder)  # over itself
    for name in module.CODE_FILES:
        expected = (ROOT / name).read_bytes()
        assert (tmp_path / "saved" / name).read_bytes() == (folder / name).read_bytes() == expected
    shutil.rmtree(folder)
    config.save_pretrained(tmp_path / "saved")  # where all is there already
    with pytest.raises(OSError, match="modeling_lsg_xlm_roberta.py belongs beside config.json, and is no longer in"):
        config.save_pretrained(tmp_path / "new")


@pytest.mark.parametrize("model_class", [LSGXLMRobertaModel, LSGXLMRobertaForMaskedLM])
@pytest.mark.parametrize("config", [XLMRobertaConfig(), None, {}], ids=lambda x: type(x).__name__)
def test_a_model_of_another_configuration(model_class, config):
    with pytest.raises(TypeError, match=f"take an LSGConfig, got {type(config).__name__}: LSGConfig"):
        model_class(config)
