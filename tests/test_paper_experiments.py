"""The released hyper-parameters, as spec and paper give them, in the composed experiments."""

from typing import Any

import pytest
import yaml

from tests.conftest import CommandLine

BASES = {
    "1.7b": "Qwen/Qwen3-1.7B",
    "8b": "Qwen/Qwen3-8B",
    "72b": "Qwen/Qwen2.5-72B-Instruct",
}

SUPERVISED = {
    "lr": 2e-5,
    "warmup": 0.03,
    "weight_decay": 0.0,
    "optimizer": "adamw",
    "max_steps": None,
    "samples_per_task": None,
}

RELEASED: dict[str, Any] = {
    "data": {
        "name": "mimic",
        "protocol": "paper",
        "window_hours": 24,
        "paper": {
            "more_than": 10,
            "fewer_than": 100,
            "patient_events": 1200,
            "atc": "released",
        },
    },
    "loss": {"on": "all", "record_weight": 1.0, "risk_weight": 1.0},
    "adapt": SUPERVISED | {"max_tokens": 8192, "epochs": 1, "trees_per_step": 8},
    "reason": SUPERVISED
    | {"max_tokens": 12288, "epochs": 5, "trees_per_step": 64, "direct_share": 0.0},
    "rl": {
        "samples_per_task": 500,
        "steps": None,
        "prompts_per_step": 4,
        "group_size": 16,
        "lr": 2e-6,
        "warmup": 0.03,
        "temperature": 0.7,
        "top_p": 0.95,
        "top_k": 20,
        "max_prompt_tokens": 10_000,
        "max_completion_tokens": 2048,
        "rewards": {"accuracy": 1.0, "format": 0.0},
        "require_closed_think": True,
    },
    "trainer": {
        "strategy": "zero3",
        "offload": True,
        "precision": "bf16-mixed",
        "activation_checkpointing": True,
    },
    "eval": {
        "samples_per_task": 500,
        "max_new_tokens": {"think": 4096, "direct": 128},
        "matching": "release",
        "top_p": 0.95,
        "top_k": 20,
    },
    "concepts": {"source": "umls"},
    "graph": {
        "counting": "release",
        "min_count": 5,
        "min_support": 1,
        "min_lift": 5,
        "top": 20,
        "require_path": True,
    },
    "chains": {
        "writer": "openai",
        "coverage": 0.7,
        "drafts": 3,
        "temperature": 0.5,
        "show_graph": False,
    },
}


@pytest.mark.parametrize("size", BASES)
def test_paper_experiments_hold_the_released_values(size: str, command_line: CommandLine) -> None:
    done = command_line(f"experiment=paper_{size}", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    composed = yaml.safe_load(done.stdout)
    found = {
        section: {name: composed[section][name] for name in values}
        for section, values in RELEASED.items()
    }
    assert found == RELEASED
    assert composed["model"]["name"] == size
    assert composed["model"]["path"] == BASES[size]
    room = composed["model"]["config"]["max_position_embeddings"]
    assert composed["eval"]["max_prompt_tokens"] == min(32_000, room - 4096)


def test_only_the_size_tells_the_paper_experiments_apart(command_line: CommandLine) -> None:
    one, other = (
        yaml.safe_load(command_line(f"experiment=paper_{size}", "--cfg", "job").stdout)
        for size in ("1.7b", "8b")
    )
    assert {key for key in one if one[key] != other[key]} == {"model"}
