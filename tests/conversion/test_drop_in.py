"""The two files that travel with a checkpoint: in step with `lsg_xlmr/`, and enough on their own."""

import ast
import json
import shutil
import subprocess
import sys

import pytest
import torch
from repository import ROOT
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, Trainer, TrainingArguments

from lsg_xlmr import LSGXLMRobertaForMaskedLM, LSGXLMRobertaForSequenceClassification, LSGXLMRobertaModel
from lsg_xlmr.conversion.drop_in import SOURCES, drop_in_files


CODE = ("configuration_lsg.py", "modeling_lsg_xlm_roberta.py")

# What a user does who has torch and transformers, and nothing of ours.
IN_A_FRESH_PROCESS = """
import sys
sys.modules["lsg_xlmr"] = None  # whoever imports it here gets an ImportError
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForMaskedLM
folder, again = sys.argv[1:]
for _ in range(2):
    model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules")
    assert AutoConfig.from_pretrained(folder, trust_remote_code=True).block_size == 8
    with torch.no_grad():
        logits = model(**load_file(sys.argv[1] + "/inputs.safetensors")).logits
    save_file({"logits": logits}, folder + "/logits.safetensors")
    model.save_pretrained(again)
    folder = again
"""


@pytest.mark.parametrize("name", CODE)
def test_in_step_with_the_package(name):
    message = f"{name} is out of step with lsg_xlmr/: run `python lsg_xlmr/conversion/drop_in.py .`"
    assert (ROOT / name).read_text(encoding="utf-8") == drop_in_files()[name], message


def test_opens_with_a_table_of_its_sections():
    text = (ROOT / CODE[1]).read_text(encoding="utf-8")
    lines, docstring = text.splitlines(), ast.get_docstring(ast.parse(text), clean=False)
    rows = [row.split(maxsplit=2) for row in docstring.split("what it is\n")[1].splitlines()]
    assert [f"{name}.py" for _, name, _ in rows] == list(SOURCES[CODE[1]])
    headings = [number for number, line in enumerate(lines, 1) if line.startswith("# ====")]
    assert [int(first) for first, _, _ in rows] == headings
    for (first, name, what), end in zip(rows, [*headings[1:], len(lines)]):
        first = int(first)
        assert lines[first - 1] == f"# ==== {name} ".ljust(119, "=")
        # what it is, and what is defined there, are those of the source
        source = ast.parse((ROOT / "lsg_xlmr" / f"{name}.py").read_text(encoding="utf-8"))
        assert " ".join(ast.get_docstring(source).split()).startswith(what) and 20 <= len(what) <= 80
        defined = [ast.unparse(node) for node in source.body[1:] if not isinstance(node, (ast.Import, ast.ImportFrom))]
        section = ast.parse("\n".join(lines[first - 1 : end - 1 if end < len(lines) else end]))
        assert [ast.unparse(node) for node in section.body] == defined


def test_no_two_sections_give_a_name_to_two_things():
    body = ast.parse(drop_in_files()[CODE[1]]).body
    names = [node.name for node in body if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name != "_"]
    names += [x.id for node in body if isinstance(node, ast.Assign) for x in node.targets if isinstance(x, ast.Name)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", CODE)
def test_imports_torch_and_transformers_alone(name):
    nodes = [node for node in ast.walk(ast.parse(drop_in_files()[name]))]
    modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    modules |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    relative = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level}
    others = {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names)
    assert others <= {"torch", "transformers"} and relative <= {"configuration_lsg"}


def test_a_saved_model_loads_without_the_package(tiny_config, token_ids, tmp_path, stored_weights):
    model = LSGXLMRobertaForMaskedLM(tiny_config()).eval()
    inputs = {"input_ids": token_ids(2, 60), "attention_mask": torch.ones(2, 60, dtype=torch.long)}
    inputs["attention_mask"][1, 33:] = 0
    folder, again = tmp_path / "saved", tmp_path / "again"
    model.save_pretrained(folder)
    save_file(inputs, folder / "inputs.safetensors")
    command = [sys.executable, "-c", IN_A_FRESH_PROCESS, str(folder), str(again)]
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PATH": "", "PYTHONSAFEPATH": "1"}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    with torch.no_grad():
        expected = model(**inputs).logits
    for path in (folder, again):
        torch.testing.assert_close(load_file(path / "logits.safetensors")["logits"], expected, rtol=0, atol=1e-5)
        weights = stored_weights(path)
        torch.testing.assert_close(weights, {name: model.state_dict()[name] for name in weights}, rtol=0, atol=0)
        assert {file.name for file in path.glob("*.py")} == set(CODE)
        for name in CODE:
            assert (path / name).read_text() == drop_in_files()[name]


