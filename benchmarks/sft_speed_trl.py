"""TRL's SFTTrainer on the samples that `benchmarks/sft_speed.py` wrote; runs in an environment of
its own, that holds TRL and not this project.

Packing as TRL advises (best fit decreasing, padding-free), loss on completions only, its default
attention. No evaluation, no reports, no checkpoints. Its rows are dealt in the order in which it
packs them.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer, pack_dataset
from trl.trainer import utils as trainer_utils


class Timed(TrainerCallback):
    """Notes when the first optimizer step is done, and what was computed before."""

    def __init__(self) -> None:
        self.began, self.samples, self.tokens = (0.0, 0.0), 0, 0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if self.began == (0.0, 0.0):
            self.began, self.samples, self.tokens = clocks(), 0, 0


def clocks() -> tuple[float, float]:
    """Seconds of time, and of this process on any core."""
    return time.perf_counter(), time.process_time()


class Counting(SFTTrainer):
    """Counts samples and tokens (padding included) of the rows that it computes."""

    timed: Timed

    def training_step(self, model: Any, inputs: dict[str, Any], *others: Any) -> torch.Tensor:
        self.timed.tokens += inputs["input_ids"].numel()
        self.timed.samples += int((inputs["position_ids"] == 0).sum())
        return super().training_step(model, inputs, *others)


def train(given: argparse.Namespace, samples: Dataset, steps: int) -> dict[str, Any]:
    """Train on all samples once, in about `steps` optimizer steps of equally many rows."""
    columns = samples.select_columns(["input_ids"])
    rows = len(pack_dataset(columns, given.row_tokens, "bfd"))
    settings = SFTConfig(
        output_dir=str(given.folder / "trl"),
        max_length=given.row_tokens,
        packing=True,
        packing_strategy="bfd",
        completion_only_loss=True,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=-(-rows // steps),
        num_train_epochs=1,
        learning_rate=given.lr,
        lr_scheduler_type="cosine",
        max_grad_norm=1.0,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=given.checkpointing,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    timed = Timed()
    trainer = Counting(
        model=str(given.folder / "model"),
        args=settings,
        train_dataset=samples,
        callbacks=[timed],
    )
    trainer.timed = timed
    trainer.train()
    ended = clocks()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {
        "seconds": ended[0] - timed.began[0],
        "cpu_seconds": ended[1] - timed.began[1],
        "samples": timed.samples,
        "tokens": timed.tokens,
        "losses": losses,
        "rows": rows,
    }


def main() -> None:
    reader = argparse.ArgumentParser()
    reader.add_argument("folder", type=Path)
    reader.add_argument("output", type=Path)
    reader.add_argument("--steps", type=int, required=True)
    reader.add_argument("--row-tokens", type=int, required=True)
    reader.add_argument("--lr", type=float, required=True)
    reader.add_argument("--checkpointing", action="store_true")
    reader.add_argument("--labelled", action="store_true", help="as on a GPU")
    reader.add_argument("--first-step", action="store_true", help="only our first step's samples")
    given = reader.parse_args()
    if given.labelled:
        # whether it picks them out is decided, in that module, by whether there is Triton
        trainer_utils._use_triton = lambda device: True
    samples = Dataset.load_from_disk(str(given.folder / "samples"))
    if given.first_step:
        samples = samples.filter(lambda step: step == 0, input_columns="step")
    samples = samples.remove_columns("step")
    found = train(given, samples, 1 if given.first_step else given.steps)
    given.output.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
