"""The experiments that are sweeps, and the paper's curriculum, each run at the size of a toy, as a
graph of jobs on a real SLURM."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.test_sweeps import begin, states, wait


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {}
        found |= (
            {}
            if isinstance(value, dict)
            else {f"{prefix}{key}": "null" if value is None else str(value)}
        )
    return found


SMOKE = yaml.safe_load((ROOT / "experiments" / "smoke.yaml").read_text())
TINY = {
    **{"data": "synthetic", "model": "tiny", "trainer": "single", "concepts": "items"},
    **{"chains": "template", "eval": "smoke", "launcher": "slurm"},
    **{"launcher.cpus_per_task": "1", "launcher.gpus_per_node": "0"},
    **flat({key: value for key, value in SMOKE.items() if key != "defaults"}),
    **{"graph.require_path": "false", "chains.show_graph": "true", "eval.max_prompt_tokens": "384"},
    **{"eval.max_new_tokens.think": "48", "eval.max_new_tokens.direct": "16"},
}
"""What makes a toy of the paper's experiments: experiment=smoke as overrides."""

SWEEPS = {
    # the whole curriculum; `no_graph` needs a language model as writer
    "ablations": {"ablation": "none,no_rl"},
    "grpo_losses": {"rl.loss": "grpo,dapo", "seed": "0", "stage": "rl"},
    "group_size": {"rl.group_size": "2,4", "seed": "0", "stage": "rl"},
    "context_length": {
        "ablation": "context_8k,context_2k",
        "stage": "adapt",
        "adapt.max_steps": "2",
    },
    "paper_1.7b": {"stage": "adapt", "adapt.max_steps": "2"},
    # two tasks of one job
    "paper_72b": {
        **{"stage": "adapt,reason,rl", "trainer": "zero3", "trainer.devices": "2"},
        **{"adapt.max_steps": "2", "reason.max_steps": "2", "rl.steps": "1"},
        **{"adapt.trees_per_step": "2", "reason.trees_per_step": "2", "rl.prompts_per_step": "2"},
    },
}

LENGTHS = (
    "adapt.max_tokens",
    "reason.max_tokens",
    "rl.max_prompt_tokens",
    "eval.max_prompt_tokens",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all: what one sweep has made another uses."""
    return tmp_path_factory.mktemp("outputs")


@pytest.mark.parametrize("experiment", SWEEPS)
def test_a_sweep_of_toys_runs(experiment: str, root: Path, slurm: dict[str, str]) -> None:
    settings = TINY | SWEEPS[experiment]
    if experiment == "context_length":
        settings = {key: value for key, value in settings.items() if key not in LENGTHS}
    for made, reader in (("prepare", "adapt"), ("chains", "reason")):
        if reader in settings.get("stage", "").split(","):
            (folder,) = root.glob(f"paper_8b/**/{made}")
            settings |= {f"inputs.{made}": str(folder)}
    overrides = [f"{key}={value}" for key, value in settings.items()]
    command = [f"experiment={experiment}", *overrides, f"output_root={root}", f"name={experiment}"]
    begin(*command, **slurm)
    if experiment == "ablations":
        begin(*command, **slurm)  # called again, even now: no run twice
        listed = ["squeue", "--noheader", "--array", "--states=all", "--format=%i"]
        jobs = subprocess.run(listed, env=os.environ | slurm, capture_output=True, text=True).stdout
        assert len(states(root, experiment, **slurm)) == 8 == len(jobs.split())
    assert set(wait(root, experiment, 600, **slurm).values()) == {"done"}