def test_auto_map_names_every_class(tiny_config, tmp_path):
    LSGXLMRobertaModel(tiny_config()).save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    root = json.loads((ROOT / "config.json").read_text())
    assert auto_map == root["auto_map"]
    assert auto_map["AutoConfig"] == "configuration_lsg.LSGConfig"
    definitions = {node.name for node in ast.parse(drop_in_files()[CODE[1]]).body if isinstance(node, ast.ClassDef)}
    heads = {entry.removeprefix("modeling_lsg_xlm_roberta.") for key, entry in auto_map.items() if key != "AutoConfig"}
    assert heads <= definitions and len(heads) == 7


def test_a_config_saved_alone_takes_the_code_along(tiny_config, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    LSGXLMRobertaModel(tiny_config()).save_pretrained(first)
    AutoConfig.from_pretrained(first, trust_remote_code=True).save_pretrained(second)
    config = AutoConfig.from_pretrained(second, trust_remote_code=True)
    assert AutoModel.from_config(config, trust_remote_code=True).config.block_size == 8


def test_trainer_checkpoints_carry_the_code(tiny_config, tmp_path):
    LSGXLMRobertaForSequenceClassification(tiny_config()).save_pretrained(tmp_path / "start")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "start", trust_remote_code=True)
    data = [{"input_ids": torch.randint(5, 99, (40,)), "labels": i % 2} for i in range(4)]
    arguments = TrainingArguments(
        tmp_path / "run", max_steps=2, save_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True
    )
    trainer = Trainer(model, arguments, train_dataset=data)
    trainer.train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    loaded = AutoModelForSequenceClassification.from_pretrained(checkpoint, trust_remote_code=True).eval()
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    with torch.no_grad():
        inputs = {"input_ids": torch.randint(5, 99, (1, 50))}
        torch.testing.assert_close(loaded(**inputs).logits, model.eval()(**inputs).logits, rtol=0, atol=1e-5)


def test_the_repository_folder_builds_the_default_model():
    config = AutoConfig.from_pretrained(ROOT, trust_remote_code=True)
    assert (config.vocab_size, config.max_position_embeddings, config.block_size) == (250002, 4098, 128)
    with torch.device("meta"):
        model = AutoModel.from_config(config, trust_remote_code=True)
    assert model.embeddings.position_embeddings.weight.shape == (4098, 768)
    assert model.embeddings.global_embeddings.weight.shape == (512, 768)


def test_a_model_whose_folder_is_gone_is_saved(tiny_config, tmp_path):
    for name in ("start", "config-alone"):
        LSGXLMRobertaModel(tiny_config()).save_pretrained(tmp_path / name)
    model = AutoModel.from_pretrained(tmp_path / "start", trust_remote_code=True)
    config = AutoConfig.from_pretrained(tmp_path / "config-alone", trust_remote_code=True)
    shutil.rmtree(tmp_path / "start")
    shutil.rmtree(tmp_path / "config-alone")
    model.save_pretrained(tmp_path / "saved")
    again = AutoModel.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    with pytest.raises(OSError, match="modeling_lsg_xlm_roberta.py belongs beside config.json, .* load the model and"):
        config.save_pretrained(tmp_path / "config")


def test_saving_over_its_own_folder(tiny_config, tmp_path):
    LSGXLMRobertaModel(tiny_config()).save_pretrained(tmp_path)
    for _ in range(2):
        AutoModel.from_pretrained(tmp_path, trust_remote_code=True).save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    assert {file.name for file in tmp_path.glob("*.py")} == set(CODE)
