"""Compare the memory that stage=plan computes with the memory that training takes.

    python -m benchmarks.plan_memory [--only NAME ...] [--json FILE]

For each configuration a process of its own trains two steps of two rows each on the CPU with the
project's code: the model from its settings, `token_logprobs`, `supervised_loss`, the gradient,
`make_optimizers`' AdamW; the second step has the optimizer's states from the first. *Measured* is
the process's peak resident memory (VmHWM, set back before the model is built) above what it had
resident then, after a step of a tiny model had loaded what PyTorch loads late. *Planned* is what
`ehrr1.models.memory` says of the same settings, with an attention that copies no keys (on a GPU
sdpa does, on a CPU it does not), and nothing reserved.

glibc keeps freed blocks below a threshold that grows by itself; it is fixed at 64 KiB here
(MALLOC_MMAP_THRESHOLD_), so that what PyTorch frees is no longer resident. Two threads.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, machine, markdown, report

GIB = 2**30
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "OMP_NUM_THREADS": "2",
}

SMALL = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "vocab_size": 16384}
BASE = {"hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 12, "vocab_size": 32768}
WIDE = {"hidden_size": 320, "intermediate_size": 960, "num_hidden_layers": 6, "vocab_size": 151936}
ADAPTERS = {"r": 16, "alpha": 32, "dropout": 0.0, "targets": ["q_proj", "v_proj"]}

CASES: dict[str, dict[str, Any]] = {
    "small": {"config": SMALL, "trunk": 896, "branch": 128},
    "small, checkpointing, long, all": {
        "config": SMALL, "trunk": 2432, "branch": 128, "checkpointing": True, "all": True,
    },
    "small, LoRA": {"config": SMALL, "trunk": 896, "branch": 128, "lora": ADAPTERS},
    "base, checkpointing, short": {
        "config": BASE, "trunk": 256, "branch": 64, "checkpointing": True,
    },
    "base, eight branches": {"config": BASE, "trunk": 192, "branch": 48, "branches": 8},
    "vocabulary, checkpointing, all": {
        "config": WIDE, "trunk": 512, "branch": 128, "checkpointing": True, "all": True,
    },
    "vocabulary, answers": {"config": WIDE, "trunk": 512, "branch": 128},
}  # fmt: skip


def model_settings(case: dict[str, Any]) -> Any:
    """The section `model`: a Qwen3 with heads of 64, two queries a key."""
    from ehrr1.config.training import Lora, ModelSettings, Tokenizer

    heads = case["config"]["hidden_size"] // 64
    config = {
        "model_type": "qwen3",
        "num_attention_heads": 2 * heads,
        "num_key_value_heads": heads,
        "head_dim": 64,
        "tie_word_embeddings": case["config"]["vocab_size"] > 2**16,
    }
    return ModelSettings(
        name="case",
        path=None,
        attention="sdpa",
        lora=Lora(**case["lora"]) if case.get("lora") else None,
        tokenizer=Tokenizer(train=False, vocab_size=None),
        config=config | case["config"],
    )


def predict(case: dict[str, Any], attention: str = "sdpa") -> dict[str, Any]:
    """The plan's bytes: total, and by part."""
    from benchmarks.settings import composed
    from ehrr1.models.memory import Load, TreeShape, activations, anatomy, memory

    settings = model_settings(case)
    settings.attention = attention
    trainer = composed("trainer=single").trainer
    trainer.activation_checkpointing = case.get("checkpointing", False)
    branches = (case["branch"],) * case.get("branches", 1)
    learnt = sum(branches) + (case["trunk"] if case.get("all") else 0)
    shape, body = TreeShape(case["trunk"], branches, learnt), anatomy(settings)
    kept = activations(settings, trainer, body, shape)
    found = memory(body, trainer, 1, kept, Load(1, shape))
    return {"parameters": body.base + body.adapters, "planned": found.total, "parts": found.parts}


def train(case: dict[str, Any]) -> float:
    """Peak bytes of two steps above what was resident before the model was built."""
    tiny = case | {"config": SMALL | {"num_hidden_layers": 1, "hidden_size": 64}}
    _two_steps(tiny | {"trunk": 32, "branch": 8, "lora": None})
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    _two_steps(case)
    return _status("VmHWM") - before


def _two_steps(case: dict[str, Any]) -> None:
    import torch

    from ehrr1.config.training import Lora, Optimization
    from ehrr1.models.loading import add_adapters, load_model
    from ehrr1.models.logprobs import token_logprobs
    from ehrr1.prompts.forest import collate
    from ehrr1.prompts.trees import Branch, Tree
    from ehrr1.training.losses import supervised_loss
    from ehrr1.training.module import make_optimizers

    model = load_model(model_settings(case))
    if case.get("lora"):
        add_adapters(model, Lora(**case["lora"]))
    if case.get("checkpointing"):
        model.gradient_checkpointing_enable()
    settings = Optimization(
        samples_per_task=None,
        optimizer="adamw",
        schedule="cosine",
        lr=1e-4,
        warmup=0.0,
        weight_decay=0.0,
        beta2=0.999,
        clip=1.0,
        save_seconds=15.0,
    )
    [adamw] = make_optimizers(model, settings)
    ids = torch.randint(10, 1000, (case["trunk"] + case["branch"],)).tolist()
    trunk, branch = ids[: case["trunk"]], ids[case["trunk"] :]
    branches = [Branch("", branch[:1], branch[1:])] * case.get("branches", 1)
    forest = collate([Tree(trunk, branches)], 1.0 if case.get("all") else 0.0)
    for _ in range(2):
        adamw.zero_grad()
        for _ in range(2):
            logprobs = token_logprobs(model, forest).logprobs
            supervised_loss(logprobs, forest.weights, 2 * forest.weights.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()


def _status(name: str) -> float:
    """Bytes that the kernel counts for this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise ValueError(name)


def measure(name: str) -> dict[str, Any]:
    """Plan and measurement of one case, each in a process of its own."""
    found: dict[str, Any] = {}
    for what in ("predict", "train"):
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.plan_memory", "--child"]
        done = subprocess.run(
            [*command, what, name],
            cwd=ROOT,
            env=os.environ | ALLOCATOR | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr[-2000:]}")
        found |= json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    arguments.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    arguments.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.child:
        what, case = given.child[0], CASES[given.child[1]]
        # on a CPU sdpa copies no keys, as flex on a GPU
        found = predict(case, "flex") if what == "predict" else {"measured": train(case)}
        print(json.dumps(found))
        return
    on, found, rows = machine(), {}, []
    for name in given.only:
        found[name] = one = measure(name)
        ratio = one["planned"] / one["measured"]
        row = [f"{one['parameters'] / 1e6:.1f}"]
        row += [f"{one[key] / GIB:.2f}" for key in ("planned", "measured")]
        parts = ", ".join(f"{k} {v / GIB:.2f}" for k, v in one["parts"].items() if v)
        rows.append([name, *row, f"{ratio:.2f}", parts])
        print(rows[-1], file=sys.stderr, flush=True)
    heads = ["", "million parameters", "planned GiB", "measured GiB", "ratio", "parts, GiB"]
    report(given.json, markdown(heads, rows), {"machine": on, "cases": found})


if __name__ == "__main__":
    main()
