"""The parts of `benchmarks/gpu.py`, run in its child process: a line of JSON for each.

Imports neither polars nor datasets nor hydra: a machine with a GPU may have torch and transformers
only. What is wrong ends the process; the parent goes on with the next part in a new one.
"""

import argparse
import gc
import json
import platform
import time
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import tokenizers
import torch
import transformers
import yaml
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.measure import ROOT
from ehrr1.models.attention import choose
from ehrr1.models.logprobs import token_logprobs
from ehrr1.models.prune_last_layer import shorten_last_layer
from ehrr1.models.sizes import model_config
from ehrr1.prompts.forest import Forest, collate
from ehrr1.prompts.trees import Branch, Tree

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
TWO_LAYERS = {"num_hidden_layers": 2, "vocab_size": 8192, "tie_word_embeddings": True}

EXACT_NATS, EXACT_GRADIENT = 1e-4, 1e-3
"""How far an attention in float32 may be from the reference: log-probabilities on average, and the
gradient relative to its norm."""

Found = dict[str, Any]


class Sizes:
    """Models and records of this run: whole, or tiny on a CPU."""

    def __init__(self, tiny: bool):
        self.tiny = tiny

    def settings(self, name: str, **changes: Any) -> SimpleNamespace:
        """Return what `stage=plan` reads of the section `model`, whose own class needs pydantic."""
        text = (ROOT / "conf" / "model" / f"{name}.yaml").read_text(encoding="utf-8")
        config = yaml.safe_load(text)["config"] | changes | (TINY if self.tiny else {})
        return SimpleNamespace(config=config, lora=None)

    def model(
        self, name: str, attention: str, dtype: torch.dtype, **changes: Any
    ) -> PreTrainedModel:
        """A model with random weights, the same for each attention, with checkpointing."""
        config = model_config(self.settings(name, **changes))
        torch.manual_seed(0)
        with DEVICE:
            built = AutoModelForCausalLM.from_config(
                config, attn_implementation=attention, dtype=dtype
            )
        if attention.startswith("forest_"):
            shorten_last_layer(built)
        built.gradient_checkpointing_enable()
        return built.train()

    def trees(
        self, count: int, trunk: int, branches: int, asked: int, answered: int, seed: int = 0
    ) -> list[Tree]:
        """Records of random tokens with equal questions; a 25th of each length where tiny."""
        if self.tiny:
            trunk, asked, answered = (max(n // 25, 1) for n in (trunk, asked, answered))
        most = TINY["vocab_size"] if self.tiny else TWO_LAYERS["vocab_size"]
        generator = torch.Generator().manual_seed(seed)

        def draw(length: int) -> list[int]:
            return torch.randint(1, most, (length,), generator=generator).tolist()

        found = []
        for tree in range(count):
            question = draw(asked)
            own = [Branch(f"{tree}/{n}", question, draw(answered)) for n in range(branches)]
            found.append(Tree(draw(trunk), own))
        return found


def without_gradient(attention: str) -> bool:
    """Return whether this attention has no gradient on this machine: FlexAttention on a CPU."""
    return attention == "flex" and DEVICE.type == "cpu"


def missing(name: str) -> Found | None:
    """The line of a part whose attention or peer is not there."""
    if name == "varlen" and not (DEVICE.type == "cuda" and find_spec("flash_attn")):
        return {"left_out": "varlen needs a GPU and flash_attn"}
    if name in ("prefix_grouper", "trl") and not find_spec(name):
        return {"left_out": f"{name} is not installed"}
    return None


def measured(model: PreTrainedModel, forest: Forest) -> tuple[Tensor, Tensor]:
    """Log-probabilities and the gradient of their mean, float32 on the CPU."""
    found = token_logprobs(model, forest.to(DEVICE)).logprobs
    found.mean().backward()
    gradient = [p.grad.flatten().float().cpu() for p in model.parameters() if p.grad is not None]
    return found.detach().float().cpu(), torch.cat(gradient)


def machine(sizes: Sizes) -> Found:
    found: Found = {"python": platform.python_version(), "torch": torch.__version__}
    found |= {"transformers": transformers.__version__, "device": platform.processor()}
    if DEVICE.type == "cuda":
        card = torch.cuda.get_device_properties(DEVICE)
        found |= {"device": card.name, "gib": round(card.total_memory / 2**30, 1)}
        found |= {"cuda": torch.version.cuda, "multiprocessors": card.multi_processor_count}
    for name in ("flash_attn", "liger_kernel", "deepspeed", "vllm", "prefix_grouper", "trl"):
        found[name] = find_spec(name) is not None
    return found


@cache
def reference(sizes: Sizes) -> tuple[dict[str, Tensor], Tensor, Tensor, list[Tree]]:
    """Weights that bf16 holds exactly, and what the dense mask in float32 computes with them."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    trees = sizes.trees(2, 2000, 6, 40, 40)
    model = sizes.model("8b", "forest_dense", torch.float32, **TWO_LAYERS)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    state = {name: weights.cpu() for name, weights in model.state_dict().items()}
    return state, *measured(model, collate(trees)), trees


@cache
def distance(sizes: Sizes, attention: str, dtype: str) -> tuple[float, float, float]:
    """Return an attention's error: mean and largest nats, and that of the gradient's norm."""
    state, logprobs, gradient, trees = reference(sizes)
    model = sizes.model("8b", choose(attention, DTYPES[dtype]), DTYPES[dtype], **TWO_LAYERS)
    model.load_state_dict(state)
    if without_gradient(attention):
        with torch.no_grad():
            found = token_logprobs(model, collate(trees)).logprobs.float()
        off = (found - logprobs).abs()
        return off.mean().item(), off.max().item(), 0.0
    found, own = measured(model, collate(trees))
    off = (found - logprobs).abs()
    relative = (own - gradient).norm() / gradient.norm()
    return off.mean().item(), off.max().item(), relative.item()


def exact(sizes: Sizes, attention: str, dtype: str) -> Found:
    if left_out := missing(attention):
        return left_out
    if attention == "varlen" and dtype == "fp32":
        return {"left_out": "flash-attn has no kernel for float32"}
    nats, most, gradient = distance(sizes, attention, dtype)
    bounds = EXACT_NATS, EXACT_GRADIENT
    if dtype == "bf16":
        dense_nats, _, dense_gradient = distance(sizes, "dense", dtype)
        bounds = 2 * dense_nats, 2 * dense_gradient
    return {
        "mean_nats": nats,
        "largest_nats": most,
        "gradient": None if without_gradient(attention) else gradient,
        "ok": nats <= bounds[0] and gradient <= bounds[1],
    }


def autocast(sizes: Sizes, attention: str) -> Found:
    """The gradient must be there and finite, in the weights' type."""
    if left_out := missing(attention):
        return left_out
    if without_gradient(attention):
        return {"left_out": "FlexAttention has no gradient on a CPU"}
    trees = sizes.trees(1, 500, 4, 40, 40)
    model = sizes.model("8b", choose(attention, torch.bfloat16), torch.float32, **TWO_LAYERS)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        loss = -token_logprobs(model, collate(trees).to(DEVICE)).logprobs.mean()
    loss.backward()
    gradients = [p.grad for p in model.parameters()]
    good = [g is not None and g.dtype == torch.float32 and g.isfinite().all() for g in gradients]
    return {"loss": loss.item(), "ok": all(map(bool, good))}


def shapes(sizes: Sizes) -> Found:
    import torch._dynamo.utils as dynamo

    model = sizes.model("8b", "forest_flex", torch.bfloat16, **TWO_LAYERS)
    seconds = []
    for number in range(10):
        trees = sizes.trees(1 + number % 3, 1000 + 311 * number, 2 + number % 6, 25, 25 + number)
        forest = collate(trees).to(DEVICE)
        began = time.perf_counter()
        with torch.set_grad_enabled(DEVICE.type == "cuda"):
            logprobs = token_logprobs(model, forest).logprobs
        if DEVICE.type == "cuda":
            logprobs.sum().backward()
            torch.cuda.synchronize()
        seconds.append(round(time.perf_counter() - began, 2))
    return {"seconds": seconds, "graphs": dynamo.counters["stats"].get("unique_graphs", 0)}


def end_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that knows one word, the end."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<end>": 0}, "<end>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>")


