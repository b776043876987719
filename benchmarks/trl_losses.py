"""Compute with TRL's GRPOTrainer: advantages, losses and gradients, for tests/test_losses.py.

    python -m benchmarks.trl_losses [FILE] [--trl-env DIR]

Writes random optimizer steps of every policy loss and option that TRL and we both have, to FILE
(default tests/trl_losses.json.gz). Runs in the virtual environment DIR, which holds TRL and not
this project (made where it is missing).

Each case builds a real GRPOTrainer from a GRPOConfig, with a tiny Qwen3. Of it only three methods
are replaced: those that would sample, score, and compute log-probabilities return given numbers.
Everything between is TRL's: advantages, masks, the correction for the rollout engine, how a rollout
is cut into micro-batches, the loss, and the metrics. All in float64.

A step is `micro_batches` of the `slices` that a rollout is cut into. Given numbers are rounded, so
that the file is small; what TRL found is exact. Numbers of tokens are lists, one for each of the
step's completions; `lengths`, `truncated`, `rewards` and `advantages` are of the whole rollout.
"""

import argparse
import gzip
import itertools
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import ROOT, TRL, environment

LOSSES = ("grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo")
CORRECTIONS = ("none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
SEED = 20260
REPEATS = 4
"""Cases of each loss, correction and whether there is a divergence."""

END, PAD, WORD = 0, 1, 2
PADDING = -3.0
"""Stands where a completion has ended: nothing may depend on it."""
METRICS = (
    "kl",
    "clip_ratio/low_mean",
    "clip_ratio/high_mean",
    "cispo_clip_ratio",
    "sampling/sampling_logp_difference/mean",
    "sampling/importance_sampling_ratio/mean",
)


def cases() -> list[dict[str, Any]]:
    """Return what is computed: options by the names of our configuration, and given numbers."""
    draw = random.Random(SEED)
    grid = itertools.product(LOSSES, CORRECTIONS, (False, True), range(REPEATS))
    found = [case(draw, loss, correction, kl) for loss, correction, kl, _ in grid]
    # TRL's default multiplies the divergence by the ratio: on-policy, by token, it can be compared
    by_token = [loss for loss in LOSSES if loss != "gspo"] * 4
    return found + [case(draw, loss, "none", True, ratio_times_kl=True) for loss in by_token]


def case(
    draw: random.Random,
    loss: str,
    correction: str,
    divergence: bool,
    ratio_times_kl: bool = False,
) -> dict[str, Any]:
    cuts = [(1, 1), (1, 1), (2, 2), (1, 2)]
    micro_batches, slices = draw.choice(cuts[:-1] if ratio_times_kl else cuts)
    group_size, groups = draw.choice([(2, 2), (4, 1), (3, 2), (2, 3), (4, 2)])
    if slices == 2 and group_size * groups % 2:
        groups += 1
    count = group_size * groups
    longest = draw.choice([3, 5])
    lengths = [draw.randint(1, longest) for _ in range(count)]
    cut = draw.choice([0.0, 0.0, 0.3])
    step = lengths[: count * micro_batches // slices]
    now = [[numbers(draw, -3, 1) for _ in range(length)] for length in step]
    # the ratios lie about the bounds, on both sides
    old = [[round(one + draw.gauss(0, 0.25), 3) for one in row] for row in now]
    # TRL takes the policy itself for the old one where it can be no other
    on_policy = correction == "none" and micro_batches == slices and draw.random() < 0.25
    on_policy = on_policy or ratio_times_kl
    level = "sequence" if loss == "gspo" else draw.choice(["token", "token", "sequence"])
    return {
        "loss": loss,
        "level": "token" if ratio_times_kl else level,
        "epsilon": draw.choice([0.1, 0.2, 0.3]),
        "epsilon_high": draw.choice([0.1, 0.2, 0.28, 0.5]),
        "beta": draw.choice([0.01, 0.1, 1.0]) if divergence else 0.0,
        "ratio_times_kl": ratio_times_kl,
        "correction": correction,
        "correction_cap": draw.choice([1.1, 1.5, 3.0]),
        "scale": draw.choice(["group", "batch", "none"]),
        "group_size": group_size,
        "max_completion_tokens": longest + draw.randint(0, 4),
        "micro_batches": micro_batches,
        "slices": slices,
        "lengths": lengths,
        "truncated": [draw.random() < cut for _ in range(count)],
        "rewards": [draw.choice([0.0, 0.2, 0.5, 1.0]) for _ in range(count)],
        "now": now,
        "old": None if on_policy else old,
        "sampled": [[round(one + draw.gauss(0, 0.3), 3) for one in row] for row in old]
        if correction != "none"
        else None,
        "reference": [[round(one + draw.gauss(0, 0.5), 3) for one in row] for row in now]
        if divergence
        else None,
    }


def numbers(draw: random.Random, mean: float, deviation: float) -> float:
    return round(min(draw.gauss(mean, deviation), -0.01), 3)


def trainer(case: dict[str, Any], model: Path, output: Path) -> Any:
    """A GRPOTrainer with the case's options."""
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    cispo = case["loss"] == "cispo"
    corrected = case["correction"] != "none"
    settings = GRPOConfig(
        output_dir=str(output),
        loss_type="grpo" if case["loss"] == "gspo" else case["loss"],
        importance_sampling_level=case["level"],
        epsilon=case["epsilon"],
        # of cispo TRL bounds the ratio by this number itself
        epsilon_high=case["epsilon_high"] + (1 if cispo else 0),
        beta=case["beta"],
        use_bias_correction_kl=case["ratio_times_kl"],
        scale_rewards=case["scale"],
        mask_truncated_completions=True,
        num_generations=case["group_size"],
        per_device_train_batch_size=len(case["lengths"]) // case["slices"],
        gradient_accumulation_steps=case["micro_batches"],
        steps_per_generation=case["slices"],
        num_iterations=1 if case["old"] is None else 2,
        max_completion_length=case["max_completion_tokens"],
        vllm_importance_sampling_correction=corrected,
        vllm_importance_sampling_mode=case["correction"] if corrected else "token_truncate",
        vllm_importance_sampling_clip_max=case["correction_cap"],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        disable_tqdm=True,
    )
    found = GRPOTrainer(
        model=str(model),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": ["a"]}),
        processing_class=PreTrainedTokenizerFast.from_pretrained(model),
    )
    found.use_vllm = corrected  # now, so that it builds no engine
    found.current_gradient_accumulation_steps = case["micro_batches"]
    found.model.train()
    return found


class Given:
    """Returns given numbers where a trainer would sample, score, or run a model."""

    def __init__(self, case: dict[str, Any], trainer: Any):
        self.case, self.trainer = case, trainer
        self.width = max(case["lengths"])
        self.now = self._padded("now").requires_grad_()
        self.micro_batch = self.now[:0]
        trainer._generate = self.generate
        trainer._calculate_rewards = self.rewards
        trainer._get_per_token_logps_and_entropies = self.logprobs

    def generate(self, prompts: list[str]) -> tuple[Any, ...]:
        pairs = zip(self.case["lengths"], self.case["truncated"], strict=True)
        tokens = [[WORD] * (length - 1) + [WORD if cut else END] for length, cut in pairs]
        sampled = self.case["sampled"]
        if sampled is not None:
            rest = self.case["lengths"][len(sampled) :]
            sampled = sampled + [[PADDING] * length for length in rest]
        return [[WORD]] * len(tokens), tokens, None, [""] * len(tokens), sampled, {}, None, None

    def rewards(self, *_: Any) -> torch.Tensor:
        return torch.tensor(self.case["rewards"])[:, None]

    def logprobs(self, model: Any, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor, None]:
        if torch.is_grad_enabled():
            found = self.micro_batch
        else:  # as the rollout is prepared
            found = self._padded("reference" if model is self.trainer.ref_model else "old")
        return found, torch.zeros_like(found), None

    def _padded(self, name: str) -> torch.Tensor:
        """[completions of the rollout, longest]"""
        rows = self.case[name]
        found = torch.full((len(self.case["lengths"]), self.width), PADDING)
        for row, values in zip(found, rows, strict=False):
            row[: len(values)] = torch.tensor(values)
        return found


def compute(case: dict[str, Any], model: Path, output: Path) -> dict[str, Any]:
    """Return TRL's result for a case."""
    from trl.trainer.utils import split_tensor_dict

    one = trainer(case, model, output)
    given = Given(case, one)
    count = len(case["lengths"])
    rollout = one._generate_and_score_completions([{"prompt": "a"}] * count)
    assert ("old_per_token_logps" in rollout) == (case["old"] is not None)
    size = count // case["slices"]
    losses = []
    for number, inputs in enumerate(split_tensor_dict(rollout, case["slices"])):
        if number < case["micro_batches"]:
            given.micro_batch = given.now[number * size : (number + 1) * size]
            losses.append(one.compute_loss(one.model, inputs))
    total = torch.stack(losses).sum()
    [gradient] = torch.autograd.grad(total, given.now)
    assert total.dtype == gradient.dtype == torch.float64
    found = {
        "advantages": rollout["advantages"].tolist(),
        "loss_value": total.item(),
        "gradient": [
            row[: len(now)].tolist() for row, now in zip(gradient, case["now"], strict=False)
        ],
    }
    if (
        case["micro_batches"] == case["slices"] == 1
    ):  # else of micro-batches, or of more than a step
        watched = one._metrics["train"]
        found["metrics"] = {name: watched[name][0] for name in METRICS if name in watched}
    return case | found


def tiny_model(folder: Path) -> None:
    """Weights, configuration and tokenizer of a model that is built but never run."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    words = Tokenizer(WordLevel({"<end>": END, "<pad>": PAD, "a": WORD}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<end>", pad_token="<pad>"
    )
    tokenizer.save_pretrained(folder)
    config = Qwen3Config(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)


def write(path: Path) -> None:
    """Compute all cases; a line each, so that the file can be compared."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_default_dtype(torch.float64)
    with tempfile.TemporaryDirectory() as folder:
        tiny_model(Path(folder) / "model")
        lines = [
            json.dumps(compute(case, Path(folder) / "model", Path(folder) / "run"))
            for case in cases()
        ]
    text = "[\n" + ",\n".join(lines) + "\n]\n"
    path.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))
    print(f"{len(lines)} cases, {path.stat().st_size:,} bytes: {path}")


def main() -> None:
    reader = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    home = ROOT / "outputs" / "benchmarks"
    default = ROOT / "tests" / "trl_losses.json.gz"
    reader.add_argument("file", type=Path, nargs="?", default=default)
    reader.add_argument("--trl-env", type=Path, default=home / "trl-env", metavar="DIR")
    reader.add_argument("--inside", action="store_true", help="this is that environment")
    given = reader.parse_args()
    if given.inside:
        return write(given.file)
    python = environment(given.trl_env, TRL) / "python"
    command = [python, "-m", "benchmarks.trl_losses", given.file.resolve(), "--inside"]
    sys.exit(subprocess.run(command, cwd=ROOT).returncode)


if __name__ == "__main__":
    main()
