"""Sources with an adapter of peft: it is merged, or told why not; never lost in silence."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from folders import SMALL, embedder, write
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, set_seed

from lsg_xlmr.cli import main


pytestmark = pytest.mark.ecosystem

TEXT = "Paris is the capital of France."


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """A function that converts, and gives the exit code and every line that was said."""
    monkeypatch.chdir(tmp_path)

    def run(source, *options):
        capsys.readouterr()
        code = main([f"--initial_model={source}", "--model_name=out", "--max_sequence_length=600", *options])
        out, err = capsys.readouterr()
        return code, f"{err}\n{out}".replace("\r", "\n").strip()

    return run


@pytest.fixture
def adapter(tmp_path):
    """A function that makes an adapter of the small checkpoint, and the same merged as one would by hand."""
    from peft import LoraConfig, get_peft_model

    def make(folder, auto_class=AutoModelForSequenceClassification, base=SMALL, **fields):
        set_seed(0)
        labels = {"num_labels": 5} if auto_class is AutoModelForSequenceClassification else {}
        model = auto_class.from_pretrained(base, **labels)
        fields = {"target_modules": ["query", "value"], "r": 4, "init_lora_weights": False, **fields}
        tuned = get_peft_model(model, LoraConfig(**fields))
        with torch.no_grad():  # so that its loss would be seen
            for name, parameter in tuned.named_parameters():
                if "lora" in name:
                    parameter.normal_(std=0.5)
        tuned.save_pretrained(tmp_path / folder)
        merged = tuned.merge_and_unload()
        merged.save_pretrained(tmp_path / f"{folder}-merged")
        AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / f"{folder}-merged")
        return tmp_path / folder

    return make


def weights(folder):
    return load_file(Path(folder, "model.safetensors"))


def assert_as_merged(convert, source):
    assert convert(source, "--overwrite")[0] == 0
    found = weights("out")
    assert not list(Path("out").glob("adapter*"))
    config = json.loads(Path("out/config.json").read_text())
    shutil.rmtree("out")
    assert convert(f"{source}-merged")[0] == 0
    expected = weights("out")
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        if name.startswith("pooler."):  # neither source has one
            continue
        torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=0)
    assert config["architectures"] == json.loads(Path("out/config.json").read_text())["architectures"]


def test_an_adapter_alone(convert, adapter):
    adapter("tuned", task_type="SEQ_CLS")
    assert_as_merged(convert, "tuned")
    _, said = convert("tuned", "--overwrite")
    assert f"The adapter in tuned is merged into {SMALL}" in said and "to be trained" not in said


def test_an_adapter_beside_its_model(convert, adapter):
    """transformers loads it on top in silence where peft is installed, and leaves it out where it is not."""
    folder = adapter("tuned", task_type="SEQ_CLS")
    for path in SMALL.iterdir():
        shutil.copy(path, folder)
    settings(folder, base_model_name_or_path="someone/gone")
    assert_as_merged(convert, "tuned")


def test_an_adapter_as_a_pickle(convert, adapter):
    folder = adapter("tuned", task_type="SEQ_CLS")
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    assert_as_merged(convert, "tuned")


def test_an_adapter_of_an_embedder(convert, adapter, tmp_path):
    folder = adapter("tuned", auto_class=AutoModel, task_type="FEATURE_EXTRACTION")
    embedder(tmp_path / "embedder")
    for name in ("modules.json", "1_Pooling/config.json", "config_sentence_transformers.json"):
        write(folder, name, (tmp_path / "embedder" / name).read_text())
    shutil.copy(folder / "modules.json", f"{folder}-merged")
    assert_as_merged(convert, "tuned")
    convert("tuned", "--overwrite")
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer("out", trust_remote_code=True, device="cpu")
    vector = model.encode(TEXT, convert_to_tensor=True)
    inputs = AutoTokenizer.from_pretrained("out")(TEXT, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained("out", trust_remote_code=True).eval()(**inputs).last_hidden_state[0]
    torch.testing.assert_close(vector, torch.nn.functional.normalize(states.mean(0), dim=0), atol=1e-5, rtol=0)


def test_left_over_settings_without_weights(convert, adapter, tmp_path):
    folder = adapter("tuned", task_type="SEQ_CLS")
    source = Path(shutil.copytree(SMALL, tmp_path / "source"))
    assert convert("source")[0] == 0
    expected = weights("out")
    shutil.copy(folder / "adapter_config.json", source)
    code, said = convert("source", "--overwrite")
    assert code == 0 and "adapter_config.json (an adapter, which is not applied)" in said
    assert "LSG already" not in said
    torch.testing.assert_close(weights("out"), expected, atol=0, rtol=0)


WRONG = {
    "weights cut": lambda folder: write(folder, "adapter_model.safetensors", b"\x00" * 20),
    "weights of another model": lambda folder: save_file(
        {f"x.{name}": tensor for name, tensor in load_file(folder / "adapter_model.safetensors").items()},
        folder / "adapter_model.safetensors",
    ),
    "of no kind": lambda folder: settings(folder, peft_type="TELEPATHY"),
    "that cannot be merged": lambda folder: settings(folder, peft_type="PREFIX_TUNING", num_virtual_tokens=3),
    "for modules that are not there": lambda folder: settings(folder, target_modules=["telepathy"]),
    "of its own folder": lambda folder: settings(folder, base_model_name_or_path=str(folder)),
}


def settings(folder, **fields):
    content = json.loads((folder / "adapter_config.json").read_text())
    write(folder, "adapter_config.json", {**content, **fields})


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_what_cannot_be_merged_is_one_line(convert, adapter, tmp_path, change):
    change(adapter("tuned", task_type="SEQ_CLS"))
    before = sorted(tmp_path.rglob("*"))
    code, said = convert("tuned")
    line = said.splitlines()[-1]
    assert code == 2 and line.startswith("lsg-convert: ") and "tuned" in line and "--debug" not in line, said
    assert sorted(tmp_path.rglob("*")) == before


def test_another_class_than_it_was_trained_with(convert, adapter):
    adapter("tuned", task_type="SEQ_CLS")
    code, said = convert("tuned", "--architecture=XLMRobertaForTokenClassification")
    assert code == 2 and "cannot be merged into LSGXLMRobertaForTokenClassification" in said.splitlines()[-1]


def test_the_model_of_an_adapter_is_not_replaced(convert, adapter, tmp_path):
    shutil.copytree(SMALL, tmp_path / "base")
    adapter("tuned", base=tmp_path / "base", task_type="SEQ_CLS")
    code, said = convert("tuned", "--overwrite", "--model_name=base")
    assert code == 2 and "'base' is" in said.splitlines()[-1]
