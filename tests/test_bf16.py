"""Training in bf16: by autocast (single, ddp) and with bf16 weights (ZeRO), at long positions."""

import json
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    Gemma4TextConfig,
    LlamaConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from ehrr1.config.training import ModelSettings
from ehrr1.models import attention
from ehrr1.models.loading import load_model
from ehrr1.models.logprobs import token_logprobs
from ehrr1.prompts.forest import collate
from tests.conftest import ROOT
from tests.long_positions import trained, tree
from tests.test_attention import (
    SMALL,
    flash_attn_varlen_func,
    flex_attention_with_gradient,
    gradient,
)
from tests.test_forest import random_tree

HEADS = SMALL | {"head_dim": 8}
TWO_KINDS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8192}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 4096}
OTHERS: dict[str, PreTrainedConfig] = {
    "qwen3": Qwen3Config(**HEADS),
    "qwen2": Qwen2Config(**SMALL),
    "llama": LlamaConfig(**SMALL),
    "yarn": Qwen3Config(
        **HEADS, rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}
    ),
    "llama3": LlamaConfig(
        **SMALL,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 1024,
        },
    ),
    "longrope": Phi3Config(
        **SMALL,
        pad_token_id=0,
        sliding_window=None,
        rope_parameters=LONG | {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
    ),
    # frequencies of their own for each kind of layer, and a scale of the embeddings
    "gemma3": Gemma3TextConfig(**HEADS, **TWO_KINDS),
    # and buffers that are saved
    "gemma4": Gemma4TextConfig(
        **HEADS,
        **TWO_KINDS,
        global_head_dim=8,
        vocab_size_per_layer_input=99,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=0,
    ),
}
"""Architectures whose buffers are computed in other ways than Qwen3's."""


@pytest.fixture(scope="module")
def sharp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose attention looks at single tokens, so that their positions matter. Its head is
    its embeddings, as in small models."""
    torch.manual_seed(0)
    size = SMALL | {"head_dim": 32, "initializer_range": 0.3, "tie_word_embeddings": True}
    model = AutoModelForCausalLM.from_config(Qwen3Config(**size))
    for layer in model.model.layers:
        layer.self_attn.q_norm.weight.data.mul_(2)
    folder = tmp_path_factory.mktemp("sharp")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("others")
    for name, config in OTHERS.items():
        model = AutoModelForCausalLM.from_config(config)
        saved = model.state_dict().keys()
        for buffer in (one for key, one in model.named_buffers() if key in saved):
            buffer.data.normal_()
        model.save_pretrained(folder / name)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def told(sharp: Path, others: list[Path]) -> list[dict[str, Any]]:
    """Return the reports of two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, "-m", "tests.long_positions", str(sharp), *map(str, others)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def read_whole(folder: Path, dtype: torch.dtype, autocast: bool = False) -> Tensor:
    """Log-probabilities of the same answers by the same folder, read whole in one process."""
    model = load_model(ModelSettings.of_folder(None), folder, dtype=dtype)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return token_logprobs(model, collate([tree()])).logprobs.float()


def test_every_strategy_in_bf16_is_the_folders_model_at_long_positions(
    sharp: Path, told: list[dict[str, Any]]
) -> None:
    exact = read_whole(sharp, torch.float32)
    weights = read_whole(sharp, torch.bfloat16)
    autocast = read_whole(sharp, torch.float32, autocast=True)
    found = {one["strategy"]: one for one in [trained(sharp, "single"), *told[:4]]}
    shapes = {name: list(w.shape) for name, w in load_file(sharp / "model.safetensors").items()}
    assert list(found) == ["single", "ddp", "zero1", "zero2", "zero3"]
    for strategy, one in found.items():
        logprobs = torch.tensor(one["logprobs"])
        expected = weights if strategy.startswith("zero") else autocast
        # the same kernels on the same numbers; frequencies in bf16 would be 0.2 off
        assert (logprobs - expected).abs().mean() < 2e-3, strategy
        assert (logprobs - exact).abs().mean() < 0.05, strategy
        assert one["loss"] == pytest.approx(-logprobs.mean().item(), rel=1e-5)
        assert 0 < one["grad_norm"] < 100
        # a checkpoint from which hf/ can be made
        saved = {name: one["saved"].get(name) for name in shapes}
        assert saved == shapes, strategy


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_zero3_computes_every_architecture_as_it_is_at_long_positions(
    dtype: str, told: list[dict[str, Any]]
) -> None:
    """Buffers, and what follows from them behind a record of 4,000 tokens."""
    found = [one for one in told[4:-1] if one["dtype"] == f"torch.{dtype}"]
    assert {one["folder"]: one["wrong"] for one in found} == {name: [] for name in OTHERS}
    assert {one["folder"]: one["apart"] for one in found} == dict.fromkeys(OTHERS, 0.0)


def test_zero3_gathers_the_head_once_a_pass_whatever_its_chunks(told: list[dict[str, Any]]) -> None:
    whole, chunked = told[-1]["head"].values()
    assert whole["calls"] == chunked["calls"] == ["forward", "backward"]
    assert chunked["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert chunked["norm"] == pytest.approx(whole["norm"], rel=1e-3)


def test_the_heads_gradient_is_summed_in_float32_over_chunks() -> None:
    """In bf16 each chunk's contribution would be rounded to the sum's own 8 bits."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Qwen3Config(**HEADS)).to(torch.bfloat16)
    model.set_attn_implementation("forest_sdpa")
    forest = collate([random_tree(random.Random(1), 500, 4)], record_weight=1.0)

    def head(chunk: int) -> Tensor:
        logprobs = token_logprobs(model, forest, chunk=chunk).logprobs
        [found] = torch.autograd.grad(logprobs.sum(), [model.lm_head.weight])
        return found.double()

    whole, chunked = head(2**20), head(2 * 99)
    assert (chunked - whole).norm() / whole.norm() < 3e-3


def flash_attn_of_16_bits(*given: Any, **named: Any) -> Tensor:
    """As flash-attn itself, whose kernel needs a GPU."""
    assert {one.dtype for one in given[:3]} == {torch.bfloat16}
    return flash_attn_varlen_func(*given, **named)


def flex_of_one_type(*given: Any, **named: Any) -> Tensor:
    """As FlexAttention itself, whose gradient a CPU has not."""
    assert len({one.dtype for one in given[:3]}) == 1
    return flex_attention_with_gradient(*given, **named)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = flash_attn_of_16_bits  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setattr(attention, "flex_attention", flex_of_one_type)


@pytest.mark.parametrize("way", ["sdpa", "flex", "varlen", "dense"])
def test_every_attention_takes_what_autocast_gives(way: str, kernels: None) -> None:
    """A norm behind Qwen3's queries and keys gives float32, the values are bf16."""
    generator = random.Random(1)
    trees = [random_tree(generator, trunk, n) for trunk, n in ((7, 1), (300, 5), (0, 2))]
    torch.manual_seed(0)
    name = attention.choose(way, torch.bfloat16)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        Qwen3Config(**HEADS), attn_implementation=name
    )
    model.set_attn_implementation("forest_dense")  # flash-attn's kernel knows no float32
    exact = token_logprobs(model, collate(trees)).logprobs
    model.set_attn_implementation(name)
    with torch.autocast("cpu", torch.bfloat16):
        found = token_logprobs(model, collate(trees)).logprobs
    assert 0 < (found - exact).abs().max() < 0.02
    expected = gradient(model, exact)
    assert (gradient(model, found) - expected).norm() / expected.norm() < 0.02