def rollout(sizes: Sizes) -> Found:
    from ehrr1.engines.base import SamplingParams
    from ehrr1.engines.transformers import TransformersEngine

    model = sizes.model("1.7b", choose("sdpa", torch.bfloat16), torch.bfloat16)
    engine = TransformersEngine(model, end_tokenizer(), batch_size=16)
    [tree] = sizes.trees(1, 10_000, 1, 1, 1)
    found: Found = {}
    for name, most in (("prompt", 1), ("whole", 8 if sizes.tiny else 128)):
        began = time.perf_counter()
        [group] = engine.generate([tree.trunk], SamplingParams(most, 0.7, 0.95, 20), group_size=16)
        found[f"{name}_seconds"] = time.perf_counter() - began
    tokens = sum(len(completion.tokens) for completion in group)
    rest = found["whole_seconds"] - found["prompt_seconds"]
    return found | {"tokens": tokens, "tokens_per_second": (tokens - len(group)) / rest}


def update(sizes: Sizes, name: str, kind: str, way: str) -> Found:
    from benchmarks.gpu_updates import measure

    if left_out := missing(way.removeprefix("forest-")):
        return left_out
    if without_gradient(way.removeprefix("forest-")):
        return {"left_out": "FlexAttention has no gradient on a CPU"}
    return measure(sizes, name, kind, way)


def resume(sizes: Sizes) -> Found:
    from benchmarks.gpu_resume import killed_and_resumed

    return killed_and_resumed()


RUN: dict[str, Callable[..., Found]] = {
    "machine": machine,
    "exact": exact,
    "autocast": autocast,
    "update": update,
    "shapes": shapes,
    "rollout": rollout,
    "resume": resume,
}


def main() -> None:
    reader = argparse.ArgumentParser()
    reader.add_argument("parts", nargs="+")
    reader.add_argument("--tiny", action="store_true")
    given = reader.parse_args()
    sizes = Sizes(given.tiny)
    for part in given.parts:
        what, *words = part.split()
        found = RUN[what](sizes, *words)
        rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in found.items()}
        print(json.dumps({"part": part} | rounded), flush=True)
        gc.collect()
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
